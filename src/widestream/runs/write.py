"""What is written in a run folder besides metrics (runs/metrics.py) and checkpoints (runs/checkpoint.py)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from widestream.data.tokenizer import TOKENIZER_FILE, Tokenizer
from widestream.errors import UserError
from widestream.files import write_atomic, write_json
from widestream.recipe import RunConfig, to_dict
from widestream.runs.folder import CONFIG, INFO, SAMPLES, differences, load_config, read_info


def begin(run_dir: Path, config: RunConfig, info: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Write what a run folder begins with. What makes it a run comes last.

    Args:
        run_dir: the folder; made when it does not exist. It may hold a beginning that was killed.
        config: what is to be trained.
        info: the contents of run.json.
        tokenizer: stays with the run, so that it can be sampled wherever it is taken.

    Raises:
        UserError: the folder holds something else.
    """
    begun = {name + suffix for name in (TOKENIZER_FILE, INFO, CONFIG) for suffix in ("", ".tmp")}
    strangers = [path.name for path in _contents(run_dir) if path.name not in begun]
    if strangers:
        raise UserError(f"{run_dir} is no run folder and holds {strangers[0]}; give another folder with --out.")
    run_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(run_dir)
    write_json(run_dir / INFO, info, indent=2)
    write_atomic(run_dir / CONFIG, yaml.safe_dump(to_dict(config), sort_keys=False).encode())


def require_same_run(run_dir: Path, config: RunConfig, data: dict[str, Any]) -> dict[str, Any]:
    """Make sure that a folder holds the very run that is to be trained.

    Args:
        run_dir: a run's folder.
        config: what is to be trained.
        data: `data` of its run.json.

    Returns:
        The contents of the folder's run.json.

    Raises:
        UserError: it holds another run; names what differs.
    """
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


def move_aside(run_dir: Path) -> Path | None:
    """Rename a run folder to `NAME.old-1`, `NAME.old-2`, ...; nothing is deleted.

    Returns:
        The new place, or None when there was nothing to move.
    """
    if not any(_contents(run_dir)):
        return None
    number = 1
    while (place := run_dir.with_name(f"{run_dir.name}.old-{number}")).exists():
        number += 1
    return run_dir.rename(place)


def add_sample(run_dir: Path, row: dict[str, Any]) -> None:
    """Keep a sampled text."""
    with (run_dir / SAMPLES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def remove_samples(run_dir: Path) -> None:
    """Remove the texts that were kept."""
    (run_dir / SAMPLES).unlink(missing_ok=True)


def _contents(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())
