"""What a run of gpu_suite.py works with: its settings, its record, its clock, and the machine it describes."""

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

for package, module in {"torch": "torch", "numpy": "numpy", "pyyaml": "yaml", "tqdm": "tqdm"}.items():
    if importlib.util.find_spec(module) is None:
        sys.exit(f"This suite needs the package {package}: pip install {package}.")

import torch  # noqa: E402

from widestream.errors import UserError  # noqa: E402
from widestream.kernels.exchange import Exchange, ReferenceExchange  # noqa: E402
from widestream.kernels.exchange_triton import TritonExchange, available  # noqa: E402
from widestream.machine import describe_machine  # noqa: E402


@dataclass
class Suite:
    """A run: what was asked, and what was found so far."""

    device: torch.device
    quick: bool
    sizes: list[str]
    batch: int
    path: Path
    record: dict[str, Any]
    part: str = ""
    deadline: float = field(default=0.0)

    def out_of_time(self, what: str) -> bool:
        """Whether the part's share is used up; then `what` is written down as left out."""
        over = time.perf_counter() > self.deadline
        if over:
            self.add("left_out", {"part": self.part, "what": what})
        return over

    def add(self, key: str, row: dict[str, Any]) -> None:
        """One more figure."""
        self.record.setdefault(key, []).append(row)
        self.path.write_text(json.dumps(self.record, indent=1) + "\n")

    def attempt(self, what: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Write down what `measure` gives, or how it fails."""
        if self.out_of_time(what):
            return
        try:
            self.add(self.part, measure())
        except Exception as problem:  # whatever it is, the rest is still worth having
            message = f"{type(problem).__name__}: {problem}".strip()[:500]
            self.add("failures", {"part": self.part, "what": what, "error": message})
            print(f"  failed: {what}: {message.splitlines()[0]}", flush=True)

    def fused(self) -> Exchange:
        """What is checked and timed: the Triton kernels, or in a quick run without them the reference."""
        reason = available(self.device)
        if reason and not self.quick:
            raise UserError(reason)
        return ReferenceExchange() if reason else TritonExchange()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(suite: Suite, call: Callable[[], object], rounds: int = 7, repeat: int = 5) -> float:
    """Median over rounds of one call's time; a round is `repeat` calls in a row."""
    rounds, repeat = (2, 1) if suite.quick else (rounds, repeat)
    times = []
    for round_ in range(-1, rounds):
        wait(suite.device)
        start = time.perf_counter()
        for _ in range(repeat):
            call()
        wait(suite.device)
        if round_ >= 0:
            times.append((time.perf_counter() - start) / repeat)
    return statistics.median(times)


def copy_bandwidth(suite: Suite) -> float:
    """Bytes per second, read and written, of a large copy."""
    source = torch.empty(2**10 if suite.quick else 2**28, device=suite.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(suite, lambda: target.copy_(source))


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, versions and commit."""
    try:
        import triton

        version = triton.__version__
    except ModuleNotFoundError:
        version = None
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return {
        "machine": describe_machine(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": version,
                     "cuda": torch.version.cuda, "interpreted": os.environ.get("TRITON_INTERPRET") == "1"},
        "commit": commit or None, "changed_since_commit": bool(changed),
    }  # fmt: skip
