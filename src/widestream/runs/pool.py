"""Several training runs as processes of their own, some at a time, with one progress bar for all of them.

A lease beside every run folder says which of several pools, here or on other machines that share the folder, carries
out the run. A pool renews its leases from a thread of its own. Those of a process that is gone are free at once for
other processes on the same machine, and for others `LEASE_S` after they first looked.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import SoftFileLease, Timeout

from widestream.errors import UserError
from widestream.files import make_folder
from widestream.recipe import load_recipe
from widestream.runs.folder import NONFINITE, claim_file, finished, read_done, steps_done
from widestream.runs.metrics import require_idle
from widestream.runs.progress import Progress
from widestream.runs.splits import open_splits

POLL_S = 0.5
SAVE_S = 60.0
"""Seconds that a run which is told to end has to save."""
LEASE_S = 30.0
"""Seconds without a sign of life after which a run may be taken over; the same in all processes that share a folder."""


@dataclass(kw_only=True, slots=True)
class Job:
    """One run: what `widestream train` is called with."""

    recipe: str
    """Name or path."""
    changes: tuple[str, ...]
    """Changes to the recipe, `key.sub=value`."""
    folder: Path
    """Run folder; what the process prints goes to `FOLDER.log` beside it."""
    steps: int
    """Optimizer steps of the whole run."""
    pass_fds: tuple[int, ...] = ()
    """Open files that the process inherits; a lock among them is held until it ends, whatever becomes of its parent."""
    gpu: str | None = field(default=None, init=False)
    """Name of the GPU that the process sees alone; None: it sees all there are."""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    """While it runs."""
    failed: bool = field(default=False, init=False)
    """Whether its process ended without a result, and no other one is at the run."""
    claim: SoftFileLease = field(init=False, repr=False, compare=False)
    """Says to other pools that this one carries out the run."""

    def __post_init__(self):
        self.claim = SoftFileLease(claim_file(self.folder), lease_duration=LEASE_S)

    @property
    def log(self) -> Path:
        """Where the process writes what it has to say."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def done(self) -> bool:
        """Whether the run has ended well, now or in an earlier call that had as many steps."""
        return finished(self.folder, self.steps)

    @property
    def choosing_loss(self) -> float | None:
        """What a finished run is chosen by: its loss on the held-out text kept for that, where some was (by
        `train.selection`), else its last held-out loss; None for any other run.
        """
        done = read_done(self.folder) if self.done else None
        loss = None if done is None else (done.get("selection") or done["heldout"])["loss"]
        return loss if loss is not None and math.isfinite(loss) else None

    @property
    def diverged(self) -> bool:
        """Whether the run was stopped because its loss or gradient was not finite. It would be again."""
        return not self.done and any(self.folder.glob(NONFINITE.format("*")))

    @property
    def steps_done(self) -> int:
        """Steps so far."""
        return steps_done(self.folder)

    def take(self) -> bool:
        """Claim the run for this process; False where another one has it."""
        try:
            self.claim.acquire(blocking=False)
        except Timeout:
            return False
        return True

    def require_data(self) -> None:
        """Make sure that its data are there before any run is started. A recipe's own faults its process tells.

        Raises:
            UserError: they are not prepared, not whole, or not for this model; names the run.
        """
        try:
            config = load_recipe(self.recipe, self.changes)
        except UserError:
            return
        try:
            open_splits(config)
        except UserError as error:
            raise UserError(f"The run {self.folder} cannot start. {error}") from error

    def start(self, gpu: str | None = None) -> None:
        """Start the process. It goes on from the run's newest checkpoint, if there is one, and ends with this one.

        Args:
            gpu: name of the GPU that it is to see alone.
        """
        self.gpu = gpu
        make_folder(self.folder.parent)
        arguments = ["train", self.recipe, *self.changes, "--out", str(self.folder)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "widestream.runs.child", *arguments],
                stdin=subprocess.PIPE,  # see runs/child.py
                stdout=log,
                stderr=log,
                env=None if gpu is None else os.environ | {"CUDA_VISIBLE_DEVICES": gpu},
                pass_fds=self.pass_fds,
            )

    def end(self) -> None:
        """End the process, if it runs, once it has saved, and let others have the run. It can go on later."""
        if self.process is not None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(SAVE_S)  # the end of its input would be a second signal, and end it at once
            self.process.communicate()
        self.claim.release()

    def settle(self, over: bool) -> None:
        """Let others have the run, whose process has ended, and note whether that was a failure.

        Args:
            over: whether the run came to a result.
        """
        self.end()
        # A lost race is none: the process ended because another one was at the run already.
        self.failed = not over and not self.busy

    @property
    def busy(self) -> bool:
        """Whether some process is training in the folder, whoever has the claim."""
        try:
            require_idle(self.folder)
        except UserError:
            return True
        return False

    @property
    def last_words(self) -> str:
        """What the process said last."""
        text = self.log.read_text(errors="replace") if self.log.is_file() else ""  # another command has no log here
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1].removeprefix("widestream: ") if lines else "it said nothing"

    @property
    def failure(self) -> UserError:
        """What to say when the process ended and the run is neither done nor diverged."""
        return UserError(f"The run {self.folder} failed: {self.last_words} (all of it: {self.log})")


def run_jobs(jobs: Sequence[Job], workers: int, may_diverge: bool = False, may_fail: bool = False) -> None:
    """Carry out all jobs that are not done yet, and wait for those that another process carries out.

    Interrupted or terminated, it ends the processes; called again, every run goes on from its newest checkpoint.
    Several calls, in processes here or on machines that share the folder, divide the jobs between them (`Job.claim`).
    Where there are several GPUs, every job has one of them to itself, or shares it with as few others as can be.

    Args:
        jobs: in the order in which they are to start.
        workers: how many run at a time.
        may_diverge: whether a run whose loss is not finite any more is a result like another (`Job.diverged`).
        may_fail: whether a run that ends without a result is left behind (`Job.failed`) and the others go on.

    Raises:
        UserError: the data of a run that is not done are not there, and none was started. Or a run failed and may not;
            says what its process said last. The others are ended, to go on later.
    """

    def over(job: Job) -> bool:
        return job.done or job.failed or (may_diverge and job.diverged)

    def steps() -> int:
        return sum(job.steps if job.done else job.steps_done for job in jobs)

    total = sum(job.steps for job in jobs)
    waiting = [job for job in jobs if not over(job)]
    for job in waiting:
        job.require_data()
    running: list[Job] = []
    gpus = visible_gpus() if workers > 1 else []
    try:
        with terminable(), Progress(f"training {len(jobs)} runs", steps(), total) as progress:
            while waiting or running:
                _start(waiting, running, workers, gpus, over)
                time.sleep(POLL_S)
                progress.show(done := steps(), f"training: {done} of {total} steps")
                for job in [job for job in running if job.claim.compromise is not None]:
                    # This process stood still for longer than the lease lasts, and another one has the run now.
                    running.remove(job)
                    job.end()
                    waiting.append(job)
                for job in [job for job in running if job.process and job.process.poll() is not None]:
                    running.remove(job)
                    job.settle(over(job))
                    if not over(job):
                        waiting.append(job)
                    elif job.failed and not may_fail:
                        raise job.failure
    finally:
        for job in running:
            job.end()


def visible_gpus() -> list[str]:
    """The GPUs of this machine that processes may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count, chosen = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if chosen is None else (name.strip() for name in chosen.split(","))
    return list(names)[:count]


def _start(
    waiting: list[Job], running: list[Job], workers: int, gpus: Sequence[str], over: Callable[[Job], bool]
) -> None:
    """Start what can be started: not more than `workers`, nothing that another process has claimed or finished."""
    for job in list(waiting):
        if len(running) == workers:
            return
        if job.take():
            waiting.remove(job)
            if over(job):  # another process finished it since
                job.end()
            elif job.busy:  # a process goes on whose pool has lost its claim
                job.end()
                waiting.append(job)
            else:
                taken = [other.gpu for other in running]
                running.append(job)
                job.start(min(gpus, key=taken.count) if len(gpus) > 1 else None)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end this process as an exception does, so that the runs are ended too."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
