"""Small models around a stream, for the checks of this package."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from widestream.model.build import build_model
from widestream.model.decoder import Decoder
from widestream.model.depth import Depth
from widestream.recipe import build
from widestream.recipe.model import ModelConfig

Fields = dict[str, Any]
"""Part of a recipe."""

SIZES: Fields = {"vocab_size": 50, "context": 24, "num_layers": 3, "num_heads": 4, "head_dim": 8, "mlp_dim": 40}
"""The small model around a stream."""


def small_config(stream: Fields, changes: Fields) -> ModelConfig:
    """The configuration of a small model with `stream`."""
    return build(ModelConfig, SIZES | {"stream": stream} | changes, "model")


def random_model(stream: Fields, changes: Fields) -> Decoder:
    """A small model whose stream parameters have all left their initial values: at those many designs are plain."""
    model = build_model(small_config(stream, changes), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.stream.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def copy_of(model: Decoder, depth: Depth | None = None, dtype: torch.dtype = torch.float32) -> Decoder:
    """A model with the same weights that goes another way through its depth.

    Args:
        model: what is copied.
        depth: the way; default: the plain loop.
        dtype: of the copy's weights. In float64 attention, too, is computed in it.
    """
    exact = dtype == torch.float64
    config = dataclasses.replace(model.config, upcast_attention=False) if exact else model.config
    copy = build_model(config, depth=depth)
    copy.load_state_dict(model.state_dict())
    return copy.to(dtype)


def without_positions(changes: Fields) -> Fields:
    """The same changes for a model without positions, whose rotary settings would have nothing to act on."""
    return {name: value for name, value in changes.items() if not name.startswith("rotary_")} | {"positions": "none"}


def tokens_of(rows: int, length: int, seed: int = 0) -> Tensor:
    """Random tokens [rows, length]."""
    return torch.randint(SIZES["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))
