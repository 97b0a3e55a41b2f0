"""Any `tokenizer.json` as a tokenizer: encoded by `tiktoken` where that gives the same ids, else by `tokenizers`."""

import hashlib
import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from widestream.data.fast_bpe import PROVED, FastBpe, Unsuited
from widestream.data.round_trip import NOTHING, Loss, RoundTrip, compare
from widestream.data.tokenizer_base import BOUNDARY, TOKENIZER_FILE, check_ids
from widestream.errors import UserError
from widestream.files import write_atomic

if TYPE_CHECKING:
    import tokenizers

_BOUNDARIES = (BOUNDARY, "<|end_of_text|>", "<|begin_of_text|>", "</s>", "<s>", "<eos>", "<bos>", "[SEP]")


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
        raw = parse_tokenizer(content, name)
        vocabulary = vocabulary_of(raw, name)
        self._boundary = _find_boundary(vocabulary, raw, name, boundary)
        self._tokenizer = _build(_without_surprises(raw, self._boundary), name)
        self.vocab_size = max(vocabulary.values()) + 1
        self.boundary_id = vocabulary[self._boundary]
        self._fast: FastBpe | Unsuited | None = None
        self._round_trip: RoundTrip | None = None
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple[type["FileTokenizer"], tuple[Any, ...]]:
        """Rebuilt from its bytes, because the library's own pickling forgets `encode_special_tokens`."""
        return FileTokenizer, self._arguments

    @property
    def content(self) -> bytes:
        """The bytes of tokenizer.json."""
        return self._arguments[0]

    @property
    def engine(self) -> str:
        """`tiktoken`, or `tokenizers` and in brackets why."""
        fast = self._open_fast()
        return f"tokenizers ({fast})" if isinstance(fast, Unsuited) else "tiktoken"

    def _open_fast(self) -> FastBpe | Unsuited:
        """The fast way, or why there is none. Found on first use: it takes a moment, and decoding does without it."""
        with self._opening:
            if self._fast is None:
                raw = _without_surprises(parse_tokenizer(self.content, self._name), self._boundary)
                try:
                    self._fast = FastBpe.open(raw, self._tokenizer, proved=self.sha256 in PROVED)
                except Unsuited as reason:
                    self._fast = reason
            return self._fast

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer`.

        Raises:
            UserError: the tokenizer turns ordinary text into its boundary id.
        """
        fast = self._open_fast()
        if isinstance(fast, FastBpe):
            ids = fast.encode_batch(texts)
        else:
            try:
                encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            except Exception as error:  # the library raises bare Exception
                raise UserError(f"{self._name} cannot encode the text ({error}): use another tokenizer.") from error
            ids = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        if any((row == self.boundary_id).any() for row in ids):
            raise UserError(
                f"{self._name} encodes ordinary text as its boundary token {self.boundary_id}: "
                "name another token with --boundary."
            )
        return ids

    def losses(self, texts: Sequence[str], ids: Sequence[np.ndarray], sampled: Sequence[bool]) -> list[Loss] | None:
        """See `Tokenizer`."""
        fast = self._open_fast()
        if isinstance(fast, Unsuited):
            return self._open_round_trip().losses(texts, ids, sampled)
        if not fast.composes:
            return None
        pairs = zip(texts, sampled, strict=True)
        return [compare(text, fast.composed(text)) if sample else NOTHING for text, sample in pairs]

    def _open_round_trip(self) -> RoundTrip:
        with self._opening:
            if self._round_trip is None:
                self._round_trip = RoundTrip(parse_tokenizer(self.content, self._name), self._tokenizer)
            return self._round_trip

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer`."""
        ids = [int(i) for i in ids]
        check_ids(ids, self.vocab_size)
        return self._tokenizer.decode([i for i in ids if i != self.boundary_id], skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """See `Tokenizer`."""
        write_atomic(folder / TOKENIZER_FILE, self.content)


def parse_tokenizer(content: bytes, name: str) -> dict[str, Any]:
    """The JSON of a tokenizer.json.

    Raises:
        UserError: it is none; the message calls it `name`.
    """
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not a tokenizer.json ({error}): give a file saved by `tokenizers`.") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("model"), dict):
        raise UserError(f"{name} is not a tokenizer.json (no `model` in it): give a file saved by `tokenizers`.")
    return raw


def vocabulary_of(raw: dict[str, Any], name: str) -> dict[str, int]:
    """All tokens and their ids, added ones included. Unigram models list [token, score], the others map to ids.

    Raises:
        UserError: there are none, or they are of other types; the message calls the file `name`.
    """
    try:
        listed = raw["model"].get("vocab", {})
        ids = dict(listed) if isinstance(listed, dict) else {entry[0]: i for i, entry in enumerate(listed)}
        ids |= {token["content"]: token["id"] for token in raw.get("added_tokens") or []}
        if ids and all(isinstance(token, str) and type(i) is int and 0 <= i < 1 << 32 for token, i in ids.items()):
            return ids
    except (AttributeError, IndexError, KeyError, TypeError):
        pass
    raise UserError(f"{name} is not a tokenizer.json (its vocabulary is none): give a file saved by `tokenizers`.")


def _without_surprises(raw: dict[str, Any], boundary: str) -> dict[str, Any]:
    """The same tokenizer without truncation, padding and dropout, its boundary a special token."""
    added = [
        {**token, "special": token.get("special") or token["content"] == boundary}
        for token in raw.get("added_tokens") or []
    ]
    model = {**raw["model"], "dropout": None} if "dropout" in raw["model"] else raw["model"]
    return {**raw, "model": model, "added_tokens": added, "truncation": None, "padding": None}


def _build(raw: dict[str, Any], name: str) -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer as Library

    try:
        library = Library.from_str(json.dumps(raw))
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
