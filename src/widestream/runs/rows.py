"""JSON lines of a run folder: read a piece at a time, checked row by row, held to what a checkpoint says of them."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from widestream.errors import UserError
from widestream.files import read_bounded
from widestream.runs.folder import METRICS, SAMPLES, list_checkpoints, missing, require_regular

WRITTEN = "metrics.json"
"""File of a checkpoint that says what metrics.jsonl held when it was made."""
PIECE = 1 << 20
"""Bytes that are read and parsed at once: a good deal faster than line by line, and a bound for memory."""
LONGEST = 16 << 20
"""Bytes of a row at most."""


@dataclass(frozen=True, slots=True)
class Written:
    """The rows of metrics.jsonl up to some step."""

    bytes: int
    """Their length."""
    sha256: str
    """Their hash."""

    def opens(self, path: Path) -> bool:
        """Whether a file begins with exactly these rows."""
        return path.stat().st_size >= self.bytes and hash_up_to(path, self.bytes).hexdigest() == self.sha256


class Rows:
    """The rows of a JSON-lines file, read anew by every iteration.

    Args:
        path: the file.
        metrics: it is metrics.jsonl: rows have a kind and a step, stand in the order of their steps, and occur once.

    Raises:
        UserError: while iterating: the file is missing or damaged; names the line.
    """

    def __init__(self, path: Path, metrics: bool = False):
        self.path = path
        self.cut = False
        """Whether a half-written last line was left out, as a killed process leaves it; known after an iteration."""
        self._metrics = metrics

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _, rows in self._checked():
            yield from rows

    def sized(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Every row, with its length in bytes; 0 for one that has no end of line."""
        for lines, rows in self._checked():
            for line, row in zip(lines, rows, strict=False):
                yield row, len(line) if line.endswith(b"\n") else 0

    def _checked(self) -> Iterator[tuple[list[bytes], list[dict[str, Any]]]]:
        """Lines and their rows, a piece at a time; up to a fault those before it come first."""
        number, order = 0, _Order()
        for lines in self._pieces():
            rows, fault = self._parse(lines, number)
            if self._metrics and (found := order.fault(rows)) is not None:
                good, what = found
                rows, fault = rows[:good], self._fault(number + good + 1, what)
            yield lines, rows
            if fault is not None:
                raise fault
            number += len(rows)

    def _pieces(self) -> Iterator[list[bytes]]:
        require_regular(self.path)
        try:
            with self.path.open("rb") as file:
                while lines := self._piece(file):
                    yield lines
        except FileNotFoundError:
            raise missing(self.path) from None

    def _piece(self, file: BinaryIO) -> list[bytes]:
        """The next lines; none at the end."""
        lines, left = list[bytes](), PIECE
        while left > 0 and (line := file.readline(LONGEST)):
            if len(line) == LONGEST:
                raise UserError(f"{self.path} is damaged: a row is longer than {LONGEST >> 20} MB.")
            lines.append(line)
            left -= len(line)
        return lines

    def _parse(self, lines: list[bytes], before: int) -> tuple[list[dict[str, Any]], UserError | None]:
        """The rows of some lines, and what is wrong with the line behind them, if anything is."""
        rows = _json(b"[" + b",".join(lines) + b"]")
        if isinstance(rows, list) and len(rows) == len(lines) and all(type(row) is dict for row in rows):
            return rows, None
        rows = []
        for number, line in enumerate(lines, start=before + 1):
            row = _json(line)
            if not isinstance(row, dict):
                if line.endswith(b"\n"):
                    return rows, self._fault(number, "is no JSON object")
                self.cut = True  # only the last line has no end
                break
            rows.append(row)
        return rows, None

    def _fault(self, number: int, what: str) -> UserError:
        advice = "put a good copy back or leave this run out"
        return UserError(f"Line {number} of {self.path} {what}; the file is damaged, {advice}.")


class _Order:
    """Whether rows of metrics.jsonl have a kind and a step, stand in the order of their steps, and occur once."""

    def __init__(self):
        self.step = -1
        self.seen = set[tuple[Any, ...]]()
        """What there was of this step."""

    def fault(self, rows: list[dict[str, Any]]) -> tuple[int, str] | None:
        """How many of the next rows are good, and what is wrong with the one behind them; None: all are good."""
        step, seen = self.step, self.seen
        for place, row in enumerate(rows):
            kind, at = row.get("kind"), row.get("step")
            if type(kind) is not str or type(at) is not int:
                return place, "has no kind or no step"
            if at < step:
                return place, f"is of step {at} and stands behind one of step {step}"
            if at > step:
                step = at
                seen.clear()
            if (key := (kind, row.get("target_tokens"))) in seen:
                return place, f"is a second one of kind {kind} of step {at}"
            seen.add(key)
        self.step = step
        return None


def metrics_rows(run_dir: Path) -> Rows:
    """The rows of a run's metrics.jsonl."""
    return Rows(run_dir / METRICS, metrics=True)


def read_samples(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of samples.jsonl; none where no sample was kept.

    Raises:
        UserError: the file is damaged.
    """
    path = run_dir / SAMPLES
    return list(Rows(path)) if path.is_file() else []


def written_at(checkpoint: Path) -> Written | None:
    """What metrics.jsonl held when a checkpoint was made; None where that is not told."""
    try:
        require_regular(checkpoint / WRITTEN)
        return parse_written(read_bounded(checkpoint / WRITTEN))
    except (OSError, UserError):
        return None


def parse_written(text: bytes) -> Written | None:
    """The contents of a checkpoint's metrics.json; None where they are nonsense."""
    try:
        written = Written(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None
    right = type(written.bytes) is int and written.bytes >= 0 and isinstance(written.sha256, str)
    return written if right else None


def require_as_written(run_dir: Path, done: int | None) -> None:
    """Make sure that metrics.jsonl holds what it held when the newest checkpoint was made.

    Args:
        run_dir: the run's folder.
        done: steps of a finished run. One that is not may have gone on from an older checkpoint: where the file is
            shorter than it was at the newest one, an older one tells.

    Raises:
        UserError: rows were altered, lost or added since.
    """
    path = run_dir / METRICS
    for step, checkpoint in reversed(list_checkpoints(run_dir)):
        written = written_at(checkpoint)
        if written is None or (done is None and written.bytes > path.stat().st_size):
            continue
        if not written.opens(path) or (step == done and written.bytes < path.stat().st_size):
            raise UserError(
                f"{path} is not as the run wrote it: rows were altered, lost or added; put a good copy back or leave "
                "this run out."
            )
        return


def hash_up_to(path: Path, length: int) -> "hashlib._Hash":
    """SHA-256 of the first `length` bytes of a file, to go on with."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while length > 0 and (piece := file.read(min(length, PIECE))):
            digest.update(piece)
            length -= len(piece)
    return digest


def _json(text: bytes) -> Any:
    """What a text holds; None where it is no JSON."""
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
