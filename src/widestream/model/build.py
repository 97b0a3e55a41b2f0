"""From a configuration to an initialised model."""

import functools
import logging

import torch

from widestream.blocks.attention_kind import Attention
from widestream.blocks.roles import initialize
from widestream.model.decoder import Decoder
from widestream.model.depth import Depth
from widestream.recipe.model import ModelConfig
from widestream.streams import stream_class

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
    """
    model = meta_model(config, depth, attention).to_empty(device=device)
    initialize(model, seed)
    return model


def meta_model(config: ModelConfig, depth: Depth | None = None, attention: Attention = "sdpa") -> Decoder:
    """The model without memory for its weights, for counting.

    What its stream warns of is said, once in a process (on standard error by default).
    """
    for sentence in stream_class(config.stream.kind).warnings(config):
        _warn(sentence)
    with torch.device("meta"):
        return Decoder(config, depth, attention)


@functools.cache
def _warn(sentence: str) -> None:
    log.warning(sentence)
