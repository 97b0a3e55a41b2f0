"""Read access to a prepared split: memory-mapped tokens and the documents they belong to."""

import functools
import os
import stat
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from widestream.data.manifest import Manifest, ShardInfo, file_sha256, index_of, read_manifest
from widestream.data.mapping import map_file
from widestream.data.names import shown
from widestream.data.remote import fetch, is_remote, local_folder
from widestream.data.stamps import Stamps, stamp_of
from widestream.errors import UserError

_MOST_MAPPED = 8192
"""Shards of a split that are mapped at a time. Each is two mappings, and Linux lets a process have 65,530 of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shard:
    """One shard, mapped. A document never lies in two shards, so `starts[0]` is 0."""

    tokens: np.ndarray
    """[tokens], uint16 or uint32."""
    starts: np.ndarray
    """[documents], uint64: where each document begins, counted from the start of the shard."""


class TokenStore:
    """The tokens of one split as one long row, with the boundaries of its documents. Shards are mapped as needed.

    Attributes:
        folder: the prepared folder; for data behind a URL the one that stands for it here.
        split: name of the split.
        tokens: number of tokens, boundary tokens included.
        documents: number of documents.
        source_bytes: UTF-8 bytes of the source text.
        is_exact: whether the tokens tell all of that text; if not, bits per byte mean nothing.
        vocab_size: number of ids; every token is below it.
        boundary_id: id stored in front of every document.
        fingerprint: SHA-256 that names the tokens and the tokenizer.
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest):
        info = manifest.splits[split]
        self.folder = folder
        self.split = split
        self.tokens = info.tokens
        self.documents = info.documents
        self.source_bytes = info.bytes
        self.is_exact = info.is_exact
        self.vocab_size = manifest.tokenizer.vocab_size
        self.boundary_id = manifest.tokenizer.boundary_id
        self.fingerprint = manifest.fingerprint(split)
        self._dtype = manifest.dtype
        self._remote = {shard.file: shard for shard in info.shards} if is_remote(folder) else {}
        self._files = [shard.file for shard in info.shards]  # all that stays of very many shards, and two numbers each
        self._first_token = np.cumsum([0, *(shard.tokens for shard in info.shards)], dtype=np.int64)
        self._first_document = np.cumsum([0, *(shard.documents for shard in info.shards)], dtype=np.int64)
        # Weak, so that no circle keeps shards mapped, and their pages in memory, when nobody needs the store any more.
        self._shard = functools.lru_cache(_MOST_MAPPED)(functools.partial(TokenStore._map, weakref.proxy(self)))

    @classmethod
    def open(cls, path: str | Path, split: str, verify: bool = False) -> "TokenStore":
        """Map a split of a prepared folder. Sizes are always checked.

        Args:
            path: folder written by `widestream data prepare`, or the URL of one: its shards are fetched and checked as
                they are needed.
            split: `train` or `heldout`.
            verify: also read every byte: hashes, document starts, and that every token lies in the vocabulary. See
                `verify_changed` for starts of a run.

        Raises:
            UserError: the folder, the split or a shard is missing, or a shard is not what the manifest says.
        """
        folder = local_folder(path)
        manifest = read_manifest(folder)
        info = manifest.split(split, folder)
        store = cls(folder, split, manifest)
        if not store._remote:
            check_sizes(folder, info.shards, manifest.dtype)
        if verify:
            for number, shard in enumerate(info.shards):
                _verify_shard(folder, store._map(number), shard, manifest)
        return store

    def verify_changed(self, part: int = 0, parts: int = 1) -> int:
        """Read through, as `verify` of `open` does, what was not read through as it is now (`stamps.py`).

        Shards behind a URL that were not fetched yet are left alone.

        Args:
            part: of the shards, every `parts`-th from this one on: processes share the work.
            parts: how many there are.

        Returns:
            How many shards were read.

        Raises:
            UserError: a shard is not what the manifest says.
        """
        manifest, stamps, read = read_manifest(self.folder), Stamps(self.folder, f"-{self.split}-{part}-{parts}"), 0
        shards = manifest.splits[self.split].shards
        for number in range(part, len(shards), parts):
            shard = shards[number]
            files = {shard.file: shard.sha256, shard.index_file: shard.index_sha256}
            if self._remote and not all((self.folder / file).exists() for file in files):
                continue  # it is checked when it is fetched
            if all(stamps.holds(file, sha256) for file, sha256 in files.items()):
                continue
            before = {file: stamp_of(self.folder / file) for file in files}
            _verify_shard(self.folder, self._map(number), shard, manifest)
            for file, sha256 in files.items():
                stamps.remember(file, sha256, before[file])
            read += 1
        stamps.save()
        return read

    def _map(self, number: int) -> _Shard:
        file = self._files[number]
        tokens = int(self._first_token[number + 1] - self._first_token[number])
        documents = int(self._first_document[number + 1] - self._first_document[number])
        is_new = self._fetch(self._remote[file]) if self._remote else False
        shard = _Shard(
            tokens=_map_file(self.folder / file, self._dtype, tokens),
            starts=_map_file(self.folder / index_of(file), "uint64", documents),
        )
        if is_new:
            _check_content(self.folder / file, shard, self.boundary_id, self.vocab_size)
        return shard

    def _fetch(self, shard: ShardInfo) -> bool:
        """Bring a shard here; whether anything of it was not here."""
        files = {shard.file: shard.sha256, shard.index_file: shard.index_sha256}
        return any([fetch(self.folder, file, sha256) for file, sha256 in files.items()])

    def _pieces(self, start: int, length: int) -> Iterator[tuple[_Shard, int, int]]:
        """The parts of [start, start + length) by shard: (shard, first token in it, one past the last)."""
        assert 0 <= start <= start + length <= self.tokens, (start, length, self.tokens)
        index, end = int(self._first_token.searchsorted(start, "right")) - 1, start + length
        while start < end:
            base = int(self._first_token[index])
            stop = min(end, int(self._first_token[index + 1]))
            yield self._shard(index), start - base, stop - base
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
        number = int(self._first_document.searchsorted(index, "right")) - 1
        shard, place = self._shard(number), index - int(self._first_document[number])
        end = shard.starts[place + 1] if place + 1 < shard.starts.size else shard.tokens.size
        return shard.tokens[int(shard.starts[place]) + 1 : int(end)].astype(np.int64)


def _broken(path: str | Path, reason: str) -> UserError:
    if is_remote(Path(path).parent):
        return UserError(f"{shown(path)} {reason}: remove it, and it is fetched again.")
    return UserError(f"{shown(path)} {reason}: prepare the data again with --overwrite, or copy the folder again.")


def check_sizes(folder: Path, shards: Iterable[ShardInfo], dtype: str) -> None:
    """Make sure that the files of shards are there, and as long as they should be.

    Raises:
        UserError: one is not.
    """
    for shard in shards:
        _check_size(folder, shard.file, dtype, shard.tokens)
        _check_size(folder, shard.index_file, "uint64", shard.documents)


def _check_size(folder: Path, file: str, dtype: str, count: int) -> None:
    path = f"{folder}/{file}"  # a Path costs more than asking the system
    try:
        status = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        raise _broken(path, "is missing") from None
    except OSError as error:  # such as a link to itself
        raise _broken(path, f"cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        raise _broken(path, "is no file")
    if status.st_size != (expected := count * _item_size(dtype)):
        raise _broken(path, f"has {status.st_size} bytes, its manifest says {expected}")


@functools.cache
def _item_size(dtype: str) -> int:
    return np.dtype(dtype).itemsize


def _map_file(path: Path, dtype: str, count: int) -> np.ndarray:
    try:
        array = map_file(path, dtype)
    except OSError as error:  # it was taken away, or emptied, since its size was checked
        raise _broken(path, f"cannot be read ({error.strerror})") from error
    if array.size != count:
        raise _broken(path, f"holds {array.size} numbers, its manifest says {count}")
    return array


def _verify_shard(folder: Path, shard: _Shard, info: ShardInfo, manifest: Manifest) -> None:
    path, index = folder / info.file, folder / info.index_file
    for file, expected in ((path, info.sha256), (index, info.index_sha256)):
        if (found := file_sha256(file)) != expected:
            raise _broken(file, f"was altered (its SHA-256 is {found[:12]}..., its manifest says {expected[:12]}...)")
    _check_content(path, shard, manifest.tokenizer.boundary_id, manifest.tokenizer.vocab_size)


def _check_content(path: Path, shard: _Shard, boundary_id: int, vocab_size: int) -> None:
    """Make sure that what a shard holds can be what it should."""
    starts = shard.starts.astype(np.int64)
    if starts[0] != 0 or (np.diff(starts) <= 0).any() or starts[-1] >= shard.tokens.size:
        raise _broken(path.with_name(index_of(path.name)), "holds document starts that are not in order")
    if (shard.tokens[starts] != boundary_id).any():
        raise _broken(path, "has documents that do not begin with the boundary token")
    if (largest := int(shard.tokens.max())) >= vocab_size:
        raise _broken(path, f"holds token {largest}, but the vocabulary has {vocab_size} ids")
