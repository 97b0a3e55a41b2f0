"""What a user names on the command line -> a stream of documents, in a fixed order.

Everything is read as a stream: lines, row groups, rows, pieces of text files.
"""

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widestream.data.readers import DEFAULTS, READERS, PrepareOptions, Record, read_hub, read_text, reader_for
from widestream.errors import UserError

SPLITS = ("train", "heldout")
"""Names of the splits."""
BUNDLED = "bundled:prose"
"""Name of the corpus that comes with the package (see bundled/NOTICE)."""
_BUNDLED_FILE = Path(__file__).parent / "bundled" / "prose.jsonl.xz"
_HUB = "hf:"
_FEWEST = 5
"""With fewer documents than that, none is held out against its hash: it could be half of the text."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where to go on reading: a document after this one."""

    source: int = 0
    """Index of the source in the corpus."""
    offset: int = 0
    """Where in that source: a number of lines or rows, or for a text file of bytes."""


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

    @property
    def is_text_file(self) -> bool:
        """Whether --cut concerns it."""
        return not self.name.startswith(_HUB) and reader_for(Path(self.name)) is read_text

    def records(self, options: PrepareOptions, start: int) -> Iterator[Record]:
        """The records from `start` on: 0, or what a record gave as `after`."""
        if self.name.startswith(_HUB):
            return read_hub(self.name, options, start)
        reader = reader_for(Path(self.name))
        assert reader is not None, self.name
        return reader(Path(self.name), options, start)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Sources in the order in which they are read."""

    sources: tuple[Source, ...]
    """Files of a folder are sorted by path."""
    ignored: tuple[str, ...]
    """Files in folders whose suffix no reader knows."""
    options: PrepareOptions
    """How they are read and held out."""

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
            offset = start.offset if index == start.source else 0
            try:
                for record in source.records(self.options, offset):
                    yield _document(record, Position(index, record.after), before + record.consumed)
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


def heldout_limit(corpus: Corpus) -> int:
    """The hash below which documents are held out, for `assign_split`.

    That is the corpus's fraction `heldout` of all hashes. But where it would hold out none of at least five different
    documents, it is just enough for the one with the smallest hash: the text of one file, cut into a few dozen pieces,
    needs a held-out split too.

    The corpus is read until a document turns out to be held out (on average after 1/heldout of them), or to have a
    split of its own; which are held out is then up to whoever marked them.

    Raises:
        UserError: a record cannot be used.
    """
    limit = int(corpus.options.heldout * 2**64)
    digests: set[int] = set()
    for document in corpus.documents() if limit else ():
        if document.source_bytes == 0:
            continue
        if document.split is not None or document.digest < limit:
            return limit
        digests.add(document.digest)
    return min(digests) + 1 if len(digests) >= _FEWEST else limit


def assign_split(document: Document, limit: int) -> str:
    """The document's own split, else one drawn by the hash of its text, so that order and neighbours do not matter.

    Args:
        document: the document.
        limit: of `heldout_limit`.
    """
    if document.split is not None:
        return document.split
    return "heldout" if document.digest < limit else "train"


def open_corpus(paths: Sequence[str | Path], options: PrepareOptions = DEFAULTS) -> Corpus:
    """Find what the arguments name. Nothing is read yet.

    Args:
        paths: files (.txt, .md, .jsonl, .jsonl.gz, .jsonl.xz, .jsonl.zst, .parquet), folders of them,
            `bundled:prose`, `hf:OWNER/NAME[:CONFIG][@REVISION]`.
        options: how they are read.

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
    return Corpus(sources=tuple(sources), ignored=tuple(ignored), options=options)


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
