"""Read access to a prepared split: memory-mapped tokens and the documents they belong to."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from widestream.data.manifest import MANIFEST, Manifest, ShardInfo, file_sha256, read_manifest
from widestream.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shard:
    """One shard, mapped. A document never lies in two shards, so `starts[0]` is 0."""

    path: Path
    tokens: np.ndarray
    """[tokens], uint16 or uint32."""
    starts: np.ndarray
    """[documents], uint64: where each document begins, counted from the start of the shard."""


class TokenStore:
    """The tokens of one split as one long row, with the boundaries of its documents.

    Attributes:
        folder: the prepared folder.
        split: name of the split.
        tokens: number of tokens, boundary tokens included.
        documents: number of documents.
        source_bytes: UTF-8 bytes of the source text.
        vocab_size: number of ids; every token is below it.
        boundary_id: id stored in front of every document.
        fingerprint: SHA-256 that names the tokens and the tokenizer.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest, shards: tuple[_Shard, ...]):
        info = manifest.splits[split]
        self.folder = folder
        self.split = split
        self.tokens = info.tokens
        self.documents = info.documents
        self.source_bytes = info.bytes
        self.vocab_size = manifest.tokenizer.vocab_size
        self.boundary_id = manifest.tokenizer.boundary_id
        self.fingerprint = manifest.fingerprint(split)
        self._shards = shards
        self._first_token = np.cumsum([0, *(shard.tokens.size for shard in shards)]).tolist()
        self._first_document = np.cumsum([0, *(shard.starts.size for shard in shards)]).tolist()

    @classmethod
    def open(cls, path: str | Path, split: str, verify: bool = False) -> "TokenStore":
        """Map a split of a prepared folder. Sizes are always checked.

        Args:
            path: folder written by `widestream data prepare`.
            split: `train` or `heldout`.
            verify: also read every byte: hashes, document starts, and that every token lies in the vocabulary.

        Raises:
            UserError: the folder, the split or a shard is missing, or a shard is not what the manifest says.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        info = manifest.split(split, folder)
        shards = tuple(
            _Shard(
                path=folder / shard.file,
                tokens=_map_file(folder / shard.file, manifest.dtype, shard.tokens),
                starts=_map_file(folder / shard.index_file, "uint64", shard.documents),
            )
            for shard in info.shards
        )
        sums = sum(shard.tokens for shard in info.shards), sum(shard.documents for shard in info.shards)
        if sums != (info.tokens, info.documents):
            raise _broken(folder / MANIFEST, f"is damaged (the shards of '{split}' do not add up to its totals)")
        if verify:
            for shard, described in zip(shards, info.shards, strict=True):
                _verify_shard(shard, described, manifest)
        return cls(folder, split, manifest, shards)

    def _pieces(self, start: int, length: int) -> Iterator[tuple[_Shard, int, int]]:
        """The parts of [start, start + length) by shard: (shard, first token in it, one past the last)."""
        assert 0 <= start <= start + length <= self.tokens, (start, length, self.tokens)
        index, end = bisect_right(self._first_token, start) - 1, start + length
        while start < end:
            base = self._first_token[index]
            stop = min(end, self._first_token[index + 1])
            yield self._shards[index], start - base, stop - base
            start, index = stop, index + 1

    def window(self, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [start, start + length) and the document each belongs to.

        Returns:
            tokens int64 [length]; segments int32 [length], counted from 0 at the window's first document. Segments
            come from the recorded document starts, never from token ids, so a document of one token stays apart.
        """
        tokens = np.empty(length, dtype=np.int64)
        begins = np.zeros(length, dtype=np.int32)
        filled = 0
        for shard, first, stop in self._pieces(start, length):
            tokens[filled : filled + stop - first] = shard.tokens[first:stop]
            low, high = np.searchsorted(shard.starts, np.array((first, stop), dtype=np.uint64))
            begins[shard.starts[low:high].astype(np.int64) - first + filled] = 1
            filled += stop - first
        begins[:1] = 0
        return tokens, np.cumsum(begins, dtype=np.int32)

    def document(self, index: int) -> np.ndarray:
        """Tokens of one document without its boundary, int64."""
        shard_index = bisect_right(self._first_document, index) - 1
        shard, place = self._shards[shard_index], index - self._first_document[shard_index]
        end = shard.starts[place + 1] if place + 1 < shard.starts.size else shard.tokens.size
        return shard.tokens[int(shard.starts[place]) + 1 : int(end)].astype(np.int64)


def _broken(path: Path, reason: str) -> UserError:
    return UserError(f"{path} {reason}: prepare the data again with --overwrite, or copy the folder again.")


def _map_file(path: Path, dtype: str, count: int) -> np.ndarray:
    kind = np.dtype(dtype).newbyteorder("<")
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise _broken(path, "is missing") from None
    if size != count * kind.itemsize:
        raise _broken(path, f"has {size} bytes, its manifest says {count * kind.itemsize}")
    return np.asarray(np.memmap(path, dtype=kind, mode="r"))


def _verify_shard(shard: _Shard, info: ShardInfo, manifest: Manifest) -> None:
    for path, expected in ((shard.path, info.sha256), (shard.path.with_name(info.index_file), info.index_sha256)):
        if (found := file_sha256(path)) != expected:
            raise _broken(path, f"was altered (its SHA-256 is {found[:12]}..., its manifest says {expected[:12]}...)")
    starts = shard.starts.astype(np.int64)
    if starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= shard.tokens.size:
        raise _broken(shard.path.with_name(info.index_file), "holds document starts that are not in order")
    if (shard.tokens[starts] != manifest.tokenizer.boundary_id).any():
        raise _broken(shard.path, "has documents that do not begin with the boundary token")
    if (largest := int(shard.tokens.max())) >= manifest.tokenizer.vocab_size:
        raise _broken(shard.path, f"holds token {largest}, but the vocabulary has {manifest.tokenizer.vocab_size} ids")
