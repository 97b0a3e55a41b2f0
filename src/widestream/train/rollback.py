"""Going back after a leap of the loss: to the checkpoint before it, and on with other batches (`train.rollback`).

A leap is a loss above so many times the median of the last `WINDOW` steps. The batches between the checkpoint and the
leap are passed over, as PaLM's authors did by hand (Chowdhery et al. 2022, section 5.1). What was done stands in
run.json, so that a run which is killed comes to the same batches.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from widestream.errors import UserError
from widestream.runs.folder import read_info
from widestream.runs.write import write_info

WINDOW = 64
"""Steps whose losses say what is usual."""
MOST = 20
"""Times that a run goes back before it says that this helps nothing."""
ROLLBACKS = "rollbacks"
"""Key of run.json."""


@dataclass(frozen=True, slots=True)
class Rollback:
    """Once that a run has gone back; an entry of run.json."""

    at: int
    """Steps done when the loss had leapt."""
    to: int
    """Steps done at the checkpoint that it went back to."""
    loss: float
    """The loss that leapt, in nats per token; infinity is not among them."""
    usual: float
    """Median of those before."""
    wall_s: float
    """Seconds spent training till then, which going back does not give back."""


class Losses:
    """The last losses of a run.

    Args:
        factor: how many times the usual one a leap is; None: there is none.
        known: those before a run goes on.
    """

    def __init__(self, factor: float | None, known: Iterable[float] = ()):
        self._factor = factor
        self._last = deque(known, WINDOW)

    @property
    def last(self) -> list[float]:
        """For the checkpoint."""
        return list(self._last)

    def leapt_from(self, loss: float) -> float | None:
        """Take a step's loss; the usual one if it has leapt."""
        usual = median(self._last) if len(self._last) == WINDOW else math.inf
        if self._factor is not None and loss > self._factor * usual:
            return usual
        self._last.append(loss)
        return None


def batch_of(step: int, rollbacks: Sequence[Rollback]) -> int:
    """Number of the batch that a step trains on, which is its own until a run has gone back.

    From then on batches begin behind all that were read till then, so that none is read a second time. Where a run went
    back further than the time before, because the newest checkpoint was damaged, versions before this rule counted
    steps instead of batches, and read some again; of such a run other batches come now. Of all others they are the
    same.
    """
    shifts: list[tuple[int, int]] = []  # from which step on, and by how much

    def batch(step: int) -> int:
        return step + next((by for start, by in reversed(shifts) if step >= start), 0)

    used = 0
    for one in rollbacks:
        used = max(used, batch(one.at))  # a run that was killed may leap where it comes a second time
        shifts.append((one.to, used - one.to))
    return batch(step)


def seconds_at(step: int, wall_s: float, rollbacks: Sequence[Rollback]) -> float:
    """Seconds spent where a run goes on from a checkpoint, which says `wall_s`: with those behind it that were lost."""
    return max([wall_s, *(one.wall_s for one in rollbacks if one.to == step)])


def read_rollbacks(info: dict[str, Any]) -> list[Rollback]:
    """What run.json says."""
    return [Rollback(**entry) for entry in info.get(ROLLBACKS, [])]


def note_rollback(run_dir: Path, rollback: Rollback) -> None:
    """Enter in run.json that a run goes back.

    Raises:
        UserError: it has done so too often.
    """
    info = read_info(run_dir)
    entries = [*info.get(ROLLBACKS, []), asdict(rollback)]
    if len(entries) > MOST:
        raise UserError(
            f"The loss has leapt {len(entries)} times, last at step {rollback.at} ({rollback.loss:.3f} where "
            f"{rollback.usual:.3f} was usual); going back does not help. Lower optimizer.lr or set "
            "optimizer.grad_clip, in another run folder (--out), or raise train.rollback."
        )
    write_info(run_dir, info | {ROLLBACKS: entries})
