"""Checkpoints that are complete or absent, and that are never loaded without having been verified.

A checkpoint is a folder `checkpoints/step_00000100/` of

    model.safetensors       weights by parameter name: all that is needed to share a model
    optimizer.safetensors   `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME` for every parameter that AdamW updates,
                            `momentum_buffer/NAME` for every one that Muon does
    state.json              whatever else the run needs to go on
    metrics.json            what metrics.jsonl held when it was made: its size and SHA-256
    complete.json           size and SHA-256 of the files above, written last

Processes that share weights out write their shares, `model-00001-of-00004.safetensors` and so on (tensor_files.py).

It is written beside its final place under a hidden name, flushed to the disk, and renamed. A process killed at any
moment leaves the older checkpoints as they were and at most a hidden folder, which the next save removes.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from widestream.data.manifest import file_sha256
from widestream.errors import UserError
from widestream.files import read_bounded
from widestream.runs.folder import list_checkpoints, require_regular
from widestream.runs.rows import WRITTEN, Written, written_at
from widestream.runs.tensor_files import PUT_WHOLE, Put, copy_into, files_of, whole_name

WEIGHTS, MOMENTS = "model", "optimizer"
"""What files of tensors begin with."""
STATE = "state.json"
COMPLETE = "complete.json"
UNFINISHED = ".unfinished_"
"""What the names of folders begin with that are being written or removed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was found complete and unaltered."""

    path: Path
    """Its folder."""
    step: int
    """Optimizer steps done."""
    state: dict[str, Any]
    """Contents of state.json."""
    written: Written | None
    """What metrics.jsonl held when it was made; older ones do not say."""


Expected = tuple[Path, int, str]
"""A file, its size and its SHA-256."""


def first_fault(files: Sequence[Expected]) -> str | None:
    """What is wrong with the first file that is not as it should be."""
    for file, size, sha256 in files:
        if not file.is_file():
            return f"{file.name} is missing"
        if file.stat().st_size != size:
            return f"{file.name} has {file.stat().st_size} bytes instead of {size}"
        if file_sha256(file) != sha256:
            return f"{file.name} was altered (its SHA-256 is not the recorded one)"
    return None


def latest(run_dir: Path, check: Callable[[Sequence[Expected]], str | None] = first_fault) -> Checkpoint | None:
    """Find the newest checkpoint that is complete and unaltered.

    Every newer one that is not is named, with what is wrong with it, in a warning (on standard error by default).

    Args:
        run_dir: the run's folder.
        check: reads files through; processes may share that.

    Returns:
        None when there is no checkpoint.

    Raises:
        UserError: there are checkpoints, but all of them are damaged.
    """
    there = list_checkpoints(run_dir)
    for number, path in reversed(there):
        if (checkpoint := _open(number, path, check)) is not None:
            return checkpoint
    if any(os.path.lexists(path) for _, path in there):
        raise UserError(
            f"Every checkpoint in {there[0][1].parent} is damaged; put back a good copy of one, "
            "or train again from the start with --fresh."
        )
    return latest(run_dir, check) if there else None


def complete(run_dir: Path) -> list[Checkpoint]:
    """All checkpoints that are complete and unaltered, oldest first; every other one is named in a warning."""
    opened = (_open(number, path) for number, path in list_checkpoints(run_dir))
    return [checkpoint for checkpoint in opened if checkpoint is not None]


def at_step(run_dir: Path, step: int) -> Checkpoint:
    """The checkpoint after so many optimizer steps.

    Raises:
        UserError: there is none, or it is damaged; names those that are there.
    """
    there = dict(list_checkpoints(run_dir))
    fault = _fault(there[step]) if step in there else "it does not exist"
    if fault is None:
        return _read(step, there[step])
    others = ", ".join(str(number) for number in there if number != step) or "none"
    raise UserError(f"The checkpoint of step {step} in {run_dir} cannot be used: {fault}; others there: {others}.")


def _names(path: Path) -> list[str]:
    """Files that a checkpoint says it has; of a bare folder, those that are there."""
    with contextlib.suppress(OSError, UserError, ValueError, KeyError, TypeError, RecursionError):
        require_regular(path / COMPLETE)
        names = list(json.loads(read_bounded(path / COMPLETE))["files"])
        if all(isinstance(name, str) for name in names):
            return names
    return [file.name for file in path.iterdir()]


def recorded_hash(path: Path) -> str | None:
    """SHA-256 of a checkpoint's weights as it says it, without reading them; None where it says nothing.

    Of weights in parts it is that of their hashes, one after the other.
    """
    try:
        require_regular(path / COMPLETE)
        described = json.loads(read_bounded(path / COMPLETE))["files"]
        hashes = [str(described[name]["sha256"]) for name in files_of(WEIGHTS, list(described))]
    except (OSError, UserError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if len(hashes) > 1:
        return hashlib.sha256("".join(hashes).encode()).hexdigest()
    return hashes[0] if hashes else None


def load_weights(path: Path, model: nn.Module, put: Put = PUT_WHOLE) -> None:
    """Load weights into a model of the same shape.

    Args:
        path: a .safetensors file, or a checkpoint's folder.
        model: takes the values; its device and dtypes stay.
        put: copies values into parameters, of which a process may hold parts.

    Raises:
        UserError: the file is missing or damaged, or holds another model; names the first difference.
    """
    _load(path, WEIGHTS, weights_of(model), put)


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, put: Put = PUT_WHOLE) -> None:
    """Load the moments of an optimizer that `build_optimizer` made for `model`; `put` as in `load_weights`.

    Raises:
        UserError: the file is missing or damaged, or belongs to another model; names the first difference.
    """
    _load(checkpoint, MOMENTS, moments_of(model, optimizer), put)


def _load(path: Path, kind: str, tensors: dict[str, torch.Tensor], put: Put) -> None:
    if not path.is_dir():
        copy_into(path, [path], tensors, put)
        return
    there = files_of(kind, _names(path))  # a file that it does not name is none of it
    named = path / whole_name(kind) if len(there) < 2 else path
    copy_into(named, [path / name for name in there] or [named], tensors, put)


def folder_name(step: int) -> str:
    """Of the checkpoint after so many optimizer steps."""
    return f"step_{step:08d}"


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name, each tensor once."""
    tensors = {id(tensor): (name, tensor) for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    return {name: tensor.detach() for name, tensor in tensors.values()}


def moments_of(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, torch.Tensor]:
    """Moments by kind and parameter; none of no optimizer."""
    return (
        {}
        if optimizer is None
        else {
            f"{kind}/{name}": moment
            for name, parameter in model.named_parameters()
            for kind, moment in optimizer.state[parameter].items()
        }
    )


def _open(
    number: int, path: Path, check: Callable[[Sequence[Expected]], str | None] = first_fault
) -> Checkpoint | None:
    """A checkpoint if it is complete and unaltered; else a warning says what is wrong with it."""
    fault = "it is gone"
    with contextlib.suppress(FileNotFoundError):
        fault = _fault(path, check)
        if fault is None:
            return _read(number, path)
    if os.path.lexists(path):  # a process that trains removes old ones
        log.warning("Skipping checkpoint %s: %s.", path, fault)
    return None


def _read(number: int, path: Path) -> Checkpoint:
    return Checkpoint(path, number, _read_state(path), written_at(path))


def _fault(path: Path, check: Callable[[Sequence[Expected]], str | None] = first_fault) -> str | None:
    """What is wrong with a checkpoint; None when it is as it was written."""
    fault, expected = expected_files(path)
    fault = fault or check(expected)
    if fault is not None:
        return fault
    if any(file.name == WRITTEN for file, _, _ in expected) and written_at(path) is None:
        return f"{WRITTEN} is damaged"
    try:
        step = _read_state(path)["step"]
    except (ValueError, KeyError, UserError, RecursionError):
        return f"{STATE} is damaged"
    return None if path.name == folder_name(step) else f"it is the checkpoint of step {step} (its {STATE} says so)"


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold, which not every whole one is."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_evaluation(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict) and "loss" in value and (value["loss"] is None or _is_number(value["loss"]))
    )


def _is_whole(value: Any) -> bool:
    return type(value) is int and value >= 0


OF_STATE: dict[str, Callable[[Any], bool]] = {
    "step": _is_whole,
    "skipped": _is_whole,
    "wall_s": lambda value: _is_number(value) and value >= 0,
    "heldout": _is_evaluation,
    "selection": _is_evaluation,
    "losses": lambda value: isinstance(value, list) and all(map(_is_number, value)),
    "settings": lambda value: isinstance(value, dict),
    "model": lambda value: isinstance(value, dict),
}
"""What values are right for the keys of a state that a run goes on with; older ones lack some."""


def _read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its run.

    Raises:
        OSError: it cannot be read.
        ValueError, RecursionError, UserError: it is none that a run has written.
    """
    state = json.loads(read_bounded(path / STATE))
    if not isinstance(state, dict) or any(key in state and not right(state[key]) for key, right in OF_STATE.items()):
        raise ValueError
    return state


def expected_files(path: Path) -> tuple[str | None, list[Expected]]:
    """The files that a checkpoint says it has; or what is wrong with what it says."""
    try:
        require_regular(path / COMPLETE)
        described = json.loads(read_bounded(path / COMPLETE))["files"]
        tensors = [files_of(kind, list(described)) for kind in (WEIGHTS, MOMENTS)]
        names = [*itertools.chain(*tensors), STATE, *([WRITTEN] if WRITTEN in described else [])]  # older ones: none
        expected = [(path / name, described[name]["bytes"], described[name]["sha256"]) for name in names]
    except FileNotFoundError:
        return f"{COMPLETE} is missing, so it was never finished", []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{COMPLETE} is damaged", []
    if not all(tensors):
        return f"{COMPLETE} names no whole set of files", []
    return None, expected
