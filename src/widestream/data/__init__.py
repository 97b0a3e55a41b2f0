"""Text to tokens to batches: sources, tokenizers, shards with a manifest, and an order that keeps no state.

Everything here is imported on first use, so that reading a recipe needs neither torch nor tokenizers.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from widestream.data.batches import Batch, TrainBatches, eval_batches
    from widestream.data.file_tokenizer import FileTokenizer
    from widestream.data.store import TokenStore
    from widestream.data.tokenizer import load_tokenizer, open_tokenizer, resolve_tokenizer
    from widestream.data.tokenizer_base import ByteTokenizer, Tokenizer

__all__ = [
    "Batch",
    "ByteTokenizer",
    "FileTokenizer",
    "TokenStore",
    "Tokenizer",
    "TrainBatches",
    "eval_batches",
    "load_tokenizer",
    "open_tokenizer",
    "resolve_tokenizer",
]

_HOMES = {
    "Batch": "batches",
    "ByteTokenizer": "tokenizer_base",
    "FileTokenizer": "file_tokenizer",
    "TokenStore": "store",
    "Tokenizer": "tokenizer_base",
    "TrainBatches": "batches",
    "eval_batches": "batches",
    "load_tokenizer": "tokenizer",
    "open_tokenizer": "tokenizer",
    "resolve_tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
