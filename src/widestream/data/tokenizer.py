"""Tokenizers behind one small interface: the built-in bytes, and any `tokenizer.json`.

Text is only ever text: `<|endoftext|>` and its like, written out in a document, are encoded as ordinary characters.
The boundary id is put in front of documents by `prepare`, and by nobody else.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from widestream.data.manifest import TokenizerInfo, read_manifest
from widestream.errors import UserError
from widestream.files import write_atomic

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"
"""Name of the tokenizer in a prepared folder."""
BOUNDARY = "<|endoftext|>"
"""Boundary token of GPT-2 and of the tokenizers trained here."""
_BOUNDARIES = (BOUNDARY, "<|end_of_text|>", "<|begin_of_text|>", "</s>", "<s>", "<eos>", "<bos>", "[SEP]")


class Tokenizer(Protocol):
    """What the project needs of a tokenizer. All of them can be pickled, for the worker processes of `prepare`."""

    @property
    def kind(self) -> str:
        """byte, gpt2 or file."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""
        ...

    @property
    def boundary_id(self) -> int:
        """Id that stands in front of a document; no text is ever encoded to it."""
        ...

    @property
    def sha256(self) -> str:
        """Names the tokenizer: equal hashes give equal ids."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int64 [length], without a boundary."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; boundaries are left out, incomplete UTF-8 becomes U+FFFD."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `load_tokenizer` needs into a prepared folder."""
        ...


class ByteTokenizer:
    """The 256 bytes of UTF-8, and 256 for the boundary. Needs no file."""

    kind = "byte"
    vocab_size = 257
    boundary_id = 256
    sha256 = hashlib.sha256(b"widestream byte tokenizer: id = byte of UTF-8, boundary = 256").hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer`."""
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer`."""
        ids = [int(i) for i in ids]
        _check_ids(ids, self.vocab_size)
        return bytes(i for i in ids if i != self.boundary_id).decode(errors="replace")

    def save(self, folder: Path) -> None:
        """Nothing to write: the definition is built in."""


class FileTokenizer:
    """A `tokenizer.json` of the `tokenizers` library.

    What would change or lose text in silence is switched off: truncation, padding, BPE dropout, automatic special
    tokens, and the recognition of special tokens in text.
    """

    def __init__(self, content: bytes, name: str, kind: str = "file", boundary: str | None = None):
        """Load from the bytes of a tokenizer.json.

        Args:
            content: the file's bytes.
            name: what to call it in messages.
            kind: `file` or `gpt2`.
            boundary: the token to use as boundary. Default: the first that exists of <|endoftext|>, <|end_of_text|>,
                <|begin_of_text|>, </s>, <s>, <eos>, <bos>, [SEP].

        Raises:
            UserError: not a tokenizer.json, or no boundary token.
        """
        self.kind = kind
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._arguments = (content, name, kind, boundary)
        self._name = name
        raw = _parse_json(content, name)
        vocabulary = _vocabulary(raw)
        token = _find_boundary(vocabulary, raw, name, boundary)
        self._tokenizer = _build(raw, name, token)
        self.vocab_size = max(vocabulary.values()) + 1
        self.boundary_id = vocabulary[token]

    def __reduce__(self) -> tuple[type["FileTokenizer"], tuple[Any, ...]]:
        """Rebuilt from its bytes, because the library's own pickling forgets `encode_special_tokens`."""
        return FileTokenizer, self._arguments

    @property
    def content(self) -> bytes:
        """The bytes of tokenizer.json."""
        return self._arguments[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer`.

        Raises:
            UserError: the tokenizer turns ordinary text into its boundary id.
        """
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        if any((row == self.boundary_id).any() for row in ids):
            raise UserError(
                f"{self._name} encodes ordinary text as its boundary token {self.boundary_id}: "
                "name another token with --boundary."
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer`."""
        ids = [int(i) for i in ids]
        _check_ids(ids, self.vocab_size)
        return self._tokenizer.decode([i for i in ids if i != self.boundary_id], skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """See `Tokenizer`."""
        write_atomic(folder / TOKENIZER_FILE, self.content)


def _check_ids(ids: Sequence[int], vocab_size: int) -> None:
    for i in ids:
        if not 0 <= i < vocab_size:
            raise UserError(f"Token {i} lies outside the vocabulary of {vocab_size} ids: is this the right tokenizer?")


def _parse_json(content: bytes, name: str) -> dict[str, Any]:
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise UserError(f"{name} is not a tokenizer.json ({error}): give a file saved by `tokenizers`.") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("model"), dict):
        raise UserError(f"{name} is not a tokenizer.json (no `model` in it): give a file saved by `tokenizers`.")
    return raw


def _vocabulary(raw: dict[str, Any]) -> dict[str, int]:
    """All tokens and their ids, added ones included. Unigram models list [token, score], the others map to ids."""
    listed = raw["model"].get("vocab", {})
    ids = dict(listed) if isinstance(listed, dict) else {entry[0]: i for i, entry in enumerate(listed)}
    return ids | {token["content"]: token["id"] for token in raw.get("added_tokens") or []}


def _build(raw: dict[str, Any], name: str, boundary: str) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer as Library

    added = [
        {**token, "special": token["special"] or token["content"] == boundary}
        for token in raw.get("added_tokens") or []
    ]
    model = {**raw["model"], "dropout": None} if "dropout" in raw["model"] else raw["model"]
    plain = {**raw, "model": model, "added_tokens": added, "truncation": None, "padding": None}
    try:
        library = Library.from_str(json.dumps(plain))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{name} is not a tokenizer.json ({error}): give a file saved by `tokenizers`.") from error
    library.encode_special_tokens = True
    return library


def _find_boundary(vocabulary: dict[str, int], raw: dict[str, Any], name: str, boundary: str | None) -> str:
    if boundary is not None and boundary not in vocabulary:
        raise UserError(f"{name} has no token '{boundary}': give one it has with --boundary.")
    found = next((token for token in _BOUNDARIES if token in vocabulary), None) if boundary is None else boundary
    if found is None:
        special = [token["content"] for token in raw.get("added_tokens") or []]
        known = f"it has {', '.join(special[:10])}" if special else "it has no special tokens"
        raise UserError(f"{name} has no token known to end a document ({known}): name one with --boundary.")
    return found


def resolve_tokenizer(name: str, boundary: str | None = None) -> Tokenizer:
    """The tokenizer a user named.

    Args:
        name: `byte`, `gpt2`, or the path of a tokenizer.json (or of a folder that holds one).
        boundary: for a file, the token to use as boundary.

    Raises:
        UserError: no such file, not a tokenizer, or GPT-2's vocabulary cannot be found.
    """
    if name in ("byte", "gpt2") and boundary is not None:
        raise UserError(f"--boundary is for a tokenizer.json; the {name} tokenizer has its own: leave it out.")
    if name == "byte":
        return ByteTokenizer()
    if name == "gpt2":
        from widestream.data.gpt2 import gpt2_tokenizer

        return gpt2_tokenizer()
    path = Path(name) / TOKENIZER_FILE if Path(name).is_dir() else Path(name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"Cannot read the tokenizer {path} ({error.strerror}): give byte, gpt2, or the path of a tokenizer.json."
        ) from None
    return FileTokenizer(content, str(path), boundary=boundary)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a prepared folder, checked against its manifest.

    Raises:
        UserError: the folder is not prepared, or its tokenizer.json is missing or was altered.
    """
    return open_tokenizer(folder, read_manifest(folder).tokenizer)


def open_tokenizer(folder: str | Path, info: TokenizerInfo) -> Tokenizer:
    """The tokenizer whose file lies in a folder (prepared data, or a run), checked against what is known of it.

    Raises:
        UserError: its tokenizer.json is missing or was altered.
    """
    if info.kind == "byte":
        return ByteTokenizer()
    path = Path(folder) / TOKENIZER_FILE
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != info.sha256:
        state = "was altered" if content else "is missing"
        raise UserError(f"{path} {state}: copy the tokenizer there again, or prepare the data again with --overwrite.")
    vocabulary = _vocabulary(_parse_json(content, str(path)))
    boundary = next(token for token, i in vocabulary.items() if i == info.boundary_id)
    return FileTokenizer(content, str(path), kind=info.kind, boundary=boundary)
