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
from widestream.machine import choose_precision, describe_machine, matmul_peak
from widestream.model.costs import summarize
from widestream.recipe import RunConfig
from widestream.runs.folder import is_run, load_config, read_info, require_trained
from widestream.runs.identity import require_same_run, told
from widestream.runs.write import begin, remove_done, require_free, write_config, write_info
from widestream.streams import stream_class
from widestream.train.extend import require_length
from widestream.train.parallel import World
from widestream.train.plan import Plan, make_plan, num_steps
from widestream.train.room import require_memory
from widestream.version import __version__, code_fingerprint


def precision_of(config: RunConfig, run_dir: Path, device: torch.device, resume: bool) -> str:
    """`bf16` or `float32`: what a run began with, or what `train.precision` comes to here."""
    began = read_info(run_dir).get("precision") if resume and is_run(run_dir) else None
    return began or choose_precision(config.train.precision, device)


def open_folder(
    run_dir: Path, config: RunConfig, data: dict[str, Any], world: World, precision: str, computed: dict[str, Any]
) -> dict[str, Any]:
    """Begin a run folder, or go on with the one that this very run began.

    Args:
        run_dir: the folder; made when it does not exist. It may hold a beginning that was killed.
        config: what is to be trained.
        data: what `describe_data` says of the tokens.
        world: the processes that take part.
        precision: what a run that begins computes in.
        computed: what computes the stream's exchanges and attention, and what weights it starts from.

    Returns:
        The contents of run.json. Precision and peak are those measured when the run began.

    Raises:
        UserError: the folder belongs to another run, or holds something else; names what differs. Or the run would not
            fit into memory.
    """
    if is_run(run_dir):
        info = read_info(run_dir)
        advice = f"it cannot be gone on with; give another folder with --out, and train.init_from={run_dir}."
        require_trained(run_dir, info, advice)
        require_same_run(run_dir, config, info, data)
        return info
    require_free(run_dir)
    info = _describe(config, data, world, precision) | computed
    require_memory(world.device, config.train, make_plan(config, world.readers), info["summary"])
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
    run_dir: Path,
    config: RunConfig,
    info: dict[str, Any],
    step: int,
    world: World,
    computed: dict[str, Any],
    extend: bool = False,
) -> tuple[float, str | None]:
    """Enter in the folder that a run goes on elsewhere, by other code or with other settings than it came so far.

    Args:
        run_dir: its folder.
        config: the recipe.
        info: the contents of its run.json.
        step: optimizer steps done; with none done, the run begins here.
        world: the processes that take part now.
        computed: what computes exchanges and attention now.
        extend: whether it may go on with another length or schedule where that changes what it is.

    Returns:
        FLOPs per second that a process has at its peak here (see `machine.matmul_peak`), and a line about the settings
        that changed, if any did.

    Raises:
        UserError: the length or the schedule may not change like this; see `require_length`.
    """
    before = load_config(run_dir)
    changes = require_same_run(run_dir, config, info, info["data"])
    asked = require_length(run_dir, before, config, changes, step, extend)
    parts = info.get("resumed", [])
    now = _made_by(config, world) | computed
    last = [info, *parts][-1]
    if step == num_steps(before) == num_steps(config):
        return last[
            "peak_flops_per_s"
        ], f"it is finished already, and stays as it is: {told(changes)}" if changes else None
    elsewhere = any(last.get(key) != value for key, value in now.items())
    peak = matmul_peak(world.device, info["precision"]) if elsewhere else last["peak_flops_per_s"]
    if elsewhere or (changes and step):
        now |= {"peak_flops_per_s": peak, "started": _time()}
        settings = {"settings": {key: list(pair) for key, pair in changes.items()}} if changes else {}
        write_info(run_dir, info | ({"resumed": [*parts, {"step": step} | now | settings]} if step else now))
    if not changes:
        return peak, None
    # In this order: a run that is killed in between comes to the same decisions again.
    if num_steps(before) != num_steps(config):
        remove_done(run_dir)
    write_config(run_dir, config)
    return peak, f"it goes on from step {step:,} with {told(changes)}" + (f"; {asked}" if asked else "")


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


def _describe(config: RunConfig, data: dict[str, Any], world: World, precision: str) -> dict[str, Any]:
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
        "rollbacks": [],
    }
