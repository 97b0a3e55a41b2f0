"""Starting from another run's weights (`train.init_from`)."""

from dataclasses import asdict, dataclass
from pathlib import Path

from widestream.data.manifest import read_manifest
from widestream.errors import UserError
from widestream.recipe import RunConfig, to_dict
from widestream.runs import checkpoint
from widestream.runs.folder import MADE, differences, is_run, list_checkpoints, load_config, read_info
from widestream.runs.identity import require_own


@dataclass(frozen=True, slots=True)
class Origin:
    """The weights that a run starts from. Moments and schedule start anew."""

    folder: str
    """Checkpoint that they were taken from."""
    step: int
    """Steps that they had been trained for."""
    sha256: str
    """Hash of its weights (`checkpoint.recorded_hash`)."""
    settings: tuple[str, ...]
    """Settings of the model that are others there, though all weights have the same names and shapes."""

    @property
    def told(self) -> str:
        """The same in a line."""
        others = f"; other settings of the model there: {', '.join(self.settings)}" if self.settings else ""
        return f"it begins with the weights of {self.folder}{others}"


def find_origin(config: RunConfig, run_dir: Path, resume: bool) -> Origin | None:
    """The weights that a run is to start from; None where it starts from random ones, or has a checkpoint of its own.

    Args:
        config: the recipe; `train.init_from` is a run folder (its newest checkpoint) or a checkpoint's folder.
        run_dir: folder of the run.
        resume: whether it goes on from what its folder holds.

    Raises:
        UserError: there are no such weights, they are of another tokenizer, or no longer those that the run began with.
    """
    if config.train.init_from is None or (resume and list_checkpoints(run_dir)):
        return None
    place = Path(config.train.init_from)
    saved, source = _open(place)
    if source.resolve() == run_dir.resolve():
        raise UserError(f"train.init_from={place} is the run's own folder; give another folder with --out.")
    recipe, info = load_config(source), read_info(source)
    require_own(saved, recipe, info)
    if MADE in info and "tokenizer" not in info["data"]:
        raise UserError(f"{source} was imported without a tokenizer; import it again, with --tokenizer.")
    if info["data"].get("tokenizer_sha256") != read_manifest(config.data.path).tokenizer.sha256:
        raise UserError(
            f"{source} was trained with another tokenizer than that of {config.data.path}, so its weights mean other "
            "tokens; prepare the text with the tokenizer of that run, or start from another one."
        )
    keys = [f"model.{key}" for key, _, _ in differences(to_dict(recipe.model), to_dict(config.model))]
    origin = Origin(str(saved.path), saved.step, checkpoint.recorded_hash(saved.path) or "", tuple(keys))
    began = read_info(run_dir).get("init_from") if resume and is_run(run_dir) else None
    if began is not None and began["sha256"] != origin.sha256:
        raise UserError(
            f"{place} holds other weights now than when {run_dir} began; give the checkpoint {began['folder']} as "
            "train.init_from in another folder (--out), or begin anew with --fresh."
        )
    return origin


def weights_hash(place: Path) -> str | None:
    """Hash of the weights that `train.init_from` names, as their checkpoint says it; None where there are none yet."""
    there = list_checkpoints(place)
    return checkpoint.recorded_hash(there[-1][1] if there else place)


def describe(origin: Origin | None) -> dict[str, object]:
    """What run.json says of it."""
    return {} if origin is None else {"init_from": {**asdict(origin), "settings": list(origin.settings)}}


def _open(place: Path) -> tuple[checkpoint.Checkpoint, Path]:
    """A checkpoint, and the folder of its run."""
    source = place.parent.parent
    if is_run(place):
        saved = checkpoint.latest(place)
        if saved is None:
            raise UserError(f"train.init_from={place} has no checkpoint yet; let it train to its first one.")
        return saved, place
    steps = {path.name: step for step, path in list_checkpoints(source)} if is_run(source) else {}
    if place.name not in steps:
        raise UserError(f"train.init_from={place} is no run folder and no checkpoint of one; give one of these.")
    return checkpoint.at_step(source, steps[place.name]), source
