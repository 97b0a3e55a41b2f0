"""Programs that draw training as it goes: TensorBoard, W&B and trackio, behind one small interface.

They get the numbers of metrics.jsonl, which stays what counts: a tracker that fails is said once and left out, and
training goes on. A run that goes on writes into the tracker's run that it began.
"""

import contextlib
import io
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from widestream.errors import UserError
from widestream.files import read_json, write_json
from widestream.recipe import RunConfig, to_dict
from widestream.runs.folder import BOARD, TRACKERS

log = logging.getLogger(__name__)
PROJECT = "widestream"
"""What runs are gathered under, where the tracker's own environment (WANDB_PROJECT) does not say."""
STEP = "optimizer step"
"""W&B's axis. Its own count of steps may not go back, as a run does that was killed behind its last checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracked:
    """What a tracker is told of a run when it begins or goes on."""

    folder: Path
    """The run's."""
    identity: str
    """Stays with the run, wherever its folder goes."""
    step: int
    """Optimizer steps done."""
    config: dict[str, Any]
    """The recipe."""


class Tracker(Protocol):
    """One program, for one run."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of a step, by `kind/name`."""
        ...

    def close(self) -> None:
        """Write what is not written yet."""
        ...


class TensorBoard:
    """Events in `tensorboard/` of the run's folder; those of later steps than the run stands at are dropped."""

    def __init__(self, run: Tracked):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / BOARD), purge_step=run.step + 1)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """As `Tracker.log`."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """As `Tracker.close`."""
        self._writer.close()


class WandB:
    """A run of W&B, whose files lie in `wandb/` of the run's folder; WANDB_MODE=offline keeps it there."""

    def __init__(self, run: Tracked):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=run.folder.name, id=run.identity, resume="allow",
            dir=str(run.folder), config=run.config, settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        self._run.define_metric("*", step_metric=STEP)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """As `Tracker.log`."""
        self._run.log({**numbers, STEP: step})

    def close(self) -> None:
        """As `Tracker.close`."""
        self._run.finish()


class Trackio:
    """A run of trackio, in its own place on this machine (TRACKIO_DIR)."""

    def __init__(self, run: Tracked):
        import trackio

        name = f"{run.folder.name}-{run.identity}"  # it goes on with a run by name
        with contextlib.redirect_stdout(io.StringIO()):
            self._run = trackio.init(
                project=PROJECT, name=name, config=run.config, resume="allow", embed=False, auto_log_gpu=False,
                auto_log_cpu=False,
            )  # fmt: skip

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """As `Tracker.log`."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """As `Tracker.close`."""
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()  # the run's own `finish` would be called once more at exit, and print


@dataclass(frozen=True)
class Kind:
    """A tracker that can be asked for, by `train.NAME: true`."""

    title: str
    """What people call it."""
    module: str
    """Package that must be there."""
    begin: Callable[[Tracked], Tracker]
    """Begins, or goes on."""


KINDS = {
    "tensorboard": Kind("TensorBoard", "tensorboard", TensorBoard),
    "wandb": Kind("W&B", "wandb", WandB),
    "trackio": Kind("trackio", "trackio", Trackio),
}


def require_trackers(config: RunConfig) -> None:
    """Make sure that what a recipe asks for is installed.

    Raises:
        UserError: a tracker is not; says how to get it.
    """
    for name in _asked(config):
        if find_spec(KINDS[name].module) is None:
            raise UserError(
                f"train.{name}=true needs {KINDS[name].title}: pip install 'widestream[track]', or set "
                f"train.{name}=false."
            )


class Trackers:
    """The trackers of a run. Nothing that they do ends it: one that fails is said once and left out.

    Args:
        run_dir: the run's folder.
        config: its recipe, which says which there are.
        step: optimizer steps done.
    """

    def __init__(self, run_dir: Path, config: RunConfig, step: int):
        self._open: dict[str, Tracker] = {}
        asked = _asked(config)
        if not asked:
            return
        run = Tracked(folder=run_dir, identity=_identity(run_dir), step=step, config=to_dict(config))
        for name in asked:
            with self._guarded(name):
                self._open[name] = KINDS[name].begin(run)

    def log(self, row: Mapping[str, Any]) -> None:
        """Hand on a row of metrics.jsonl: its numbers, and those that depend on the clock."""
        numbers = {
            f"{row['kind']}/{name}": float(value)
            for name, value in {**row, **row.get("clock", {})}.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
        }
        for name, tracker in [*self._open.items()]:
            with self._guarded(name):
                tracker.log(row["step"], numbers)

    def close(self) -> None:
        """End them all."""
        for name, tracker in [*self._open.items()]:
            with self._guarded(name):
                tracker.close()
        self._open.clear()

    @contextlib.contextmanager
    def _guarded(self, name: str):
        try:
            yield
        except Exception as error:  # whatever a tracker raises: it is beside the run, and must not end it
            self._open.pop(name, None)
            what = " ".join(str(error).split())[:200] or type(error).__name__
            log.warning("%s failed and is left out from here on (%s); metrics.jsonl has all.", KINDS[name].title, what)


def _asked(config: RunConfig) -> list[str]:
    return [name for name in KINDS if getattr(config.train, name)]


def _identity(run_dir: Path) -> str:
    """Of a run, in trackers: made when the first one begins, and kept in its folder."""
    path = run_dir / TRACKERS
    with contextlib.suppress(UserError, KeyError, TypeError):
        return str(read_json(path)["id"])
    identity = secrets.token_hex(4)
    write_json(path, {"id": identity})
    return identity
