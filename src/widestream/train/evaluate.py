"""Evaluate the model in a run folder."""

from pathlib import Path

from widestream.data.manifest import read_manifest
from widestream.data.store import TokenStore
from widestream.errors import UserError
from widestream.machine import find_device, numerics
from widestream.runs.folder import load_config, read_info
from widestream.runs.model import load_model
from widestream.train.heldout import Heldout, evaluate
from widestream.train.parallel import World
from widestream.train.plan import make_plan
from widestream.train.setup import depth_of


def evaluate_run(run_dir: str | Path, data: str | Path | None = None, device: str | None = None) -> tuple[int, Heldout]:
    """Evaluate a run's newest complete checkpoint on a whole held-out split.

    It computes as the run did (precision, threads, windows), so that the numbers are those the run itself reports.

    Args:
        run_dir: folder of a run, finished or not.
        data: another prepared folder, made with the same tokenizer; default: the run's own.
        device: where to compute; default: where the run was trained.

    Returns:
        The checkpoint's step, and the evaluation.

    Raises:
        UserError: no run folder, no usable checkpoint, no such data, or data of another tokenizer.
    """
    run_dir = Path(run_dir)
    config, info = load_config(run_dir), read_info(run_dir)
    store = open_heldout(run_dir, data)
    place = find_device(device or config.train.device)
    plan = make_plan(config)
    with numerics(config.train):
        model, saved = load_model(run_dir, place, depth=depth_of(config, place, training=False))
        heldout = evaluate(
            model,
            store,
            world=World(place),
            sequence_length=plan.sequence_length,
            batch_size=plan.micro_batch_size,
            precision=info["precision"],
        )
    return saved.step, heldout


def open_heldout(run_dir: Path, data: str | Path | None = None) -> TokenStore:
    """The held-out split that a run is judged on, read through and checked.

    Args:
        run_dir: folder of the run.
        data: another prepared folder, made with the same tokenizer; default: the run's own.

    Raises:
        UserError: no run folder, no such data, or data of another tokenizer.
    """
    config, info = load_config(run_dir), read_info(run_dir)
    folder = config.data.path if data is None else data
    split = "heldout" if config.data.heldout_split == "none" else config.data.heldout_split
    store = TokenStore.open(folder, split, verify=True)
    if read_manifest(folder).tokenizer.sha256 != info["data"]["tokenizer_sha256"]:
        raise UserError(
            f"{folder} was prepared with another tokenizer than {run_dir} was trained with; "
            "prepare the text again with the run's tokenizer."
        )
    return store
