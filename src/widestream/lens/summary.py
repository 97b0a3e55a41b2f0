"""A wiring in a few numbers, which can be drawn over training."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from widestream.lens.wiring import Wiring

ONE_IN = 100
"""One wire in so many is among the largest."""


@dataclass(frozen=True)
class Summary:
    """What a wiring comes to. Weights of wires are their sizes (`Wiring.size`)."""

    wires: int
    """How many there are: pairs of a writer and a later reader."""
    largest: float
    """Share of all weight in the largest 1 % of the wires (rounded up)."""
    entropy: float
    """Of a reader's weight over its writers, in nats; mean over readers that have two or more."""
    evenness: float
    """The same over the logarithm of the number of writers: 1 where all weigh the same."""
    by_distance: list[float]
    """Mean weight by distance in depth: 0 is what was written last before the reader, then site by site; nan where
    there is no such wire."""


def summarize(wiring: Wiring) -> Summary:
    """Take a wiring together."""
    there = ~wiring.size.isnan()
    sizes = wiring.size[there].sort(descending=True).values
    few = math.ceil(len(sizes) / ONE_IN)
    entropies = torch.stack([_entropy(row[known]) for row, known in zip(wiring.size, there, strict=True)])
    most = there.sum(1).double().log()
    several = most > 0
    entropy, evenness = entropies[several], entropies[several] / most[several]
    return Summary(
        wires=len(sizes),
        largest=(sizes[:few].sum() / sizes.sum()).item(),
        entropy=entropy.mean().item(),
        evenness=evenness.mean().item(),
        by_distance=_by_distance(wiring, there),
    )


def _entropy(weights: Tensor) -> Tensor:
    return torch.special.entr(weights / weights.sum()).sum()


def _by_distance(wiring: Wiring, there: Tensor) -> list[float]:
    readers, writers = (torch.tensor([one.site for one in ones]) for ones in (wiring.readers, wiring.writers))
    apart = readers[:, None] - writers
    return [wiring.size[there & (apart == distance)].mean().item() for distance in range(int(apart.max()) + 1)]
