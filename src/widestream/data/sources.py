"""What a user names on the command line -> a stream of documents, in a fixed order.

Everything is read as a stream: lines, row groups, rows, pieces of text files.
"""

import bisect
import hashlib
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from widestream.data.folders import PassedOver, Walk
from widestream.data.names import READ, SPLIT_WORDS, kind_of, shown, split_of
from widestream.data.options import DEFAULTS, PrepareOptions
from widestream.data.readers import reader_for
from widestream.data.records import Problem, Record, too_long
from widestream.data.tables import read_hub
from widestream.errors import UserError

SPLITS = ("train", "heldout", "test")
"""Names of the splits."""
BUNDLED = "bundled:prose"
"""Name of the corpus that comes with the package (see bundled/NOTICE)."""
_BUNDLED_FILE = Path(__file__).parent / "bundled" / "prose.jsonl.xz"
_HUB = "hf:"
_FEWEST = 5
"""With fewer documents than that, none is held out against its hash: it could be half of the text."""
_SHOWN = 60
"""Characters of a wrong value that a message repeats, at most."""


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
    """Never changed: no stripping, no normalisation. Empty where the whole record was passed over."""
    split: str | None
    """train, heldout, test, or None where neither the record nor the file's name says."""
    source_bytes: int
    """UTF-8 bytes of the text."""
    digest: int
    """64-bit hash of the text."""
    after: Position
    """Position of the next document."""
    consumed: int
    """Bytes on disk read so far, over all sources; for the progress bar."""
    problem: str = ""
    """What was passed over here, with `skip_bad`."""
    bad: int = 0
    """Records, or lines of a text file, that were passed over here."""


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
    split: str | None = None
    """The split of all its documents, from its name."""

    @property
    def is_text_file(self) -> bool:
        """Whether --cut concerns it."""
        return not self.name.startswith(_HUB) and kind_of(Path(self.name)) == "text"

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
    passed_over: tuple[PassedOver, ...]
    """What lies in folders and is not read."""
    options: PrepareOptions
    """How they are read and held out."""

    @property
    def span(self) -> range:
        """Indices of the sources that are read: all of them, or those of the part that the options ask for.

        Parts are whole files, and runs of them: after one another they are the corpus in its order. They are cut where
        they are of about as many bytes. A part depends on the names and sizes of all files and on nothing else.
        """
        part, parts = self.options.part or (1, 1)
        sizes = [source.size for source in self.sources]
        weights = [1] * len(sizes) if None in sizes else [size or 0 for size in sizes]
        ends = list(itertools.accumulate(weights))
        cuts = [0]
        for number in range(1, parts):
            cut = bisect.bisect_left(ends, ends[-1] * number // parts) + 1  # the file in which the part would end
            cuts.append(min(max(cut, cuts[-1] + 1), len(sizes) - parts + number))  # no part is empty
        return range(*[*cuts, len(sizes)][part - 1 : part + 1])

    @property
    def read(self) -> tuple[Source, ...]:
        """The sources that are read."""
        return self.sources[self.span.start : self.span.stop]

    @property
    def size(self) -> int | None:
        """Bytes on disk of what is read, or None if a source does not know."""
        sizes = [source.size for source in self.read]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def stamp(self) -> list[Any]:
        """Equal as long as no file was changed, by names, sizes and times."""
        listing = "\n".join(f"{shown(source.name)} {source.size} {source.modified_ns}" for source in self.sources)
        return [len(self.sources), hashlib.sha256(listing.encode()).hexdigest()]

    def describe(self) -> list[dict[str, Any]]:
        """For the manifest: one entry for each argument, with a hash over the names and sizes of its files."""
        entries = []
        for given, group in itertools.groupby(self.sources, key=lambda source: source.given):
            files = list(group)
            entry: dict[str, Any] = {"source": shown(given), "files": len(files)}
            if all(file.size is not None for file in files):
                entry["bytes"] = sum(file.size or 0 for file in files)
            lines = [os.fsencode(f"{file.label} {file.size}{f' {file.split}' * bool(file.split)}") for file in files]
            entries.append({**entry, "listing_sha256": hashlib.sha256(b"\n".join(lines)).hexdigest()})
        return entries

    def documents(self, start: Position = Position()) -> Iterator[Document]:
        """Stream the documents from a position on.

        Raises:
            UserError: a record cannot be used; the message names the file and the line, row or byte.
        """
        span = self.span
        first = max(start.source, span.start)
        before = sum(source.size or 0 for source in self.sources[span.start : first])
        for index in range(first, span.stop):
            source, offset = self.sources[index], start.offset if index == start.source else 0
            try:
                for record in source.records(self.options, offset):
                    after = Position(index, record.after)
                    yield _document(record, source.split, self.options, after, before + record.consumed)
            except OSError as error:
                raise UserError(
                    f"Cannot read {shown(source.name)} ({error.strerror or error}): check the file."
                ) from error
            before += source.size or 0


def _document(record: Record, split: str | None, options: PrepareOptions, after: Position, consumed: int) -> Document:
    """A record, checked; `split` is that of its file.

    Raises:
        UserError: something is wrong with it, and bad records are not passed over.
    """
    text, data, fault = _checked_text(record, options.max_record)
    if record.split is not None and fault is None:
        split = SPLIT_WORDS.get(record.split.lower()) if isinstance(record.split, str) else None
        if split is None:
            found = repr(record.split)[:_SHOWN]
            fault = Problem(f"{record.where}: split is {found}, which is no word for train, heldout or test")
    problem = record.problem
    if fault is not None:
        problem, text, data = fault, "", b""
    if problem is not None and not options.skip_bad:
        raise UserError(f"{problem.what}: {problem.mend}, or pass over bad records with --skip-bad.")
    digest = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    what, bad = ("", 0) if problem is None else (problem.what, problem.bad)
    return Document(text, split, len(data), digest, after, consumed, what, bad)


def _checked_text(record: Record, max_record: int) -> tuple[str, bytes, Problem | None]:
    """A record's text and its UTF-8, or what is wrong with it."""
    found = record.text
    try:
        if isinstance(found, bytes):
            found = found.decode()
        if not isinstance(found, str):
            return "", b"", Problem(f"{record.where}: the text is {type(found).__name__}, not a string")
        data = found.encode()
    except UnicodeDecodeError as error:
        return "", b"", Problem(f"{record.where}: the text is not UTF-8 at its byte {error.start}")
    except UnicodeEncodeError as error:
        place = f"half of a surrogate pair at character {error.start} of the text"
        return "", b"", Problem(f"{record.where}: {place}, which is not Unicode")
    if len(data) > max_record:
        return "", b"", too_long(f"{record.where}: the text", len(data), max_record)
    return found, data, None


def heldout_limit(corpus: Corpus) -> int:
    """The hash below which documents are held out, for `assign_split`.

    That is the corpus's fraction `heldout` of all hashes. But where it would hold out none of at least five different
    documents, it is just enough for the one with the smallest hash: the text of one file, cut into a few dozen pieces,
    needs a held-out split too.

    The corpus is read until a document turns out to be held out (on average after 1/heldout of them), or to have a
    split of its own; which are held out is then up to whoever marked them. A part of a corpus has the limit of the
    whole, so that the parts hold out the documents that the whole would.

    Raises:
        UserError: a record cannot be used.
    """
    corpus = replace(corpus, options=replace(corpus.options, part=None))
    limit = int(corpus.options.heldout * 2**64)
    digests: set[int] = set()  # the smallest ones
    for document in corpus.documents() if limit else ():
        if document.source_bytes == 0:
            continue
        if document.split is not None or document.digest < limit:
            return limit
        digests.add(document.digest)
        if len(digests) > _FEWEST:
            digests.remove(max(digests))
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

    Where names tell files to hold out (validation, test) from others, every file is of the split that its name, or
    that of a folder it lies in, speaks of. Where all of them speak of one, or none but of training, names do not count.

    Args:
        paths: files of the kinds of `names.READ`, folders of them, `bundled:prose`,
            `hf:OWNER/NAME[:CONFIG][@REVISION]`.
        options: how they are read.

    Raises:
        UserError: nothing there, an unknown suffix, no regular file, a broken link, a file named twice, or fewer files
            than parts.
    """
    sources: list[Source] = []
    passed_over: list[PassedOver] = []
    for given in map(str, paths):
        if given == BUNDLED:
            sources.append(_file_source(_BUNDLED_FILE, given, _BUNDLED_FILE.name))
        elif given.startswith(_HUB):
            sources.append(Source(given, given, given, None, 0))
        elif Path(given).is_dir():
            folder = Path(given)
            walk = Walk(folder)
            passed_over += walk.passed_over
            sources += [_file_source(path, given, path.relative_to(folder).as_posix()) for path in walk.files]
        else:
            sources.append(_file_source(Path(given), given, Path(given).name))
    if not sources:
        raise UserError("Nothing to read: give at least one file, folder, bundled:prose, or hf:OWNER/NAME.")
    _check_twice(sources)
    if options.part is not None and (parts := options.part[1]) > len(sources):
        raise UserError(
            f"--part is {options.part[0]}/{parts}, but there are {len(sources)} files, and a part is of whole files: "
            f"ask for at most {len(sources)} parts, or cut the text into more files."
        )
    return Corpus(sources=_with_splits(sources, len(paths) > 1), passed_over=tuple(passed_over), options=options)


def _check_twice(sources: list[Source]) -> None:
    seen: set[str] = set()
    for source in sources:
        key = source.name if source.name.startswith(_HUB) else os.path.realpath(source.name)
        if key in seen:
            raise UserError(f"{shown(source.name)} is named twice; its documents would count twice: name it once.")
        seen.add(key)


def _with_splits(sources: list[Source], several: bool) -> tuple[Source, ...]:
    """The sources with the splits that their names speak of; see `open_corpus`.

    Args:
        sources: what is read.
        several: more than one argument was given; then the name of a folder that was given counts too.
    """
    splits = []
    for source in sources:
        folder = Path(source.given).name if several and Path(source.given).is_dir() else ""
        splits.append(None if source.name.startswith(_HUB) else split_of(f"{folder}/{source.label}".strip("/")))
    if len(set(splits)) < 2 or not set(splits) & {"heldout", "test"}:
        return tuple(sources)
    return tuple(replace(source, split=split) for source, split in zip(sources, splits, strict=True))


def _file_source(path: Path, given: str, label: str) -> Source:
    try:
        status = path.stat()
    except FileNotFoundError:
        what = f"{shown(given)} is a broken link" if path.is_symlink() else f"There is no file or folder {shown(given)}"
        raise UserError(f"{what}: check the path.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot read {shown(path)} ({reason}): check the path.") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(
            f"{shown(path)} is no regular file, and what is prepared is read more than once: write the text to a file."
        )
    if kind_of(path) is None:
        raise UserError(f"{shown(path)}: unknown kind of file; widestream reads {READ}.")
    return Source(str(path), given, label, status.st_size, status.st_mtime_ns)
