"""What drills do to runs: kill them at random moments, and train with something that is amiss in one process."""

import errno
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

import ranks
from processes import train_quickly
from widestream.errors import UserError
from widestream.recipe import RunConfig
from widestream.runs import checkpoint, tensor_files
from widestream.runs.metrics import MetricsWriter
from widestream.train import loop, step

Hurt = Callable[[int], None]
"""Puts something amiss into the process of this rank, before it trains."""


def train_hurt(config: RunConfig, run_dir: Path, hurt: Hurt, environment: dict[str, str]) -> None:
    """Train as one of several processes; what it refuses goes to `refusal-RANK` beside the run."""
    os.environ.update(environment)
    rank = int(environment["RANK"])
    hurt(rank)
    try:
        train_quickly(config, run_dir)
    except UserError as error:
        run_dir.with_name(f"refusal-{rank}").write_text(str(error))


def refusals(config: RunConfig, run_dir: Path, hurt: Hurt, size: int = 2) -> list[str]:
    """What each process says that ends early: a sentence, empty where it ended well. None of them fails otherwise."""
    files = _no_refusals(run_dir, size)
    assert ranks.run(train_hurt, config, run_dir, hurt, size=size) == [0] * size
    return [file.read_text() if file.exists() else "" for file in files]


def _no_refusals(run_dir: Path, size: int) -> list[Path]:
    """Where processes leave what they refuse; what was there is gone."""
    files = [run_dir.with_name(f"refusal-{rank}") for rank in range(size)]
    for file in files:
        file.unlink(missing_ok=True)
    return files


def unhurt(rank: int) -> None:
    """Nothing is amiss."""


def no_number(rank: int, *, where: int, at: int) -> None:
    """The loss of one process is not a number at one step."""
    if rank != where:
        return
    calls, whole = itertools.count(1), step.batch_loss

    def batch_loss(*args: Any) -> Any:
        terms = whole(*args)
        spoiled = float("nan") if next(calls) == at else 1.0
        return replace(terms, total=terms.total * spoiled, cross_entropy=terms.cross_entropy * spoiled)

    step.batch_loss = batch_loss


def no_room(rank: int, *, file: str, at: int) -> None:
    """The disk is full as one file of a checkpoint is written, or the row of a step."""
    if rank != 0:
        return
    save_file, write = tensor_files.save_file, MetricsWriter.write

    def save(tensors: Any, path: Path, metadata: Any) -> None:
        if path.name.startswith(file) and path.parent.name.endswith(f"_{at:08}"):
            path.write_bytes(b"a part of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save_file(tensors, path, metadata=metadata)

    def row(self: MetricsWriter, values: dict[str, Any]) -> None:
        if file == "metrics.jsonl" and values["step"] == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, values)

    tensor_files.save_file, MetricsWriter.write = save, row


def read_only(rank: int, *, at: int) -> None:
    """The file system cannot be written any more when the checkpoint of a step is begun."""
    mkdir = Path.mkdir

    def refused(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name.endswith(f"_{at:08}"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        mkdir(self, *args, **kwargs)

    if rank == 0:
        Path.mkdir = refused


def only(rank: int, *, steps: int) -> None:
    """The process takes so many steps, and ends as if it were killed then."""
    whole = loop._upcoming
    loop._upcoming = lambda run: itertools.islice(whole(run), steps)
    loop._finish = lambda run, progress: run.saver.finish()


DAY_S = 86400.0
JUMPS_S = (0.0, -3600.0, 5 * DAY_S, -400 * DAY_S, 0.5, 0.0)


def jumping_clocks(rank: int) -> None:
    """All clocks that Python reads are set forward and back by hours and days, again and again."""
    for name in ("time", "monotonic", "perf_counter"):
        setattr(time, name, _jumping(getattr(time, name), 1.0, rank))
    time.time_ns = _jumping(time.time_ns, 1e9, rank)


def _jumping(clock: Callable[[], Any], unit: float, rank: int) -> Callable[[], Any]:
    reads = itertools.count(rank)

    def read() -> Any:
        now = clock()
        return now + type(now)(JUMPS_S[next(reads) // 5 % len(JUMPS_S)] * unit)

    return read


def outcome(run_dir: Path) -> tuple[dict[str, dict[str, str]], list[dict[str, Any]], dict[str, Any]]:
    """Hashes of every tensor, by file; and all rows and results but for the clock."""
    files = {
        str(path.relative_to(run_dir)): {
            name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in load_file(path).items()
        }
        for path in sorted(run_dir.rglob("*.safetensors"))
    }
    done = json.loads((run_dir / "done.json").read_text())
    rows = [{**row, "clock": None} for row in ranks.rows(run_dir)]
    return files, rows, {**done, "wall_s": None, "sha256": None}


@dataclass(frozen=True, slots=True)
class Kill:
    """When processes are killed, and which."""

    moment: str
    """Behind what: the `start` of the processes, the first `row` that they write, or the beginning of a `save`."""
    delay_s: float
    """Seconds behind it."""
    victims: frozenset[int]
    """Ranks that are killed; the others have to end by themselves."""

    @staticmethod
    def draw(chance: random.Random, size: int) -> "Kill":
        """A random one, every other one inside a save."""
        moment = chance.choice(("start", "row", "save", "save"))
        delay_s = chance.uniform(0.0, {"start": 3.0, "row": 0.1, "save": 0.004}[moment])
        number = size if moment == "start" else chance.randint(1, size)  # before they have met, others wait for long
        return Kill(moment, delay_s, frozenset(chance.sample(range(size), number)))


def train_killed(config: RunConfig, run_dir: Path, size: int, kill: Kill) -> bool:
    """Start a run and kill it; whether it was running still. Processes that are left end with one sentence."""
    before = _begun(run_dir, kill.moment)
    said = _no_refusals(run_dir, size)
    processes = ranks.start(train_hurt, config, run_dir, unhurt, size=size)
    while (
        kill.moment != "start"
        and all(process.is_alive() for process in processes)
        and _begun(run_dir, kill.moment) <= before
    ):
        time.sleep(0.0005)
    time.sleep(kill.delay_s)
    for rank in kill.victims:
        processes[rank].kill()
    for process in processes:
        process.join(ranks.DEADLINE_S)
    codes = [process.exitcode for process in processes]
    assert set(codes) <= {0, -signal.SIGKILL}, "none waits, none fails without a sentence"
    for file in said:
        assert not file.exists() or "has lost another one of this run" in file.read_text()
    return -signal.SIGKILL in codes


def _begun(run_dir: Path, moment: str) -> set[tuple[str, int, int]]:
    """What shows that a row was written or a save has begun."""
    found = run_dir.glob("metrics.jsonl" if moment == "row" else f"checkpoints/{checkpoint.UNFINISHED}*")
    seen = set()
    for path in found:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        seen.add((path.name, status.st_ino, status.st_mtime_ns if moment == "row" else 0))
    return seen


def train_through_kills(config: RunConfig, run_dir: Path, size: int, chance: random.Random) -> int:
    """Start, kill and start again, then let the run end; how often it was killed, once at least."""
    kills = 0
    while kills == 0 or chance.random() < 0.25:
        kills += train_killed(config, run_dir, size, Kill.draw(chance, size))
        if kills == 0:  # it was over before, which shows nothing
            shutil.rmtree(run_dir)
    assert refusals(config, run_dir, unhurt, size) == [""] * size
    return kills
