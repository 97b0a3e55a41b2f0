"""The run folder: where everything lies in it, and reading it. docs/reference/run-folder.md says what is in each file.

    config.yaml         the resolved recipe; its presence makes a folder a run
    run.json            machine, versions, data, costs: what is known when the run begins
    tokenizer.json      the tokenizer, unless that is bytes
    metrics.jsonl       a row for every logged step and every evaluation
    checkpoints/        step_N/, see runs/checkpoint.py
    samples.jsonl       sampled texts, if any were kept
    done.json           how it ended, once it has
    nonfinite_step_N.safetensors    the batch at which a run stopped, because its loss was not finite
    tensorboard/        events for TensorBoard, if they were asked for
    trackers.json       what a run goes by in trackers, if one was asked for; wandb/: W&B's own files

Beside it, where a pool of processes carries out runs (runs/pool.py): NAME.log, what the run's process printed, and
NAME.claim, which says that a pool is at it. NAME.old-1 is a run that `--fresh` moved aside.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from widestream.errors import UserError
from widestream.files import IMPOSSIBLE, read_bounded
from widestream.recipe import RunConfig, from_dict
from widestream.recipe.yaml_text import LARGEST, parse_value

CONFIG = "config.yaml"
INFO = "run.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
SAMPLES = "samples.jsonl"
DONE = "done.json"
NONFINITE = "nonfinite_step_{}.safetensors"
BOARD = "tensorboard"
TRACKERS = "trackers.json"
MADE = "made"
"""Key of run.json of a run that was made and not trained (runs/made.py): by what, and of what."""
REPORTED = (CONFIG, INFO, METRICS, DONE)
"""What a report reads and what traces its numbers: all that is worth keeping of a run besides its weights."""

LARGEST_CONFIG = LARGEST + (64 << 10)
"""Bytes of config.yaml: a recipe's, and the defaults."""
HASHED = "# SHA-256 of the lines above: "
"""What the last line of config.yaml begins with; older runs have none."""
SEAL = "sha256"
"""Key of run.json and done.json: the SHA-256 of all that stands beside it, as JSON with sorted keys."""

TAIL = 1 << 16
"""Bytes at the end of metrics.jsonl in which its last whole row is looked for."""


def is_run(path: Path) -> bool:
    """Whether a folder is a run's."""
    return (path / CONFIG).is_file()


def first_seed(arm: Path) -> Path:
    """Where the first run of an arm lies whose study names its runs by arm and seed."""
    return arm.with_name(f"{arm.name}-seed0")


def list_checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """Steps and folders of all checkpoints, oldest first, whatever their state."""
    folder = run_dir / CHECKPOINTS
    if not folder.is_dir():
        return []
    matches = ((re.fullmatch(r"step_(\d+)", path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def claim_file(run_dir: Path) -> Path:
    """What says that a pool is at the run: beside the folder."""
    return run_dir.with_name(f"{run_dir.name}.claim")


def is_aside(path: Path) -> bool:
    """Whether a folder was moved aside, where a run began anew in its place."""
    return re.search(r"\.old-\d+$", path.name) is not None


def reported_files(run_dir: Path) -> list[Path]:
    """Those of `REPORTED` that are there."""
    return [run_dir / name for name in REPORTED if (run_dir / name).is_file()]


def read_config(run_dir: Path) -> dict[str, Any]:
    """The contents of config.yaml, as they are.

    Raises:
        UserError: it is no run folder, or its config.yaml is damaged or was altered.
    """
    path = run_dir / CONFIG
    try:
        require_regular(path)
        text, hashed, sha256 = read_bounded(path, LARGEST_CONFIG).decode().rpartition(HASHED)
        if hashed and sha256.strip() != hashlib.sha256(text.encode()).hexdigest():
            raise damaged(path)
        values = json.loads(json.dumps(parse_value(text if hashed else sha256)))  # numbers that are just that
    except OSError as error:
        if error.errno not in (errno.ENOENT, *IMPOSSIBLE):
            raise damaged(path) from None
        raise UserError(f"{run_dir} is no run folder: it has no {CONFIG}; give a folder that training wrote.") from None
    except (TypeError, ValueError):
        raise damaged(path) from None
    if not isinstance(values, dict):
        raise damaged(path)
    return values


def load_config(run_dir: Path) -> RunConfig:
    """The configuration of a run.

    Raises:
        UserError: as `read_config`, or it holds a setting that this version does not know.
    """
    return from_dict(read_config(run_dir))


def read_info(run_dir: Path) -> dict[str, Any]:
    """The contents of run.json.

    Raises:
        UserError: the file is missing, damaged or altered, or lacks `data` or `summary`.
    """
    path = run_dir / INFO
    require_regular(path)
    try:
        info = json.loads(read_bounded(path))
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, ValueError, RecursionError):
        raise damaged(path) from None
    if not _as_sealed(info) or not all(isinstance(info.get(part), dict) for part in ("data", "summary")):
        raise damaged(path)
    return info


def require_trained(run_dir: Path, info: dict[str, Any], why: str) -> None:
    """Make sure that a run came of training.

    Args:
        run_dir: its folder.
        info: its run.json.
        why: what it would be needed for, and what to do, as the end of the sentence.

    Raises:
        UserError: it was made from other weights (runs/made.py).
    """
    if isinstance(made := info.get(MADE), dict):
        raise UserError(f"{run_dir} was made by `widestream {made.get('by')}` and not trained: {why}")


def read_done(run_dir: Path) -> dict[str, Any] | None:
    """The contents of done.json; None while there is none, or none that can be read."""
    try:
        require_regular(run_dir / DONE)
        done = json.loads(read_bounded(run_dir / DONE))
    except (OSError, ValueError, RecursionError):
        return None
    return done if _as_sealed(done) else None


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """A mapping with the hash of its values, by which `read_info` and `read_done` know that none was altered."""
    return values | {SEAL: _digest(values)}


def _as_sealed(values: Any) -> bool:
    """Whether a value is a mapping as it was sealed, whose seal is taken off; those of older runs have none."""
    return isinstance(values, dict) and (SEAL not in values or values.pop(SEAL) == _digest(values))


def _digest(values: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(values))  # with keys as they are read again
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def finished(run_dir: Path, steps: int) -> bool:
    """Whether a run has ended well, and with this many steps."""
    done = read_done(run_dir)
    return done is not None and done.get("step") == steps


def steps_done(run_dir: Path) -> int:
    """Optimizer steps so far, by the last whole line of metrics.jsonl; quick, so that it can be asked often."""
    with (
        contextlib.suppress(OSError, ValueError, KeyError, IndexError, TypeError, OverflowError),
        (run_dir / METRICS).open("rb") as file,
    ):
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        return int(json.loads(file.read().split(b"\n")[-2])["step"])
    return 0


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) wherever two nested mappings differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*new, *(name for name in old if name not in new)]:
            yield from differences(
                old.get(name), new.get(name), f"{key}.{name}" if key[-1:].strip() else f"{key}{name}"
            )
    elif old != new:
        yield key, old, new


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def require_regular(path: Path) -> None:
    """Make sure that a path is a file or nothing: opening a folder fails, and opening a pipe waits for ever.

    Raises:
        UserError: it is something else.
    """
    if os.path.lexists(path) and not path.is_file():
        raise damaged(path)


def missing(path: Path) -> UserError:
    """What to say of a file that a run should have."""
    return UserError(f"{path} is missing; leave the run out, or train it again with --fresh.")


def damaged(path: Path) -> UserError:
    """What to say of a file that does not hold what it should."""
    return UserError(f"{path} is damaged; put a good copy back, leave the run out, or train it again with --fresh.")
