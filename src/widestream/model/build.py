"""From a configuration to an initialised model."""

import functools
import logging

import torch

from widestream.blocks.attention_kind import Attention
from widestream.blocks.roles import initialize
from widestream.blocks.split import BlockSplit, TokenSplit
from widestream.errors import UserError
from widestream.machine import memory_errors, memory_total
from widestream.model.decoder import Decoder
from widestream.model.depth import Depth
from widestream.recipe.model import ModelConfig
from widestream.streams import stream_class

SMALLER = "lower model.num_layers, model.num_heads, model.mlp_dim, model.context or a size of model.stream"
"""How a model is made to need less memory."""

log = logging.getLogger(__name__)


def build_model(
    config: ModelConfig,
    seed: int = 0,
    device: str | torch.device = "cpu",
    *,
    depth: Depth | None = None,
    attention: Attention = "sdpa",
) -> Decoder:
    """Build and initialise a model.

    Args:
        config: sizes and the stream.
        seed: of the initial weights, which depend on nothing else (not on the device).
        device: where the float32 weights are put.
        depth: the way through the depth (`model.depth.plan_depth`); default: the plain loop, states saved by autograd.
        attention: what computes attention; see `blocks.attention_kind`.

    Raises:
        UserError: the device cannot hold it.
    """
    model = meta_model(config, depth, attention)
    require_room(torch.device(device), count_weights(model))
    with memory_errors("The model", SMALLER):
        model = model.to_empty(device=device)
        initialize(model, seed)
    return model


def count_weights(model: Decoder) -> int:
    """Numbers in all parameters of a model, which may be on the meta device."""
    return sum(parameter.numel() for parameter in model.parameters())


def require_room(device: torch.device, weights: int, copies: int = 1) -> None:
    """Make sure that a device can hold a model, before the system ends the process for trying.

    Args:
        device: it shall lie there.
        weights: their number.
        copies: numbers kept for every weight: 4 in training, which has a gradient and two moments of it.

    Raises:
        UserError: it cannot; says how much it would take.
    """
    size = copies * 4 * weights
    if device.type != "meta" and size > (room := memory_total(device)):
        what = "weights" if copies == 1 else "weights, gradients and moments"
        raise UserError(
            f"The model has {weights:,} parameters: its {what} take {size / 2**30:,.1f} GB, and {device} has "
            f"{room / 2**30:,.1f} GB of memory; {SMALLER}."
        )


def meta_model(
    config: ModelConfig,
    depth: Depth | None = None,
    attention: Attention = "sdpa",
    split: TokenSplit | None = None,
    block_split: BlockSplit | None = None,
) -> Decoder:
    """The model without memory for its weights, for counting.

    What its stream warns of is said, once in a process (on standard error by default).
    """
    for sentence in stream_class(config.stream.kind).warnings(config):
        warn_once(sentence)
    with torch.device("meta"), memory_errors("The model", SMALLER):  # sizes that no number holds
        return Decoder(config, depth, attention, split, block_split)


@functools.cache
def warn_once(sentence: str) -> None:
    """Say what a stream warns of, once in a process."""
    log.warning(sentence)
