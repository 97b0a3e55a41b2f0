"""Candidates take turns within every round, in one process, so that a drift of the machine's speed hits all alike."""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from widestream.machine import synchronize

Turn = Callable[[int], Callable[[], Any]]
"""Given the number of the round (negative: warm-up), gets ready, untimed, and returns what is to be timed."""

Seconds = dict[str, list[float]]
"""What each candidate took in every round."""


def take_turns(candidates: dict[str, Turn], rounds: int, warmup: int, device: torch.device) -> Seconds:
    """Time all candidates, each once a round, and the first one of a round is another in every round.

    Args:
        candidates: by name.
        rounds: timed rounds.
        warmup: rounds before, which compile, allocate and fill caches.
        device: waited for before and after each turn.
    """
    seconds: Seconds = {name: [] for name in candidates}
    names = list(candidates)
    for round_ in range(-warmup, rounds):
        shift = round_ % len(names)
        for name in names[shift:] + names[:shift]:
            run = candidates[name](round_)
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Seconds) -> dict[str, float]:
    """Median over the rounds."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratios(seconds: Seconds, references: Iterable[str]) -> dict[str, dict[str, float]]:
    """Every candidate's time relative to each of `references`: the median over the rounds of the ratio within one."""

    def ratio(name: str, reference: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[name], seconds[reference], strict=True))

    references = list(references)
    return {name: {other: ratio(name, other) for other in references if other != name} for name in seconds}
