"""manifest.json: what a prepared folder holds. The folder is complete if and only if this file is there."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from widestream.errors import UserError
from widestream.recipe.build import build

FORMAT = 1
"""Version of the folder's layout; a reader refuses any other."""
MANIFEST = "manifest.json"
"""Name of the file."""


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
        return Path(self.file).with_suffix(".idx").name


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitInfo:
    """One split, train or heldout."""

    shards: tuple[ShardInfo, ...]
    """In order; windows run on from one to the next."""
    tokens: int
    """Number of tokens, boundaries included."""
    documents: int
    """Number of documents."""
    bytes: int
    """UTF-8 bytes of the source text: the denominator of bits per byte."""


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

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def split(self, name: str, folder: Path) -> SplitInfo:
        """The split `name`.

        Raises:
            UserError: there is none; the message lists those there are.
        """
        if name not in self.splits:
            raise UserError(f"{folder} has no split '{name}'; it has {', '.join(self.splits)}.")
        return self.splits[name]

    def fingerprint(self, split: str) -> str:
        """SHA-256 over one split and the tokenizer: equal exactly when the tokens and their meaning are."""
        content = {"tokenizer": asdict(self.tokenizer), "dtype": self.dtype, "split": asdict(self.splits[split])}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a prepared folder.

    Raises:
        UserError: the folder or its manifest is missing, damaged, or of another format.
    """
    path = Path(folder) / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} holds no prepared data ({MANIFEST} is missing): "
            f"make it with `widestream data prepare PATH --out {folder} --tokenizer byte`."
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): prepare the data again with --overwrite.") from error
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != FORMAT:
        raise UserError(
            f"{path} has format {version}, this version of widestream reads format {FORMAT}: prepare the data again."
        )
    try:
        return build(Manifest, raw, "", "manifest")
    except UserError as error:
        raise UserError(f"{path} is damaged ({error}): prepare the data again with --overwrite.") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
