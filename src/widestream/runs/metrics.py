"""metrics.jsonl: what a run measured, one JSON object a line; and the same numbers for TensorBoard."""

import contextlib
import json
import math
import os
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from widestream.errors import UserError
from widestream.runs.folder import BOARD, METRICS


class MetricsWriter:
    """Appends rows to the metrics.jsonl of a run that stands at some step.

    Every row has `kind` and `step`; what depends on the clock sits under `clock`, so that all else is the same, bit for
    bit, in a resumed and in an uninterrupted run. A number that is not finite is written as null.

    Args:
        run_dir: the run's folder.
        step: optimizer steps done; rows of later steps and a half-written last line are cut off.
        tensorboard: also write TensorBoard events to `run_dir/tensorboard`.

    Raises:
        UserError: another process is writing the file; it is as it was.
    """

    def __init__(self, run_dir: Path, step: int, tensorboard: bool = False):
        path = run_dir / METRICS
        self._file = path.open("a", encoding="utf-8")
        try:
            _hold(self._file, run_dir)
        except UserError:
            self._file.close()
            raise
        os.truncate(path, length_up_to(path, step))
        self._board = board_class()(str(run_dir / BOARD), purge_step=step + 1) if tensorboard else None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, row: dict[str, Any]) -> None:
        """Append a row and hand it to the operating system, so that it outlives a kill of this process."""
        row = {key: finite(value) for key, value in row.items()}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in {**row, **row.get("clock", {})}.items():
                if isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
                    self._board.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def sync(self) -> None:
        """Have all rows on the disk, so that they outlive a power cut, as the checkpoint does that is made next."""
        os.fsync(self._file.fileno())


def require_idle(run_dir: Path) -> None:
    """Make sure that no process is training in a folder.

    Raises:
        UserError: one is.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), (run_dir / METRICS).open("rb") as file:
        _hold(file, run_dir)


def _hold(file: IO[Any], run_dir: Path) -> None:
    """Lock a run's metrics for as long as the file is open: it is open while a process trains, however that ends."""
    free = True
    with contextlib.suppress(OSError):  # a file system without locks
        free = lock_descriptor(file.fileno(), blocking=False)
    if not free:
        raise UserError(
            f"Another process is training in {run_dir}; wait for it, end it, or give another folder with --out."
        )


def length_up_to(path: Path, step: int) -> int:
    """Bytes of a metrics file that come before the first row of a step later than `step`, or before a damaged line."""
    length = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        length += len(line)
    return length


def finite(value: Any) -> Any:
    """None for a number that is not finite, which JSON cannot hold; anything else as it is."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def board_class() -> type[Any]:
    """TensorBoard's writer.

    Raises:
        UserError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "train.tensorboard=true needs TensorBoard: pip install 'widestream[track]', or set train.tensorboard=false."
        ) from None
    return SummaryWriter
