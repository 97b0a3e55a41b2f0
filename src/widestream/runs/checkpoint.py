"""Checkpoints that are complete or absent, and that are never loaded without having been verified.

A checkpoint is a folder `checkpoints/step_00000100/` of

    model.safetensors       weights by parameter name: all that is needed to share a model
    optimizer.safetensors   `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME` for every parameter that AdamW updates,
                            `momentum_buffer/NAME` for every one that Muon does
    state.json              whatever else the run needs to go on
    metrics.json            what metrics.jsonl held when it was made: its size and SHA-256
    complete.json           size and SHA-256 of the files above, written last

It is written beside its final place under a hidden name, flushed to the disk, and renamed. A process killed at any
moment leaves the older checkpoints as they were and at most a hidden folder, which the next save removes.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from widestream.data.manifest import file_sha256
from widestream.errors import UserError
from widestream.files import read_bounded, sync_folder, write_atomic
from widestream.runs.folder import CHECKPOINTS, list_checkpoints, require_regular
from widestream.runs.rows import WRITTEN, Written, written_at

MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
COMPLETE = "complete.json"
UNFINISHED = ".unfinished_"
"""What the names of folders begin with that are being written or removed."""

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""What safetensors calls the types that weights and moments have."""

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


def save(
    run_dir: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    state: dict[str, Any],
    keep: int,
    written: Written | None = None,
) -> Path:
    """Write a checkpoint, then remove all but the newest `keep`.

    Args:
        run_dir: the run's folder.
        step: optimizer steps done.
        model: its weights are saved.
        optimizer: its moments are saved; None: there are none, for nothing was trained.
        state: anything JSON can hold; `step` is added.
        keep: number of checkpoints to keep, this one included.
        written: what metrics.jsonl holds, if there is one.

    Returns:
        The new checkpoint's folder.

    Raises:
        UserError: the disk is full or cannot be written; older checkpoints are as they were.
    """
    return write(run_dir, step, weights_of(model), moments_of(model, optimizer), state, keep, written)


def write(
    run_dir: Path,
    step: int,
    weights: dict[str, torch.Tensor],
    moments: dict[str, torch.Tensor],
    state: dict[str, Any],
    keep: int,
    written: Written | None = None,
) -> Path:
    """The same of tensors by the names that `weights_of` and `moments_of` give them.

    Args:
        run_dir: the run's folder.
        step: optimizer steps done.
        weights: parameters and buffers, whole.
        moments: of the optimizer, whole.
        state: see `save`.
        keep: see `save`.
        written: see `save`.

    Returns:
        The new checkpoint's folder.

    Raises:
        UserError: the disk is full or cannot be written; older checkpoints are as they were.
    """
    final = run_dir / CHECKPOINTS / folder_name(step)
    folder = final.parent
    aside = folder / f"{UNFINISHED}{final.name}"
    with _write_errors(final, aside):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover)
        aside.mkdir()
        save_file(weights, aside / MODEL, metadata={"format": "pt"})
        save_file(moments, aside / OPTIMIZER, metadata={"format": "pt"})
        write_atomic(aside / STATE, json.dumps({"step": step, **state}, indent=1).encode())
        if written is not None:
            write_atomic(aside / WRITTEN, json.dumps(asdict(written)).encode())
        files = {path.name: _describe(path) for path in sorted(aside.iterdir())}
        write_atomic(aside / COMPLETE, json.dumps({"files": files}, indent=1).encode())
        if final.exists():  # one that was damaged and therefore skipped: `latest` would have gone on from it otherwise
            final.rename(folder / f"{UNFINISHED}damaged_{final.name}")
        aside.rename(final)
        sync_folder(folder)
    for old in [path for number, path in list_checkpoints(run_dir) if number <= step][:-keep]:
        _remove(old)
    return final


def latest(run_dir: Path) -> Checkpoint | None:
    """Find the newest checkpoint that is complete and unaltered.

    Every newer one that is not is named, with what is wrong with it, in a warning (on standard error by default).

    Returns:
        None when there is no checkpoint.

    Raises:
        UserError: there are checkpoints, but all of them are damaged.
    """
    there = list_checkpoints(run_dir)
    for number, path in reversed(there):
        if (checkpoint := _open(number, path)) is not None:
            return checkpoint
    if any(path.exists() for _, path in there):
        raise UserError(
            f"Every checkpoint in {there[0][1].parent} is damaged; put back a good copy of one, "
            "or train again from the start with --fresh."
        )
    return latest(run_dir) if there else None


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


def recorded_hash(path: Path) -> str | None:
    """SHA-256 of a checkpoint's weights as it says it, without reading them; None where it says nothing."""
    try:
        require_regular(path / COMPLETE)
        return str(json.loads(read_bounded(path / COMPLETE))["files"][MODEL]["sha256"])
    except (OSError, UserError, ValueError, KeyError, TypeError, RecursionError):
        return None


Put = Callable[[torch.Tensor, torch.Tensor], object]
"""Copies the second tensor's values into the first, of which a process may hold a part."""


def load_weights(path: Path, model: nn.Module, put: Put = torch.Tensor.copy_) -> None:
    """Load weights into a model of the same shape.

    Args:
        path: a .safetensors file, or a checkpoint's folder.
        model: takes the values; its device and dtypes stay.
        put: copies values into a parameter.

    Raises:
        UserError: the file is missing or damaged, or holds another model; names the first difference.
    """
    path = path / MODEL if path.is_dir() else path
    _copy_into(path, weights_of(model), put)


def load_optimizer(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, put: Put = torch.Tensor.copy_
) -> None:
    """Load the moments of an optimizer that `build_optimizer` made for `model`; `put` as in `load_weights`.

    Raises:
        UserError: the file is missing or damaged, or belongs to another model; names the first difference.
    """
    _copy_into(checkpoint / OPTIMIZER, moments_of(model, optimizer), put)


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


def _copy_into(path: Path, tensors: dict[str, torch.Tensor], put: Put) -> None:
    """Copy a file's tensors into `tensors`, whose names, shapes and types must be the same."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names | tensors.keys()):
                if name not in names:
                    raise UserError(f"{path} is of another model: it lacks {name}.")
                if name not in tensors:
                    raise UserError(f"{path} is of another model: it has {name}, which this one lacks.")
                there = file.get_slice(name)
                shape, wanted = list(there.get_shape()), list(tensors[name].shape)
                if shape != wanted:
                    raise UserError(f"{path} is of another model: {name} has shape {shape} there and {wanted} here.")
                if there.get_dtype() != (kind := DTYPES.get(tensors[name].dtype)):
                    raise UserError(
                        f"{path} holds numbers of another kind: {name} is {there.get_dtype()} there and {kind} here; "
                        "convert the file, or use another one."
                    )
            for name, tensor in tensors.items():
                put(tensor, file.get_tensor(name))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give a checkpoint's folder or a .safetensors file.") from None
    except SafetensorError as error:
        raise UserError(f"{path} is no readable safetensors file ({error}); it is damaged, use another one.") from None


@contextlib.contextmanager
def _write_errors(final: Path, aside: Path) -> Iterator[None]:
    """Remove what was begun when a save fails, and say so in one sentence when the disk is at fault."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"The checkpoint {final} could not be written ({error}); older checkpoints are untouched. "
            "Free some disk space and give the same command again."
        ) from error


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _open(number: int, path: Path) -> Checkpoint | None:
    """A checkpoint if it is complete and unaltered; else a warning says what is wrong with it."""
    fault = "it is gone"
    with contextlib.suppress(FileNotFoundError):
        fault = _fault(path)
        if fault is None:
            return _read(number, path)
    if path.exists():  # a process that trains removes old ones
        log.warning("Skipping checkpoint %s: %s.", path, fault)
    return None


def _read(number: int, path: Path) -> Checkpoint:
    return Checkpoint(path, number, json.loads(read_bounded(path / STATE)), written_at(path))


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint; None when it is as it was written."""
    try:
        require_regular(path / COMPLETE)
        described = json.loads(read_bounded(path / COMPLETE))["files"]
        names = [MODEL, OPTIMIZER, STATE, *([WRITTEN] if WRITTEN in described else [])]  # older ones have none
        expected = [(path / name, described[name]["bytes"], described[name]["sha256"]) for name in names]
    except FileNotFoundError:
        return f"{COMPLETE} is missing, so it was never finished"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"{COMPLETE} is damaged"
    for file, size, sha256 in expected:
        if not file.is_file():
            return f"{file.name} is missing"
        if file.stat().st_size != size:
            return f"{file.name} has {file.stat().st_size} bytes instead of {size}"
        if file_sha256(file) != sha256:
            return f"{file.name} was altered (its SHA-256 is not the recorded one)"
    step = json.loads(read_bounded(path / STATE))["step"]
    return None if path.name == folder_name(step) else f"it is the checkpoint of step {step} (its {STATE} says so)"


def _remove(path: Path) -> None:
    """Remove a checkpoint; killed half-way it leaves a hidden folder, not a damaged checkpoint."""
    hidden = path.with_name(f"{UNFINISHED}{path.name}")
    path.rename(hidden)
    shutil.rmtree(hidden)
