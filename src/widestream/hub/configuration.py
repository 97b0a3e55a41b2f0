"""The configuration that transformers knows: the model's own, and the few names that tools look for."""

from dataclasses import replace
from typing import Any

from transformers import PretrainedConfig

from widestream.recipe.build import build, to_dict
from widestream.recipe.model import ModelConfig
from widestream.streams import stream_class

DERIVED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings",
)  # fmt: skip
"""What follows from the architecture, whatever a file says."""


class WidestreamConfig(PretrainedConfig):
    """A decoder with an exchangeable residual stream.

    Args:
        architecture: the `model` part of a recipe as nested dictionaries: all that is needed to build it. None: of no
            model, which transformers makes to compare with.
        kwargs: see `PretrainedConfig`.

    Raises:
        UserError: an architecture that is none, or of another version.
    """

    model_type = "widestream"
    keys_to_ignore_at_inference = ("past_key_values", "cache")

    def __init__(self, architecture: dict[str, Any] | None = None, **kwargs: Any):
        self.architecture = architecture
        own = {} if architecture is None else derived(self.model())
        kwargs.setdefault("tie_word_embeddings", False)  # a tied head is one parameter here
        super().__init__(**{name: value for name, value in kwargs.items() if name not in DERIVED})
        for name, value in own.items():
            setattr(self, name, value)

    def model(self) -> ModelConfig:
        """The package's own configuration. Documents are told apart: padding is one of them."""
        return replace(build(ModelConfig, self.architecture, "architecture", "config.json"), document_mask=True)

    @classmethod
    def of(cls, model: ModelConfig, **kwargs: Any) -> "WidestreamConfig":
        """From the package's own configuration."""
        return cls(architecture=to_dict(model), **kwargs)


def derived(model: ModelConfig) -> dict[str, int]:
    """What tools look for: sizes under transformers' names."""
    blocks = stream_class(model.stream.kind).blocks(model)
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.embed_dim,
        "intermediate_size": model.mlp_dim,
        "num_hidden_layers": sum(block.kind == "attention" for block in blocks),  # a cache has one layer for each
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.context,
    }
