"""Writing a run folder: how it begins, how it ends, how it makes room. Rows and checkpoints have files of their own.

The names are those of folder.py; metrics.py appends the rows, checkpoint_writer.py writes the weights.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from widestream.data.tokenizer import TOKENIZER_FILE, Tokenizer
from widestream.errors import UserError
from widestream.files import leftover, make_folder, write_atomic, write_json
from widestream.recipe import RunConfig, to_dict
from widestream.runs.folder import CONFIG, DONE, HASHED, INFO, sealed


def require_free(run_dir: Path) -> None:
    """Make sure that a run may begin in a folder: there is none, it is empty, or a beginning in it was killed.

    Raises:
        UserError: it holds something else.
    """
    begun = (TOKENIZER_FILE, INFO, CONFIG)
    strangers = [
        path.name for path in _contents(run_dir) if not any(path.name == name or leftover(path, name) for name in begun)
    ]
    if strangers:
        raise UserError(f"{run_dir} is no run folder and holds {strangers[0]}; give another folder with --out.")


def begin(run_dir: Path, config: RunConfig, info: dict[str, Any], tokenizer: Tokenizer | None) -> None:
    """Write what is known when a run begins; the recipe comes last, for it makes the folder a run.

    Args:
        run_dir: the folder; made when it does not exist.
        config: the recipe.
        info: the contents of run.json.
        tokenizer: stays with the run, so that it can be sampled wherever it is taken; None: it has none.

    Raises:
        UserError: the folder cannot be made.
    """
    make_folder(run_dir)
    if tokenizer is not None:
        tokenizer.save(run_dir)
    write_info(run_dir, info)
    write_config(run_dir, config)


def write_config(run_dir: Path, config: RunConfig) -> None:
    """Write the recipe that a run begins or goes on with."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False).encode()
    write_atomic(run_dir / CONFIG, text + f"{HASHED}{hashlib.sha256(text).hexdigest()}\n".encode())


def write_info(run_dir: Path, info: dict[str, Any]) -> None:
    """Write run.json."""
    write_json(run_dir / INFO, sealed(info), indent=2)


def write_done(run_dir: Path, result: dict[str, Any]) -> None:
    """Write how a run ended, once it has."""
    write_json(run_dir / DONE, sealed(result), indent=2)


def remove_done(run_dir: Path) -> None:
    """Take back that a run has ended: it is to go on for longer."""
    (run_dir / DONE).unlink(missing_ok=True)


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


def _contents(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())
