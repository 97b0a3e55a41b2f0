"""Writing the shards of one split, so that a killed process can go on from its last recorded state."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from widestream.data.manifest import ShardInfo, SplitInfo, file_sha256
from widestream.data.round_trip import Loss
from widestream.data.sources import Document
from widestream.errors import UserError


@dataclass(kw_only=True, slots=True)
class SplitState:
    """What of a split is on disk. The files may hold more; what is not recorded here is cut off on resuming."""

    shards: list[ShardInfo] = field(default_factory=list)
    """Finished shards."""
    tokens: int = 0
    """Tokens in the open shard."""
    documents: int = 0
    """Documents in the open shard."""
    bytes: int = 0
    """Source bytes of the whole split so far."""
    characters: int = 0
    """Likewise, characters."""
    lost_characters: int = 0
    """Likewise, see `SplitInfo`."""
    changed_documents: int = 0
    """Likewise."""


class ShardWriter:
    """Appends documents to numbered shards. A shard ends with a document, before it would exceed `shard_tokens`."""

    def __init__(self, folder: Path, split: str, dtype: str, shard_tokens: int, state: SplitState):
        """Open the files of the current shard at their recorded lengths.

        Raises:
            UserError: files are shorter than recorded.
        """
        self.state = state
        self._folder, self._split = folder, split
        self._item_size, self._shard_tokens = np.dtype(dtype).itemsize, shard_tokens
        self._files: tuple[BinaryIO, BinaryIO] | None = None
        if state.documents:
            self._open(state.tokens * self._item_size, state.documents * 8)

    @property
    def _paths(self) -> tuple[Path, Path]:
        stem = f"{self._split}_{len(self.state.shards):05d}"
        return self._folder / f"{stem}.bin", self._folder / f"{stem}.idx"

    def _open(self, token_bytes: int, index_bytes: int) -> None:
        for path, length in zip(self._paths, (token_bytes, index_bytes), strict=True):
            path.touch()
            if path.stat().st_size < length:
                raise UserError(f"{path} is shorter than recorded: start again with --overwrite.")
            os.truncate(path, length)
        tokens, index = self._paths
        self._files = tokens.open("ab", buffering=1 << 20), index.open("ab", buffering=1 << 16)

    def add(self, tokens: np.ndarray, document: Document, loss: Loss) -> None:
        """Append one document, its boundary token first."""
        if self.state.documents and self.state.tokens + tokens.size > self._shard_tokens:
            self.end_shard()
        if self._files is None:
            self._open(0, 0)
        assert self._files is not None
        self._files[0].write(tokens.data)
        self._files[1].write(self.state.tokens.to_bytes(8, "little"))
        self.state.tokens += tokens.size
        self.state.documents += 1
        self.state.bytes += document.source_bytes
        self.state.characters += len(document.text)
        self.state.lost_characters += loss.characters
        self.state.changed_documents += loss.changed

    def flush(self) -> None:
        """Bring everything to disk: after this, `state` may be recorded."""
        for file in self._files or ():
            file.flush()
            os.fsync(file.fileno())

    def end_shard(self) -> None:
        """Finish the open shard, if there is one."""
        if self._files is None:
            return
        self.flush()
        tokens, index = self._paths
        self.close()
        self.state.shards.append(
            ShardInfo(
                file=tokens.name,
                tokens=self.state.tokens,
                documents=self.state.documents,
                sha256=file_sha256(tokens),
                index_sha256=file_sha256(index),
            )
        )
        self.state.tokens = self.state.documents = 0

    def close(self) -> None:
        """Close the files; what was not flushed may be lost."""
        files, self._files = self._files, None
        for file in files or ():
            file.close()

    def totals(self) -> SplitInfo:
        """Of the finished shards."""
        shards = tuple(self.state.shards)
        return SplitInfo(
            shards=shards,
            tokens=sum(shard.tokens for shard in shards),
            documents=sum(shard.documents for shard in shards),
            bytes=self.state.bytes,
            characters=self.state.characters,
            lost_characters=self.state.lost_characters,
            changed_documents=self.state.changed_documents,
        )
