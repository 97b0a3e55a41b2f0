"""metrics.jsonl: what a run measured, one JSON object a line; and the same numbers for trackers."""

import contextlib
import json
import logging
import math
import os
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from widestream.errors import UserError
from widestream.runs.folder import METRICS, require_regular
from widestream.runs.rows import Rows, Written, hash_up_to
from widestream.runs.trackers import Trackers

log = logging.getLogger(__name__)


class MetricsWriter:
    """Appends rows to the metrics.jsonl of a run that stands at some step.

    Every row has `kind` and `step`; what depends on the clock sits under `clock`, so that all else is the same, bit for
    bit, in a resumed and in an uninterrupted run. A number that is not finite is written as null.

    Args:
        run_dir: the run's folder.
        step: optimizer steps done; rows of later steps and a half-written last line are cut off.
        written: what the checkpoint of that step says of the file, where it does.

    Raises:
        UserError: another process is writing the file, or the rows up to the step are damaged; it is as it was.
    """

    def __init__(self, run_dir: Path, step: int, written: Written | None = None):
        path = run_dir / METRICS
        require_regular(path)
        if step and not path.exists():
            log.warning("%s is gone; the rows of the first %s steps will be missing.", path, f"{step:,}")
            written, step = None, 0
        self._file = path.open("ab")
        try:
            _hold(self._file, run_dir)
            self._length = length_up_to(path, step, written)
        except UserError:
            self._file.close()
            raise
        os.truncate(path, self._length)
        self._hash = hash_up_to(path, self._length)
        self.trackers: Trackers | None = None
        """What else gets every row; closed with the writer. They begin when the file is held."""

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self.trackers is not None:
            self.trackers.close()

    def write(self, row: dict[str, Any]) -> None:
        """Append a row and hand it to the operating system, so that it outlives a kill of this process."""
        row = {key: finite(value) for key, value in row.items()}
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        self._file.write(line)
        self._file.flush()
        self._hash.update(line)
        self._length += len(line)
        if self.trackers is not None:
            self.trackers.log(row)

    def sync(self) -> Written:
        """Have all rows on the disk, so that they outlive a power cut, as the checkpoint does that is made next.

        Returns:
            What the file holds, for that checkpoint to say.
        """
        os.fsync(self._file.fileno())
        return Written(self._length, self._hash.hexdigest())


def require_idle(run_dir: Path) -> None:
    """Make sure that no process is training in a folder.

    Raises:
        UserError: one is, or the file is none.
    """
    require_regular(run_dir / METRICS)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), (run_dir / METRICS).open("rb") as file:
        _hold(file, run_dir)


def _hold(file: IO[Any], run_dir: Path) -> None:
    """Lock a run's metrics for as long as the file is open: it is open while a process trains, however that ends."""
    free = True
    with contextlib.suppress(OSError):  # a file system without locks
        free = lock_descriptor(file.fileno(), blocking=False)
    if not free:
        raise in_use(run_dir)


def in_use(run_dir: Path) -> UserError:
    """What to say of a folder that another process trains in."""
    return UserError(
        f"Another process is training in {run_dir}; wait for it, end it, or give another folder with --out."
    )


def length_up_to(path: Path, step: int, written: Written | None = None) -> int:
    """Bytes of a metrics file that come before the first row of a step later than `step`.

    Args:
        path: the file.
        step: optimizer steps done.
        written: what the checkpoint of that step says of the file; older ones say nothing.

    Raises:
        UserError: these rows are not what was written, as far as can be told.
    """
    if written is not None:
        if not written.opens(path):
            raise UserError(
                f"{path} is not as it was at the checkpoint of step {step}: {_fault(path)}. It is left as it is; put a "
                "good copy back, or move it away to go on without these rows."
            )
        return written.bytes
    length = 0
    if step:
        for row, size in Rows(path, metrics=True).sized():
            if row["step"] > step:
                break
            length += size
    return length


def _fault(path: Path) -> str:
    try:
        for _ in Rows(path, metrics=True):
            pass
    except UserError as error:
        return str(error).partition(";")[0]
    return "rows were altered, lost or added"


def finite(value: Any) -> Any:
    """None for a number that is not finite, which JSON cannot hold; anything else as it is."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
