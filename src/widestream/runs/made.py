"""Run folders that were made and not trained: weights of a checkpoint of transformers, or of a run, in another form.

    config.yaml, run.json, tokenizer.json, checkpoints/step_00000000

There is no metrics.jsonl, and run.json has an entry `made` that says of what the run was made. Such a run is sampled,
evaluated, opened and started from (`train.init_from`) like any other; it cannot be gone on with or compared.
"""

import contextlib
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from widestream.data.manifest import TokenizerInfo
from widestream.data.tokenizer_base import Tokenizer
from widestream.errors import UserError
from widestream.files import disk_errors, make_folder, sync_folder
from widestream.model.costs import summarize
from widestream.model.decoder import Decoder
from widestream.recipe import RunConfig
from widestream.runs.checkpoint_writer import save
from widestream.runs.folder import MADE
from widestream.runs.identity import own_settings
from widestream.runs.write import begin
from widestream.version import __version__, code_fingerprint


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """Of what a run was made."""

    by: str
    """The command: `import hf`, `convert` or `widen`."""
    source: str
    """Folder or file that its weights were taken from."""
    sha256: str
    """Hash of these weights: of the file, or over the hashes of the files."""
    step: int | None = None
    """Optimizer steps that they had been trained for, where they are a run's."""
    settings: dict[str, Any]
    """What else the command was told."""


def require_absent(to: Path) -> None:
    """Make sure that nothing lies where a run is to be made.

    Raises:
        UserError: something does, or nothing can: it is below a file, or its name is too long.
    """
    with disk_errors(to, "give the same command again"), contextlib.suppress(FileNotFoundError):
        to.lstat()
        raise UserError(f"{to} exists; give the name of a new folder with --to.")


@contextlib.contextmanager
def made_folder(to: Path) -> Iterator[Path]:
    """A folder beside `to` that becomes `to` when all is written; if anything fails, all that was made is removed.

    Raises:
        UserError: `to` exists or cannot lie there, or the disk is full or cannot be written.
    """
    require_absent(to)
    around = [folder for folder in to.parents if not os.path.lexists(folder)]
    aside = to.with_name(f".{to.name}.{secrets.token_hex(4)}.unfinished")
    with disk_errors(to.parent, "give the same command again"):
        try:
            make_folder(aside, to)
            yield aside
            require_absent(to)
            aside.rename(to)
            sync_folder(to.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            for folder in around:  # the innermost first
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise


def known_of(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What run.json says under `data` of a run that has seen no data."""
    if tokenizer is None:
        return {}
    info = TokenizerInfo(
        kind=tokenizer.kind,
        sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        boundary_id=tokenizer.boundary_id,
    )
    return {"tokenizer_sha256": tokenizer.sha256, "tokenizer": asdict(info)}


def write_made(
    to: Path,
    config: RunConfig,
    model: Decoder,
    tokenizer: Tokenizer | None,
    made: Made,
    data: dict[str, Any] | None = None,
) -> None:
    """Write a run: the folder is there whole, or not at all.

    Args:
        to: the run's folder; must not exist.
        config: its recipe.
        model: its weights.
        tokenizer: for sampling and evaluating it; None: it has none.
        made: of what.
        data: what run.json says of the tokenizer, where another run has said it already.

    Raises:
        UserError: see `made_folder`.
    """
    state = {"wall_s": 0.0, "settings": own_settings(config), "data_fingerprint": None}
    with made_folder(to) as folder:
        save(folder, 0, model, None, state, keep=1)
        begin(folder, config, _describe(config, known_of(tokenizer) if data is None else data, made), tokenizer)


def _describe(config: RunConfig, data: dict[str, Any], made: Made) -> dict[str, Any]:
    return {
        "widestream": __version__,
        "code": code_fingerprint(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "precision": "float32",
        "data": data,
        "summary": summarize(config.model).to_dict(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        MADE: asdict(made),
    }
