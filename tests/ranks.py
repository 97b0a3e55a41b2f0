"""Several processes of one run, started as torchrun would; what they do stands in processes.py."""

import json
import multiprocessing
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from processes import train_as_rank
from widestream.recipe import RunConfig

DEADLINE_S = 240
"""For processes that may have a fraction of a core each."""


def start(target: Callable[..., None], *args: Any, size: int = 2) -> list[BaseProcess]:
    """Start `size` processes that call `target(*args, environment)`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["widestream.train.loop", "torch._dynamo"])
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        context.Process(target=target, args=(*args, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    return ranks


def run(target: Callable[..., None], *args: Any, size: int = 2) -> list[int | None]:
    """Let `size` processes do it; gives their exit codes."""
    ranks = start(target, *args, size=size)
    for process in ranks:
        process.join(DEADLINE_S)
    return [process.exitcode for process in ranks]


def train_on(size: int, config: RunConfig, run_dir: Path) -> None:
    """Train in `size` processes, all of which end well."""
    assert run(train_as_rank, config, run_dir, size=size) == [0] * size


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
