"""A run's tokenizer as files of transformers: the same ids, and the boundary in front of every text, as in training."""

import json
from typing import Any

from widestream.data.fast_bpe import BYTE_SYMBOLS
from widestream.data.file_tokenizer import FileTokenizer
from widestream.data.tokenizer_base import BOUNDARY, Tokenizer


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """Contents of tokenizer.json and tokenizer_config.json.

    Text is only ever text, as in training: a boundary token that is written out in it is not taken for one
    (`split_special_tokens`).
    """
    raw = json.loads(tokenizer.content) if isinstance(tokenizer, FileTokenizer) else _bytes(tokenizer.boundary_id)
    names = {token["id"]: token["content"] for token in raw.get("added_tokens") or []}
    boundary = names.get(tokenizer.boundary_id) or _token(raw, tokenizer.boundary_id)
    raw["added_tokens"] = [
        *(token for token in raw.get("added_tokens") or [] if token["id"] != tokenizer.boundary_id),
        _special(tokenizer.boundary_id, boundary),
    ]
    raw["added_tokens"].sort(key=lambda token: token["id"])
    first = {"SpecialToken": {"id": boundary, "type_id": 0}}
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {boundary: {"id": boundary, "ids": [tokenizer.boundary_id], "tokens": [boundary]}},
    }
    raw |= {"truncation": None, "padding": None}
    if "dropout" in raw["model"]:
        raw["model"]["dropout"] = None
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), boundary),
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return {
        "tokenizer.json": json.dumps(raw, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2),
    }


def _bytes(boundary_id: int) -> dict[str, Any]:
    """The byte tokenizer: a symbol for each byte, and nothing to merge."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "vocab": dict(BYTE_SYMBOLS), "merges": []}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": level,
        "decoder": level, "added_tokens": [_special(boundary_id, BOUNDARY)], "model": model,
    }  # fmt: skip


def _special(number: int, content: str) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **plain, "special": True}


def _token(raw: dict[str, Any], number: int) -> str:
    vocabulary = raw["model"]["vocab"]
    if isinstance(vocabulary, list):
        return vocabulary[number][0]
    return next(token for token, i in vocabulary.items() if i == number)
