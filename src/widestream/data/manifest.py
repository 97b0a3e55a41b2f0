"""manifest.json: what a prepared folder holds. The folder is complete if and only if this file is there."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from widestream.data.folders import PassedOver
from widestream.data.names import MANIFEST, shown
from widestream.data.remote import local_folder
from widestream.errors import UserError
from widestream.files import read_bounded
from widestream.recipe.build import build

FORMAT = 1
"""Version of the folder's layout; a reader refuses any other."""
LARGEST = 256 << 20
"""Bytes of a manifest, which has a line for every file that was read."""
MOST_NOTED = 100
"""Bad records that are noted one by one."""
_SHARD = re.compile(r"[a-z]+_\d{5,}\.bin")
_HASH = re.compile(r"[0-9a-f]{64}")
_OF_TOKENS = ("shards", "tokens", "documents", "bytes")
"""What of a split a fingerprint is of."""


def index_of(file: str) -> str:
    """Name of the file of document starts that belongs to a file of tokens."""
    return file.removesuffix(".bin") + ".idx"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerInfo:
    """Which tokenizer made the tokens."""

    kind: str
    """byte, gpt2 or file."""
    sha256: str
    """Hash of tokenizer.json (for the byte tokenizer, of its definition)."""
    vocab_size: int
    """Number of ids; every token is below it."""
    boundary_id: int
    """Id stored in front of every document."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One shard: FILE (tokens) and the file of the same name that ends in .idx (document starts)."""

    file: str
    """Name of the token file, in the folder."""
    tokens: int
    """Number of tokens, boundaries included."""
    documents: int
    """Number of documents; none lies in two shards."""
    sha256: str
    """Hash of the token file."""
    index_sha256: str
    """Hash of the file of document starts."""

    @property
    def index_file(self) -> str:
        """Name of the file of document starts."""
        return index_of(self.file)


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitInfo:
    """One split, train, heldout or test."""

    shards: tuple[ShardInfo, ...]
    """In order; windows run on from one to the next."""
    tokens: int
    """Number of tokens, boundaries included."""
    documents: int
    """Number of documents."""
    bytes: int
    """UTF-8 bytes of the source text: the denominator of bits per byte."""
    characters: int = 0
    """Characters of the source text; 0 if unknown."""
    lost_characters: int = 0
    """Characters of which the tokens tell nothing; see `round_trip.py`."""
    changed_documents: int = 0
    """Documents, of those looked at, that the tokens tell otherwise: in small letters, without line ends, in parts."""

    @property
    def is_exact(self) -> bool:
        """Whether the tokens tell all of the text; if not, bits per byte of it mean nothing."""
        return self.lost_characters == self.changed_documents == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FileInfo:
    """One file or data set that was read."""

    path: str
    """Where it was."""
    split: str | None
    """The split of all its documents by its name; None: the documents' own, or drawn."""
    bytes: int | None
    """Bytes on disk; None if unknown."""


@dataclass(kw_only=True, slots=True)
class Skipped:
    """Bad records that were passed over."""

    records: int = 0
    """Their number; of text files, of the lines that were left out."""
    first: list[str] = field(default_factory=list)
    """The first `MOST_NOTED`: where each was, and why."""

    def note(self, problem: str, records: int) -> None:
        """Count some more, if there are any."""
        self.records += records
        if records and len(self.first) < MOST_NOTED:
            self.first.append(problem)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """All of manifest.json."""

    format: int
    """Always `FORMAT`."""
    tokenizer: TokenizerInfo
    """Which tokenizer made the tokens."""
    dtype: str
    """uint16 or uint32, little-endian."""
    settings: dict[str, Any]
    """The options of `prepare` that shape the result."""
    sources: tuple[dict[str, Any], ...]
    """What was read, one entry a path given."""
    empty_documents: int
    """Documents without any text; they were dropped."""
    splits: dict[str, SplitInfo]
    """By name."""
    files: tuple[FileInfo, ...] = ()
    """Every file that was read, in order."""
    passed_over: tuple[PassedOver, ...] = ()
    """What lay in folders and was not read."""
    skipped: Skipped = field(default_factory=Skipped)
    """Records that were passed over."""

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def split(self, name: str, folder: Path) -> SplitInfo:
        """The split `name`.

        Raises:
            UserError: there is none; the message lists those there are.
        """
        if name not in self.splits:
            raise UserError(
                f"{shown(folder)} has no split '{name}'; it has {', '.join(self.splits)}: name one of them with "
                "data.heldout_split, or train without evaluation by data.heldout_split=none."
            )
        return self.splits[name]

    def fingerprint(self, split: str) -> str:
        """SHA-256 over one split and the tokenizer: equal exactly when the tokens and their meaning are."""
        tokens = {key: getattr(self.splits[split], key) for key in _OF_TOKENS}
        content = {"tokenizer": self.tokenizer, "dtype": self.dtype, "split": tokens}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=_flat).encode()).hexdigest()


def _flat(part: Any) -> dict[str, Any]:
    """What `asdict` makes of a dataclass without inner ones, in a fifth of the time."""
    return {name: getattr(part, name) for name in part.__dataclass_fields__}


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a prepared folder.

    Args:
        folder: where it lies, or a URL, see `local_folder`.

    Raises:
        UserError: the folder or its manifest is missing, damaged, or of another format.
    """
    path = local_folder(folder) / MANIFEST
    if not path.exists():
        raise UserError(
            f"{shown(folder)} holds no prepared data ({MANIFEST} is missing): "
            f"make it with `widestream data prepare PATH --out {shown(folder)} --tokenizer byte`."
        )
    if not path.is_file():
        raise UserError(f"{shown(path)} is no file: prepare the data again with --overwrite.")
    try:
        raw = json.loads(read_bounded(path, LARGEST))
    except OSError as error:
        raise UserError(f"Cannot read {shown(path)} ({error.strerror}): check its rights.") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != FORMAT:
        raise UserError(
            f"{shown(path)} has format {str(version)[:40]}, this version of widestream reads format {FORMAT}: "
            "prepare the data again."
        )
    try:
        manifest = build(Manifest, raw, "", "manifest")
    except UserError as error:
        raise _damaged(path, error) from error
    if fault := _fault(manifest):
        raise _damaged(path, fault)
    return manifest


def _damaged(path: Path, reason: object) -> UserError:
    text = str(reason).removesuffix(".")
    text = text if len(text) <= 200 else f"{text[:200]}..."
    return UserError(f"{shown(path)} is damaged ({text}): prepare the data again with --overwrite.")


def _fault(manifest: Manifest) -> str | None:
    """What is impossible in a manifest of the right types: it would fail later, or lead out of the folder."""
    tokenizer = manifest.tokenizer
    if not 0 <= tokenizer.boundary_id < tokenizer.vocab_size <= 1 << 32:
        return "its boundary_id is no id of its vocabulary"
    if manifest.dtype not in ("uint16", "uint32"):
        return f"dtype is {manifest.dtype!r}"
    if not manifest.splits and not manifest.settings.get("part"):  # a part may hold no text
        return "it has no split"
    for name, split in manifest.splits.items():
        shards = split.shards
        if not shards or split.bytes < 1 or min(split.characters, split.lost_characters, split.changed_documents) < 0:
            return f"the numbers of the split {name!r} are impossible"
        for shard in shards:
            if not _SHARD.fullmatch(shard.file):
                return f"{shard.file!r} is no name of a shard"
            if not 1 <= shard.documents <= shard.tokens:
                return f"the numbers of {shard.file} are impossible"
            if not _HASH.fullmatch(shard.sha256) or not _HASH.fullmatch(shard.index_sha256):
                return f"a hash of {shard.file} is none"
        if len({shard.file for shard in shards}) < len(shards):
            return f"the split {name!r} names a shard twice"
        if sum(shard.tokens for shard in shards) != split.tokens:
            return f"the shards of '{name}' do not add up to its tokens"
        if sum(shard.documents for shard in shards) != split.documents:
            return f"the shards of '{name}' do not add up to its documents"
    return None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
