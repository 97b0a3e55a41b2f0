"""What a measurement leaves behind: a JSON record with machine and versions, and its plots beside it."""

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from widestream.bench.plots import Panel
from widestream.errors import UserError
from widestream.files import read_json, write_json
from widestream.machine import describe_machine
from widestream.report.figures.pictures import write_pictures
from widestream.version import __version__


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where to write. With neither, figures are only printed."""

    json: Path | None = None
    """The record."""
    plot: Path | None = None
    """Stem of the plots STEM-light.svg and STEM-dark.svg; default: the record's path without its ending."""

    @property
    def stem(self) -> Path | None:
        """Stem of the plots, if there are to be any."""
        if self.plot or not self.json:
            return self.plot
        return self.json.with_name(self.json.name.removesuffix(".xz")).with_suffix("")

    def check(self) -> None:
        """Find out before measuring, and not after it, that there is nowhere to write.

        Raises:
            UserError: a folder is missing, or the record's path is one or that of another file.
        """
        for path in filter(None, (self.json, self.stem)):
            if not path.parent.is_dir():
                raise UserError(f"The folder {path.parent} does not exist; make it first, or write elsewhere.")
        if self.json is not None and self.json.is_dir():
            raise UserError(f"{self.json} is a folder; give the name of a file in it, such as {self.json / 'x.json'}.")
        if self.json is not None and self.json.is_file():
            before = read_json(self.json)
            if not isinstance(before, dict) or "settings" not in before:
                raise UserError(f"{self.json} is no record of a measurement, and stays as it is; give another file.")

    def write(self, record: dict[str, Any], panels: Sequence[Panel]) -> list[Path]:
        """Write the record and, of `panels` beside each other, the plots; returns the paths."""
        written = []
        if self.json is not None:
            write_json(self.json, record, indent=1)
            written.append(self.json)
        if self.stem is not None and panels:
            written += write_pictures(self.stem, panels, f"widestream bench {record['bench']}")
        return written


def make_record(bench: str, settings: Any, device: torch.device, **figures: Any) -> dict[str, Any]:
    """The contents of a record.

    Args:
        bench: which measurement.
        settings: a dataclass of what was asked for.
        device: where it was measured.
        figures: what was found; seconds are raw, by candidate and round.
    """
    return {
        "bench": bench,
        "settings": dataclasses.asdict(settings),
        "machine": describe_machine(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "widestream": __version__,
        },
        **figures,
    }


def require_counts(settings: Any, **least: int) -> None:
    """Refuse settings below their least value.

    Raises:
        UserError: names the first one.
    """
    for name, lowest in least.items():
        values = getattr(settings, name)
        for value in values if isinstance(values, tuple) else (values,):
            if value < lowest:
                option = "--" + name.removeprefix("num_").replace("_", "-")
                raise UserError(f"{option} is {value}; it must be at least {lowest}.")
