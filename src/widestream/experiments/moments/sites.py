"""Second moments at every site of a decoder, whatever its stream: of what is written, carried and read, and gradients.

* `seen`: of the stream as the reader behind the write sees it, before its norm
* `read`: of all that is handed to that reader
* `written`: of what the block before has put out (site 0: of the embeddings)
* `state`: of the numbers that the stream carries after the write, a history among them where it keeps one
* `read_gradient`: of the gradient of what is read, through that reader alone
* `written_gradient`: of the gradient of what is written
* `state_gradient`: of the gradient of the state after the write; only for a state that is one tensor
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from widestream.model.decoder import Decoder
from widestream.model.record import Exchanged

QUANTITIES = ("seen", "read", "written", "state", "read_gradient", "written_gradient", "state_gradient")

Moments = dict[str, list[float]]
"""By quantity, a number for each site; nan where there is none."""


def site_moments(exchanges: Sequence[Exchanged], out: Tensor, gradient: Tensor | None = None) -> Moments:
    """Second moments of everything that went through the exchanges of one forward pass.

    Args:
        exchanges: its exchanges, recorded with gradients enabled.
        out: what is differentiated.
        gradient: of the shape of `out`; default: `out` is a loss.
    """
    groups: dict[str, list[Sequence[Tensor]]] = {
        "read": [tuple(exchanged.inputs.values()) for exchanged in exchanges],
        "written": [exchanged.written for exchanged in exchanges],
        "state": [_floats(exchanged.state) for exchanged in exchanges],
    }
    moments = {name: [mean_square(tensors) for tensors in sites] for name, sites in groups.items()}
    moments["seen"] = [mean_square(exchanged.normed) for exchanged in exchanges]
    groups["state"] = [(exchanged.state,) if isinstance(exchanged.state, Tensor) else () for exchanged in exchanges]
    flat = [x for sites in groups.values() for tensors in sites for x in tensors]
    gradients = iter(torch.autograd.grad(out, flat, gradient, allow_unused=True))
    for name, sites in groups.items():
        moments[f"{name}_gradient"] = [
            mean_square([_or_zero(next(gradients), x) for x in tensors]) for tensors in sites
        ]
    return moments


def describe_sites(model: Decoder) -> dict[str, list[str]]:
    """Who has written and who reads at every site."""
    return {
        "writers": ["embedding", *(block.kind for block in model.layout)],
        "readers": list(model.stream.readers),
    }


def mean_square(tensors: Sequence[Tensor]) -> float:
    """Mean square of all numbers of some tensors; nan without any."""
    count = sum(x.numel() for x in tensors)
    total = math.fsum(x.detach().double().square().sum().item() for x in tensors)
    return total / count if count else math.nan


def _floats(state: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    """A tensor that nothing depends on has the gradient zero."""
    return torch.zeros_like(like) if gradient is None else gradient
