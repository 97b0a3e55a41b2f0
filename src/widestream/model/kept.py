"""Bytes that autograd keeps for the backward pass: measured at a model's own depth, or told from shallower models.

A forward pass of tensors without contents takes a few hundredths of a second a layer, and those of a deep model's
history more. What is kept is a polynomial of the depth, of second order where a history is read: so a deep model is
measured at a few small depths, and told from these. Where one more depth shows that this is not so, the figure is about
right only, and says so.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from widestream.model.decoder import Decoder
from widestream.model.depth import Depth, Rebuilt
from widestream.recipe.model import ModelConfig
from widestream.streams import stream_class
from widestream.streams.base import anchor_sites

MEASURED = 24
"""Layers up to which a model is measured itself."""
SHALLOWEST = 3
"""Layers of the shallowest model that a deep one is told from; from there on no layer is the first or the last."""
PATTERN = 4
"""Layers or blocks that a setting may count for a few shallow models to show what it does."""


class Kept(NamedTuple):
    """Bytes per token."""

    bytes: int
    """How many."""
    exact: bool
    """Whether a forward pass keeps just these; else it is about as many."""


def kept_bytes(config: ModelConfig, precision: str, depth: Depth | None = None) -> Kept:
    """What a second window adds to what autograd keeps; that leaves out weights and their copies in lower precision.

    Args:
        config: the model's.
        precision: `float32`, or `bf16` under autocast.
        depth: the way through the depth, as `plan_depth` gives it for this model.
    """

    @cache
    def at(layers: int, anchors: int | None = None) -> int:
        way = depth if anchors is None else replace(depth, anchors=anchors)  # pyright: ignore[reportArgumentType]
        return _measure(replace(config, num_layers=layers), precision, way)

    if config.num_layers <= MEASURED:
        return Kept(at(config.num_layers) // config.context, True)
    if isinstance(depth, Rebuilt) and depth.anchors:
        return Kept(_replayed(at, config, depth.anchors) // config.context, False)
    found, agrees = told_by_depth(at, config)
    return Kept(found // config.context, agrees and _counted(config) <= PATTERN)


def _counted(config: ModelConfig) -> int:
    """Most layers or blocks that a setting of the stream or of the blocks counts."""
    names = stream_class(config.stream.kind).depth_settings
    of_blocks = config.full_attention_every, config.rotary_skip_every, config.moe.every if config.moe.every > 1 else 0
    return max(*(getattr(config.stream, name) or 0 for name in names), *(number or 0 for number in of_blocks))


def told_by_depth(at: Callable[[int], int], config: ModelConfig) -> tuple[int, bool]:
    """Bytes at a model's own depth, told from shallower ones, and whether one more of these agrees.

    Args:
        at: measures a model of so many layers.
        config: the model's.
    """
    layers, counted = config.num_layers, _counted(config)
    for period in range(1, PATTERN + 1) if counted else (1,):
        first = max(SHALLOWEST, min(counted, PATTERN) + 1)
        first += (layers - first) % period
        if _told(at, first, period, first + 3 * period) == at(first + 3 * period):
            return _told(at, first, period, layers), True
    return _told(at, SHALLOWEST, 1, layers), False


def _replayed(at: Callable[[int, int], int], config: ModelConfig, anchors: int) -> int:
    """About as many bytes where states are replayed: every anchor keeps a state, the last one the history before it."""

    def last(layers: int, number: int) -> int:
        writes = len(stream_class(config.stream.kind).blocks(replace(config, num_layers=layers)))
        return anchor_sites(writes, number)[-1]

    without, _ = told_by_depth(lambda layers: at(layers, 0), config)
    a_layer = len(stream_class(config.stream.kind).blocks(replace(config, num_layers=1)))
    layers = -(-12 // a_layer)  # of 12 writes, up to three anchors lie behind 6; 4, 8; 3, 6, 9
    one, two, three = (at(layers, number) for number in (1, 2, 3))
    sites = [last(layers, number) for number in (1, 2, 3)]
    a_site = ((two - one) - (three - two)) // ((sites[1] - sites[0]) - (sites[2] - sites[1]))
    an_anchor = two - one - a_site * (sites[1] - sites[0])
    always = one - at(layers, 0) - an_anchor - a_site * sites[0]
    return without + always + an_anchor * anchors + a_site * last(config.num_layers, anchors)


def _told(at: Callable[[int], int], first: int, period: int, layers: int) -> int:
    """The polynomial of second order through three depths, at another one (Newton's forward differences)."""
    a, b, c = (at(first + n * period) for n in range(3))
    n = (layers - first) // period
    return a + n * (b - a) + n * (n - 1) // 2 * (c - 2 * b + a)


def _measure(config: ModelConfig, precision: str, depth: Depth | None) -> int:
    with FakeTensorMode(), torch.device("cpu"):
        model = Decoder(config, depth)
        one, two = (_kept_by(model, windows, precision) for windows in (1, 2))
    return two - one


def _kept_by(model: Decoder, windows: int, precision: str) -> int:
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    tokens = torch.empty(windows, model.config.context, dtype=torch.int64)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        hidden = model(tokens, torch.zeros_like(tokens))
    assert hidden.requires_grad  # alive until here, and with it everything kept
    return sum(kept.values())
