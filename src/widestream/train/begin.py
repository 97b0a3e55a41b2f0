"""How a run folder begins, and whether it is the one to go on with."""

import inspect
import platform
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from widestream.data.manifest import read_manifest
from widestream.data.store import TokenStore
from widestream.data.tokenizer import load_tokenizer
from widestream.errors import UserError
from widestream.machine import choose_precision, describe_machine, matmul_peak
from widestream.model.costs import summarize
from widestream.recipe import RunConfig, to_dict
from widestream.runs.folder import differences, is_run, load_config, read_info
from widestream.runs.write import begin, require_free, write_info
from widestream.streams import stream_class
from widestream.train.parallel import World
from widestream.train.plan import Plan
from widestream.version import __version__, code_fingerprint


def open_folder(
    run_dir: Path, config: RunConfig, data: dict[str, Any], world: World, computed: dict[str, Any]
) -> dict[str, Any]:
    """Begin a run folder, or go on with the one that this very run began.

    Args:
        run_dir: the folder; made when it does not exist. It may hold a beginning that was killed.
        config: what is to be trained.
        data: what `describe_data` says of the tokens.
        world: the processes that take part.
        computed: what computes the stream's exchanges and attention.

    Returns:
        The contents of run.json. Precision and peak are those measured when the run began.

    Raises:
        UserError: the folder belongs to another run, or holds something else; names what differs.
    """
    if is_run(run_dir):
        return _require_same(run_dir, config, data)
    require_free(run_dir)
    info = _describe(config, data, world) | computed
    begin(run_dir, config, info, load_tokenizer(config.data.path))
    return info


def describe_data(config: RunConfig, plan: Plan, train: TokenStore, heldout: TokenStore | None) -> dict[str, Any]:
    """What two runs must agree on to have seen the same batches, and the sizes of the splits."""
    tokenizer = read_manifest(config.data.path).tokenizer
    return {
        "fingerprint": train.fingerprint,
        "heldout_fingerprint": heldout.fingerprint if heldout else None,
        "tokenizer_sha256": tokenizer.sha256,
        "tokenizer": asdict(tokenizer),
        "train_tokens": train.tokens,
        "train_bytes": train.source_bytes,
        "heldout_tokens": heldout.tokens if heldout else None,
        "heldout_bytes": heldout.source_bytes if heldout else None,
        "sequence_length": plan.sequence_length,
        "batch_size": config.train.batch_size,
        "seed": config.data.seed,
    }


def note_start(
    run_dir: Path, config: RunConfig, info: dict[str, Any], step: int, world: World, computed: dict[str, Any]
) -> float:
    """Enter in run.json that a run goes on elsewhere, or by other code, than where and by what it came so far.

    Args:
        run_dir: its folder.
        config: the recipe.
        info: the contents of its run.json.
        step: optimizer steps done; with none done, the run begins here.
        world: the processes that take part now.
        computed: what computes exchanges and attention now.

    Returns:
        FLOPs per second that a process has at its peak here; see `machine.matmul_peak`.
    """
    parts = info.get("resumed", [])
    now = _made_by(config, world) | computed
    last = [info, *parts][-1]
    if all(last.get(key) == value for key, value in now.items()):
        return last["peak_flops_per_s"]
    now |= {"peak_flops_per_s": matmul_peak(world.device, info["precision"]), "started": _time()}
    write_info(run_dir, info | {"resumed": [*parts, {"step": step} | now]} if step else info | now)
    return now["peak_flops_per_s"]


def code_of(config: RunConfig) -> str:
    """Fingerprint of the code that computes a recipe, that of a stream of one's own included."""
    module = sys.modules[stream_class(config.model.stream.kind).__module__]
    file = None if module.__name__.partition(".")[0] == "widestream" else inspect.getsourcefile(module)
    return code_fingerprint(*([] if file is None else [Path(file)]))


def _made_by(config: RunConfig, world: World) -> dict[str, Any]:
    return {
        "widestream": __version__,
        "code": code_of(config),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": describe_machine(world.device),
        "processes": world.size,
    }


def _time() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _describe(config: RunConfig, data: dict[str, Any], world: World) -> dict[str, Any]:
    precision = choose_precision(config.train.precision, world.device)
    model, length = config.model, data["sequence_length"]
    summary = summarize(model)
    at_length = summary if length == model.context else summarize(replace(model, context=length))
    return {
        **_made_by(config, world),
        "precision": precision,
        "peak_flops_per_s": matmul_peak(world.device, precision),
        "data": data,
        "summary": summary.to_dict(),
        "train_flops_per_token": at_length.train_flops,
        "started": _time(),
        "resumed": [],
    }


def _require_same(run_dir: Path, config: RunConfig, data: dict[str, Any]) -> dict[str, Any]:
    """The contents of a folder's run.json, once it is certain that it holds this very run."""
    info = read_info(run_dir)
    pairs = [
        *differences(to_dict(load_config(run_dir)), to_dict(config)),  # a setting that is newer has its default there
        *differences(info["data"], data, "run data "),
    ]
    if pairs:
        listed = ", ".join(f"{key} ({old} there, {new} now)" for key, old, new in pairs)
        raise UserError(
            f"{run_dir} holds another run; it differs in {listed}. Give another folder with --out, "
            "or --fresh to move that one aside and begin anew."
        )
    return info
