"""What is to be known of runs that a study takes as they are."""

from collections.abc import Sequence
from pathlib import Path

import torch

from widestream.runs.folder import load_config, read_info
from widestream.runs.pool import Job
from widestream.train.begin import code_of


def made_otherwise(jobs: Sequence[Job]) -> str | None:
    """A sentence on finished runs that were made by other code or another PyTorch than is here; None: there are none.

    Raises:
        UserError: the run.json of one cannot be read.
    """
    done = {job.folder: job for job in jobs if job.done}
    others = [folder for folder in done if _maker(folder) != (code_of(load_config(folder)), torch.__version__)]
    if not others:
        return None
    return (
        f"{len(others)} of {len(done)} runs that are there already were made by other code or another PyTorch than is "
        f"here now, and are taken as they are (run.json: code, torch); move them away to train them anew: {others[0]}"
        + (", ..." if len(others) > 1 else "")
    )


def _maker(folder: Path) -> tuple[str | None, str | None]:
    info = read_info(folder)
    last = [info, *info.get("resumed", [])][-1]
    return last.get("code"), last.get("torch")
