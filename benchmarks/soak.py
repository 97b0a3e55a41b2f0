"""A soak: a process trains small runs again and again for so many minutes; does it stay as it is?

    python benchmarks/soak.py 10

Every round is a run that saves, evaluates, looks at its stream, ends, and goes on for as long again. While its steps
are taken, resident memory, open files and threads are read from /proc, each half minute. Behind the first fifth of the
time memory may grow by less than 2 % (from the median of the first third to that of the last: it differs a little from
one moment of a run to another), files and threads not at all, and the metrics of every round have to be without gaps.
Exit code 1 where that is not so.
"""

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widestream.data.prepare import prepare
from widestream.data.tokenizer import resolve_tokenizer
from widestream.recipe import load_recipe
from widestream.train.loop import train

EVERY_S = 30.0
"""Seconds between samples; less where there would be fewer than ten."""
READS = 25
"""Readings of /proc that a sample is made of: a save has a file more open for a moment."""
GROWTH = 0.02
"""Memory may grow by less than this part."""
SETTINGS = (
    *("model.vocab_size=257", "model.context=64", "model.num_layers=2", "model.num_heads=2", "model.head_dim=16"),
    *("model.mlp_dim=128", "schedule.kind=constant", "schedule.warmup=5", "train.batch_size=4"),
    *("train.eval_windows=8", "train.final_eval=windows", "train.eval_every=25"),
    *("train.save_every=20", "train.watch_every=10", "train.device=cpu"),
)
"""Of every run, laid over the demo's."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the process has."""

    seconds: float
    """Since the first one."""
    memory_mb: float
    """Resident."""
    files: int
    """Open."""
    threads: int
    """That live."""


def train_rounds(folder: Path, steps: int) -> None:
    """Train round after round, without end; prints what is missing in a round's metrics, and ends then."""
    run = folder / "run"
    for number in itertools.count(1):
        for part in (steps // 2, steps):
            train(load_recipe("demo/rmt", [*SETTINGS, f"data.path={folder / 'data'}", f"train.steps={part}"]), run)
        if said := gaps(run, steps):
            sys.exit(f"round {number}: {said}")
        shutil.rmtree(run)
        (folder / "rounds").write_text(str(number))


def gaps(run: Path, steps: int) -> str | None:
    """What is missing in the metrics of a run that ended twice; None: nothing."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    every = {"train": 1, "eval": 25, "stream": 10}
    for kind, apart in every.items():
        due = [step for step in range(1, steps + 1) if step % apart == 0 or step in (steps // 2, steps)]
        found = sorted({row["step"] for row in rows if row["kind"] == kind})
        if found != due:
            return f"rows of kind {kind} are of steps {found}, and not of {due}"
    return None


def sample(process: subprocess.Popen[str], folder: Path, start: float) -> Sample | None:
    """Look at the process while it takes steps; None where it has ended."""
    metrics, readings = folder / "run" / "metrics.jsonl", []
    before = size(metrics)
    while len(readings) < READS:
        time.sleep(0.02)
        if process.poll() is not None:
            return None
        now = size(metrics)
        if now > before > 0:  # a row was just written
            readings.append(read(process.pid))
        before = now
    memory, files, threads = zip(*readings, strict=True)
    seconds = time.monotonic() - start
    return Sample(seconds, statistics.median(memory), statistics.mode(files), statistics.mode(threads))


def size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def read(process: int) -> tuple[float, int, int]:
    """Resident memory in MB, open files and threads of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    files = sum(1 for _ in Path(f"/proc/{process}/fd").iterdir())
    return int(status["VmRSS"].split()[0]) / 1024, files, int(status["Threads"])


def watch(process: subprocess.Popen[str], folder: Path, minutes: float) -> list[Sample]:
    """Samples of so many minutes, beginning behind the first round."""
    while process.poll() is None and not (folder / "rounds").exists():
        time.sleep(0.1)
    start, samples = time.monotonic(), []
    every = min(EVERY_S, minutes * 60 / 10)
    while (found := sample(process, folder, start)) is not None:
        samples.append(found)
        print(f"{found.seconds:7.1f} s  {found.memory_mb:7.1f} MB  {found.files} files  {found.threads} threads")
        left = minutes * 60 - (time.monotonic() - start)
        if left <= 0:
            break
        time.sleep(min(every, left))
    return samples


OF_A_SAVE = {"files": 2, "threads": 1}
"""What a save has open for a moment."""


def verdict(samples: list[Sample], minutes: float, most: float) -> dict[str, Any]:
    """Whether the process stayed as it was behind the first fifth.

    Memory grew by less than `most`; no more files or threads are there in the last third than in the first, but for
    those of a save.
    """
    later = [one for one in samples if one.seconds >= minutes * 60 / 5]
    third = -(-len(later) // 3)
    thirds = later[:third], later[-third:]
    first, last = (statistics.median(one.memory_mb for one in part) for part in thirds)
    found = {name: [max(getattr(one, name) for one in part) for part in thirds] for name in OF_A_SAVE}
    flat = all(found[name][1] <= found[name][0] + more for name, more in OF_A_SAVE.items())
    return {"flat": flat and last / first - 1 < most, "samples": len(later), "memory_growth": last / first - 1, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--steps", type=int, default=600, help="of a run, an even number")
    parser.add_argument("--growth", type=float, default=GROWTH, help="of memory that is too much")
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)  # how the process is started
    args = parser.parse_args()
    if args.folder:
        train_rounds(args.folder, args.steps)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(["bundled:prose"], folder / "data", resolve_tokenizer("byte"), progress=False)
        command = [sys.executable, __file__, str(args.minutes), "--steps", str(args.steps), "--in", name]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
            samples = watch(process, folder, args.minutes)
            lasted = process.poll() is None
            process.terminate()
            process.wait(60)
        if not lasted:
            sys.exit(f"The process ended: {(folder / 'log').read_text()[-2000:]}")
        result = {"rounds": int((folder / "rounds").read_text()), **verdict(samples, args.minutes, args.growth)}
    print(json.dumps(result))
    sys.exit(0 if result["flat"] else 1)


if __name__ == "__main__":
    main()
