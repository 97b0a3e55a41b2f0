"""Text to tokens to batches: sources, tokenizers, shards with a manifest, and an order that keeps no state.

Everything here is imported on first use, so that reading a recipe needs neither torch nor tokenizers.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from widestream.data.batches import Batch, TrainBatches, eval_batches
    from widestream.data.store import TokenStore
    from widestream.data.tokenizer import load_tokenizer, resolve_tokenizer
    from widestream.data.tokenizer_base import Tokenizer

__all__ = [
    "Batch",
    "TokenStore",
    "Tokenizer",
    "TrainBatches",
    "eval_batches",
    "load_tokenizer",
    "resolve_tokenizer",
]

_HOMES = {
    "Batch": "batches",
    "TrainBatches": "batches",
    "eval_batches": "batches",
    "TokenStore": "store",
    "Tokenizer": "tokenizer_base",
    "load_tokenizer": "tokenizer",
    "resolve_tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
