"""Small model configurations for tests."""

from typing import Any

from widestream.recipe import build
from widestream.recipe.model import ModelConfig

STREAMS: dict[str, dict[str, Any]] = {
    "vector": {"kind": "vector"},
    "matrix": {"kind": "matrix", "key_dim": 6},
}


def tiny(stream: str | dict[str, Any] = "vector", **changes: Any) -> ModelConfig:
    """Two layers, four heads of width 8, vocabulary 50, context 24."""
    values: dict[str, Any] = {
        "vocab_size": 50, "context": 24, "num_layers": 2, "num_heads": 4, "head_dim": 8, "mlp_dim": 40,
        "stream": STREAMS[stream] if isinstance(stream, str) else stream,
    }  # fmt: skip
    return build(ModelConfig, values | changes, "model")
