"""Writing checkpoints, which checkpoint.py describes: begun aside, completed, named; older ones removed."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from widestream.data.manifest import file_sha256
from widestream.errors import UserError
from widestream.files import read_bounded, remove_folder, sync_folder, write_atomic
from widestream.runs.checkpoint import (
    COMPLETE,
    MOMENTS,
    STATE,
    UNFINISHED,
    WEIGHTS,
    folder_name,
    moments_of,
    weights_of,
)
from widestream.runs.folder import CHECKPOINTS, list_checkpoints
from widestream.runs.rows import WRITTEN, Written
from widestream.runs.tensor_files import write_whole


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
    with write_errors(run_dir, step):
        aside = begin(run_dir, step)
        tensors = {WEIGHTS: weights_of(model), MOMENTS: moments_of(model, optimizer)}
        paths = [write_whole(aside, kind, of_kind) for kind, of_kind in tensors.items()]
        final = commit(run_dir, step, {path.name: describe(path) for path in paths}, state, written)
    prune(run_dir, step, keep)
    return final


def begin(run_dir: Path, step: int) -> Path:
    """Make the hidden folder that a checkpoint is written into; what an earlier process left is removed."""
    aside = _aside(run_dir, step)
    aside.parent.mkdir(parents=True, exist_ok=True)
    for leftover in aside.parent.glob(f"{UNFINISHED}*"):
        remove_folder(leftover)
    aside.mkdir()
    return aside


def describe(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, once it is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def commit(
    run_dir: Path, step: int, files: dict[str, dict[str, Any]], state: dict[str, Any], written: Written | None = None
) -> Path:
    """Complete a checkpoint that `begin` began, and give it its name.

    Args:
        run_dir: the run's folder.
        step: optimizer steps done.
        files: those of tensors that were written, with what `describe` says of them.
        state: see `save`.
        written: see `save`.

    Returns:
        The checkpoint's folder.
    """
    aside, final = _aside(run_dir, step), run_dir / CHECKPOINTS / folder_name(step)
    write_atomic(aside / STATE, json.dumps({"step": step, **state}, indent=1).encode())
    own = [aside / STATE]
    if written is not None:
        write_atomic(aside / WRITTEN, json.dumps(asdict(written)).encode())
        own.append(aside / WRITTEN)
    every = files | {path.name: describe(path) for path in own}
    write_atomic(aside / COMPLETE, json.dumps({"files": dict(sorted(every.items()))}, indent=1).encode())
    if os.path.lexists(final):  # damaged and therefore skipped: `latest` would have gone on from it otherwise
        final.rename(final.parent / f"{UNFINISHED}damaged_{final.name}")
    aside.rename(final)
    sync_folder(final.parent)
    return final


def prune(run_dir: Path, step: int, keep: int, best: int = 0) -> None:
    """Remove checkpoints up to a step, all but the newest and the best.

    Args:
        run_dir: the run's folder.
        step: of the newest one, which is complete.
        keep: how many of the newest stay.
        best: how many stay of those whose held-out loss was lowest, where one was measured at their step.
    """
    there = [one for one in list_checkpoints(run_dir) if one[0] <= step]
    good = sorted((loss, number) for number, path in there if (loss := heldout_loss(path)) is not None)
    stay = {number for number, _ in there[-keep:]} | {number for _, number in good[:best]}
    for number, path in there:
        if number not in stay:
            _remove(path)


def heldout_loss(path: Path) -> float | None:
    """Held-out loss at the step of a checkpoint, as its state says it; None where it says nothing."""
    try:
        loss = json.loads(read_bounded(path / STATE))["heldout_loss"]
    except (OSError, UserError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return loss if isinstance(loss, float) else None


@contextlib.contextmanager
def write_errors(run_dir: Path, step: int, remove: bool = True) -> Iterator[None]:
    """Say in one sentence that a save failed, when the disk is at fault.

    Args:
        run_dir: the run's folder.
        step: of the checkpoint.
        remove: what was begun; or other processes are still at it.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as an error of its own
        if remove:
            abandon(run_dir, step)
        raise UserError(
            f"The checkpoint {run_dir / CHECKPOINTS / folder_name(step)} could not be written ({error}); older "
            "checkpoints are untouched. Free some disk space and give the same command again."
        ) from error


def abandon(run_dir: Path, step: int) -> None:
    """Remove what `begin` began."""
    shutil.rmtree(_aside(run_dir, step), ignore_errors=True)


def _aside(run_dir: Path, step: int) -> Path:
    return run_dir / CHECKPOINTS / f"{UNFINISHED}{folder_name(step)}"


def _remove(path: Path) -> None:
    """Remove a checkpoint; killed half-way it leaves a hidden folder, not a damaged checkpoint.

    Of one that was moved to another disk, with a link in its place, the link goes.
    """
    hidden = path.with_name(f"{UNFINISHED}{path.name}")
    path.rename(hidden)
    remove_folder(hidden)
