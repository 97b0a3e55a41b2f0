"""What the tests run in processes of their own: these functions are their targets."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from widestream.config import RunConfig
from widestream.train import folder
from widestream.train.loop import train


def train_quickly(config: RunConfig, run_dir: Path) -> None:
    """Train without measuring the machine."""
    folder.matmul_peak = lambda device, precision: 1e11
    train(config, run_dir)


def train_and_die(config: RunConfig, run_dir: Path, call: str, count: int) -> None:
    """Train until the `count`-th call of `call` (fsync or rename) has just returned, then die as by `kill -9`."""
    owner: Any = os if call == "fsync" else Path
    setattr(owner, call, _dying(getattr(owner, call), count))
    train_quickly(config, run_dir)


def _dying(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    calls = iter(range(1, 10**6))

    def call(*args: Any) -> Any:
        result = function(*args)
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


def train_as_rank(config: RunConfig, run_dir: Path, environment: dict[str, str]) -> None:
    """Train as one of several processes that torchrun would have started with this environment."""
    os.environ.update(environment)
    train_quickly(config, run_dir)
