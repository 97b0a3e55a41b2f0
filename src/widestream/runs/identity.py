"""Which run something is of: what a run that goes on may change, and what makes it another run."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from widestream.errors import UserError, shown
from widestream.recipe import RunConfig, to_dict
from widestream.runs.checkpoint import Checkpoint
from widestream.runs.folder import differences, flatten, load_config
from widestream.runs.settings import plain

NOTHING = "no batch and no number changes"
EVALUATION = "batches stay, evaluations change"
LEAPS = "batches stay until the loss leaps"
ROUNDING = "batches stay, numbers may change by rounding"

MAY_CHANGE = {
    **dict.fromkeys(("train.parallel.timeout_s",), NOTHING),
    **dict.fromkeys(
        ("name", "description", "train.save_every", "train.keep", "train.keep_best", "train.mirror", "train.log_every"),
        NOTHING,
    ),
    # What a run computes in is settled at its beginning: `require_same_run` lets it be written in another way only.
    **dict.fromkeys(("train.tensorboard", "train.wandb", "train.trackio", "train.precision"), NOTHING),
    # What these mean is compared by the fingerprints and sizes of the data (run.json).
    **dict.fromkeys(("data.path", "data.train_split", "data.heldout_split", "data.sequence_length"), NOTHING),
    **dict.fromkeys(("train.eval_every", "train.eval_windows", "train.final_eval"), EVALUATION),
    **dict.fromkeys(("train.threads", "train.device", "train.micro_batch_size", "train.compile"), ROUNDING),
    **dict.fromkeys(("train.activation_checkpointing", "train.stream_memory", "train.anchors"), ROUNDING),
    **dict.fromkeys(("train.parallel.replicate", "train.parallel.shard", "train.parallel.context"), ROUNDING),
    **dict.fromkeys(("train.parallel.tensor", "train.parallel.gather"), ROUNDING),
    **dict.fromkeys(("train.kernels", "train.attention", "train.deterministic"), ROUNDING),
}
"""Settings that a run which goes on may change, and what comes of it. `LENGTH` has rules of its own; every other
setting makes another run."""
LENGTH = ("train.steps", "train.tokens", "schedule.")
"""How the keys begin that decide how long a run is and how its rate goes; train/extend.py says when they may change."""

Changes = dict[str, tuple[Any, Any]]
"""Settings by dotted key: what they were, and what they are now."""


def is_length(key: str) -> bool:
    """Whether a setting is one of `LENGTH`."""
    return key.startswith(LENGTH)


def require_same_run(run_dir: Path, config: RunConfig, info: Mapping[str, Any], data: Mapping[str, Any]) -> Changes:
    """Make sure that a recipe and its data are those of a run, but for what may change.

    Args:
        run_dir: folder of the run.
        config: the recipe now.
        info: the run's run.json.
        data: the same as in its `data`, now.

    Returns:
        What changes, settings of `LENGTH` included.

    Raises:
        UserError: it is another run; names what differs.
    """
    # A setting that is newer than the folder has its default there.
    changes = {key: (old, new) for key, old, new in differences(to_dict(load_config(run_dir)), to_dict(config))}
    others = {key: pair for key, pair in changes.items() if key not in MAY_CHANGE and not is_length(key)}
    if config.train.precision not in ("auto", info["precision"]):
        others["train.precision"] = (info["precision"], config.train.precision)
    others |= {key: (old, new) for key, old, new in differences(info["data"], data, "run data ")}
    if others:
        raise another_run(run_dir, others | {key: pair for key, pair in changes.items() if is_length(key)})
    return changes


def another_run(run_dir: Path, changes: Changes, advice: str = "") -> UserError:
    """What to say of a folder with a run that differs."""
    listed = ", ".join(
        f"{shown(key)} ({shown(plain(old))} there, {shown(plain(new))} now)" for key, (old, new) in changes.items()
    )
    return UserError(
        f"{run_dir} holds another run; it differs in {listed}. {advice}Give another folder with --out (and "
        "train.init_from=RUN to start from that one's weights), or --fresh to move that one aside and begin anew."
    )


def told(changes: Changes) -> str:
    """What a run goes on with, in one line."""
    effects: dict[str, list[str]] = {}
    for key, (old, new) in changes.items():
        effects.setdefault(MAY_CHANGE.get(key, "the steps done stay as they are"), []).append(
            f"{shown(key)} {shown(plain(new))} ({shown(plain(old))} before)"
        )
    return "; ".join(f"{', '.join(settings)}: {effect}" for effect, settings in effects.items())


def own_settings(config: RunConfig) -> dict[str, Any]:
    """What a checkpoint says of the run that it is of: every setting but those of `MAY_CHANGE`, by dotted key."""
    values = json.loads(json.dumps(to_dict(config)))
    return {key: value for key, value in flatten(values).items() if key not in MAY_CHANGE}


def require_own(saved: Checkpoint, config: RunConfig, info: Mapping[str, Any]) -> None:
    """Make sure that a checkpoint is of the run in whose folder it lies.

    Args:
        saved: the checkpoint.
        config: the run's recipe.
        info: its run.json.

    Raises:
        UserError: it is of another one; names the first difference.
    """
    state = saved.state
    settings = state.get("settings") or flatten({"model": state.get("model", {})})  # older ones tell of the model only
    # A setting that is newer than the checkpoint is not in it.
    pairs: Iterable[tuple[str, Any, Any]] = (
        (key, value, ours.get(key)) for ours in [own_settings(config)] for key, value in settings.items()
    )
    before = [entry.get("settings", {}) for entry in info.get("resumed", [])]
    for key, there, here in pairs:
        if there != here and there not in [changed[key][0] for changed in before if key in changed]:
            what = "model" if key.startswith("model.") else "run"
            raise _stray(saved, f"{what}: {shown(key)} is {shown(plain(there))} there and {shown(plain(here))} here")
    there, here = state.get("data_fingerprint"), info["data"].get("fingerprint")
    if there is not None and there != here:
        raise _stray(saved, "run: it was trained on other data")


def _stray(saved: Checkpoint, what: str) -> UserError:
    return UserError(
        f"{saved.path} is of another {what}; remove that checkpoint from the folder, or give another folder with --out."
    )
