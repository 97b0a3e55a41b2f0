"""What a user names on the command line -> a stream of documents, in a fixed order.

Files are read as streams: lines, row groups, rows. Only a .txt or .md file, which is one document, is read whole.
"""

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widestream.data.readers import READERS, Record, read_hub, reader_for
from widestream.errors import UserError

SPLITS = ("train", "heldout")
"""Names of the splits."""
BUNDLED = "bundled:prose"
"""Name of the corpus that comes with the package (see bundled/NOTICE)."""
_BUNDLED_FILE = Path(__file__).parent / "bundled" / "prose.jsonl.xz"
_HUB = "hf:"


@dataclass(frozen=True, slots=True)
class Position:
    """Where to go on reading: a document after this one."""

    source: int = 0
    """Index of the source in the corpus."""
    record: int = 0
    """Index of the record in that source."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text to be tokenized."""

    text: str
    """Never changed: no stripping, no normalisation."""
    split: str | None
    """train, heldout, or None where the source does not say."""
    source_bytes: int
    """UTF-8 bytes of the text."""
    digest: int
    """64-bit hash of the text."""
    after: Position
    """Position of the next document."""
    consumed: int
    """Bytes on disk read so far, over all sources; for the progress bar."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file or data set."""

    name: str
    """Path, or `hf:...`."""
    given: str
    """The argument it came from."""
    label: str
    """Path within that argument."""
    size: int | None
    """Bytes on disk; None if unknown."""
    modified_ns: int
    """Time of the last change; 0 if unknown."""

    def records(self, text_field: str, skip: int) -> Iterator[Record]:
        """The records from number `skip` on."""
        if self.name.startswith(_HUB):
            return read_hub(self.name, text_field, skip)
        reader = reader_for(Path(self.name))
        assert reader is not None, self.name
        return reader(Path(self.name), text_field, skip)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Sources in the order in which they are read."""

    sources: tuple[Source, ...]
    """Files of a folder are sorted by path."""
    ignored: tuple[str, ...]
    """Files in folders whose suffix no reader knows."""
    text_field: str
    """Name of the field or column with the text."""

    @property
    def size(self) -> int | None:
        """Bytes on disk, or None if a source does not know."""
        sizes = [source.size for source in self.sources]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def last_change_ns(self) -> int:
        """Time of the newest change to any file."""
        return max(source.modified_ns for source in self.sources)

    def describe(self) -> list[dict[str, Any]]:
        """For the manifest: one entry for each argument, with a hash over the names and sizes of its files."""
        entries = []
        for given, group in itertools.groupby(self.sources, key=lambda source: source.given):
            files = list(group)
            entry: dict[str, Any] = {"source": given, "files": len(files)}
            if all(file.size is not None for file in files):
                entry["bytes"] = sum(file.size or 0 for file in files)
            listing = "\n".join(f"{file.label} {file.size}" for file in files)
            entries.append({**entry, "listing_sha256": hashlib.sha256(listing.encode()).hexdigest()})
        return entries

    def documents(self, start: Position = Position()) -> Iterator[Document]:
        """Stream the documents from a position on.

        Raises:
            UserError: a record cannot be used; the message names the file and the line, row or byte.
        """
        before = sum(source.size or 0 for source in self.sources[: start.source])
        for index, source in enumerate(self.sources[start.source :], start=start.source):
            skip = start.record if index == start.source else 0
            try:
                for record in source.records(self.text_field, skip):
                    yield _document(record, Position(index, record.number + 1), before + record.consumed)
            except OSError as error:
                raise UserError(f"Cannot read {source.name} ({error.strerror or error}): check the file.") from error
            before += source.size or 0


def _document(record: Record, after: Position, consumed: int) -> Document:
    if not isinstance(record.text, str):
        raise UserError(f"{record.where}: the text is {type(record.text).__name__}, not a string: mend or remove it.")
    if record.split is not None and record.split not in SPLITS:
        raise UserError(f"{record.where}: split is {record.split!r}: it must be train, heldout, or missing.")
    try:
        data = record.text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{record.where}: half of a surrogate pair at character {error.start} of the text, which is not Unicode: "
            "mend or remove it."
        ) from None
    digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    return Document(record.text, record.split, len(data), digest, after, consumed)


def assign_split(document: Document, heldout: float) -> str:
    """The document's own split, else one drawn by the hash of its text, so that order and neighbours do not matter."""
    if document.split is not None:
        return document.split
    return "heldout" if document.digest < heldout * 2**64 else "train"


def open_corpus(paths: Sequence[str | Path], text_field: str = "text") -> Corpus:
    """Find what the arguments name. Nothing is read yet.

    Args:
        paths: files (.txt, .md, .jsonl, .jsonl.gz, .jsonl.xz, .jsonl.zst, .parquet), folders of them,
            `bundled:prose`, `hf:OWNER/NAME[:CONFIG][@REVISION]`.
        text_field: name of the field or column with the text.

    Raises:
        UserError: nothing there, an unknown suffix, or a file named twice.
    """
    sources: list[Source] = []
    ignored: list[str] = []
    for given in map(str, paths):
        if given == BUNDLED:
            sources.append(_file_source(_BUNDLED_FILE, given, _BUNDLED_FILE.name))
        elif given.startswith(_HUB):
            sources.append(Source(given, given, given, None, 0))
        elif Path(given).is_dir():
            sources += _folder_sources(Path(given), given, ignored)
        elif reader_for(Path(given)) is None and Path(given).exists():
            raise UserError(f"{given}: unknown kind of file; widestream reads {', '.join(READERS)}.")
        else:
            sources.append(_file_source(Path(given), given, Path(given).name))
    if not sources:
        raise UserError("Nothing to read: give at least one file, folder, bundled:prose, or hf:OWNER/NAME.")
    seen: set[str] = set()
    for source in sources:
        key = source.name if source.name.startswith(_HUB) else os.path.realpath(source.name)
        if key in seen:
            raise UserError(f"{source.name} is named twice; its documents would count twice: name it once.")
        seen.add(key)
    return Corpus(sources=tuple(sources), ignored=tuple(ignored), text_field=text_field)


def _file_source(path: Path, given: str, label: str) -> Source:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UserError(f"There is no file or folder {given}: check the path.") from None
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror}): check the path.") from error
    return Source(str(path), given, label, status.st_size, status.st_mtime_ns)


def _folder_sources(folder: Path, given: str, ignored: list[str]) -> list[Source]:
    """Readable files below a folder, sorted by path; hidden files and folders are passed over."""
    found: list[Path] = []
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(here) / name for name in files if not name.startswith(".")]
    found.sort(key=lambda path: path.relative_to(folder).parts)
    readable = [path for path in found if reader_for(path) is not None]
    ignored += [str(path) for path in found if reader_for(path) is None]
    if not readable:
        raise UserError(f"The folder {given} holds no file that widestream reads ({', '.join(READERS)}).")
    return [_file_source(path, given, path.relative_to(folder).as_posix()) for path in readable]
