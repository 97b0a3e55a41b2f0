"""The run folder: the names of what lies in it, and reading it. docs/reference/run-folder.md says what is in each file.

    config.yaml         the resolved recipe
    run.json            machine, versions, data, costs: what is known when the run begins
    tokenizer.json      the tokenizer, unless that is bytes
    metrics.jsonl       a row for every logged step and every evaluation
    checkpoints/        step_N/, see runs/checkpoint.py
    samples.jsonl       sampled texts, if any were kept
    done.json           how it ended, once it has
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from widestream.errors import UserError
from widestream.recipe import RunConfig, from_dict

CONFIG = "config.yaml"
INFO = "run.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
SAMPLES = "samples.jsonl"
DONE = "done.json"
NONFINITE = "nonfinite_step_"
"""What the file begins with in which a run leaves a batch whose loss was not finite."""


def read_done(run_dir: Path) -> dict[str, Any] | None:
    """The contents of done.json; None while there is none, or none that can be read."""
    try:
        done = json.loads((run_dir / DONE).read_bytes())
    except (OSError, ValueError):
        return None
    return done if isinstance(done, dict) else None


def finished(run_dir: Path, steps: int) -> bool:
    """Whether a run has ended well, and with this many steps."""
    done = read_done(run_dir)
    return done is not None and done.get("step") == steps


def load_config(run_dir: Path) -> RunConfig:
    """The configuration of a run.

    Raises:
        UserError: it is no run folder, or its config.yaml is damaged.
    """
    return from_dict(_read_config(run_dir))


def load_info(run_dir: Path) -> dict[str, Any]:
    """The contents of a run's run.json.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = run_dir / INFO
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise UserError(f"{path} is missing or damaged; train the run again with --fresh.") from None


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) wherever two nested mappings differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*new, *(name for name in old if name not in new)]:
            yield from differences(
                old.get(name), new.get(name), f"{key}.{name}" if key[-1:].strip() else f"{key}{name}"
            )
    elif old != new:
        yield key, old, new


def _read_config(run_dir: Path) -> dict[str, Any]:
    path = run_dir / CONFIG
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run_dir} is no run folder: it has no {CONFIG}; give a folder that training wrote.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged; put a good copy back, or train again with --fresh.")
    return values
