"""From a configuration to an initialised model."""

import torch

from widestream.blocks.roles import initialize
from widestream.model.decoder import Decoder
from widestream.recipe.model import ModelConfig


def build_model(config: ModelConfig, seed: int = 0, device: str | torch.device = "cpu") -> Decoder:
    """Build and initialise a model.

    Args:
        config: sizes and the stream.
        seed: of the initial weights, which depend on nothing else (not on the device).
        device: where the float32 weights are put.
    """
    with torch.device("meta"):
        model = Decoder(config)
    model = model.to_empty(device=device)
    initialize(model, seed)
    return model


def meta_model(config: ModelConfig) -> Decoder:
    """The model without memory for its weights, for counting."""
    with torch.device("meta"):
        return Decoder(config)
