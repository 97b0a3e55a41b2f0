"""One generator per file format: a path in, records out. Checks of what a record holds are in sources.py."""

import contextlib
import gzip
import importlib
import io
import itertools
import json
import lzma
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from widestream.data.cutting import DEFAULT_CUT, SMALLEST_CUT, decode_utf8, read_pieces
from widestream.errors import UserError

SPLIT_FIELD = "split"
"""Field of a record that says whether it is `train` or `heldout`."""


@dataclass(frozen=True, slots=True)
class Record:
    """One raw record of a source."""

    after: int
    """Where to start in order to read the next one: the number of lines or rows so far, or for a text file of bytes."""
    text: Any
    """The text field, of whatever type was found."""
    split: Any
    """The split field, or None."""
    where: str
    """For messages: file and line or row."""
    consumed: int
    """Bytes of the file on disk read so far; 0 if unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareOptions:
    """What shapes prepared data, beside the text and the tokenizer."""

    heldout: float = 0.005
    """Fraction of the documents without a split of their own that is held out, in [0, 1); see `heldout_limit`."""
    shard_tokens: int = 100_000_000
    """Tokens in a shard, at most (a longer document gets a shard of its own)."""
    text_field: str = "text"
    """Field or column that holds the text."""
    cut: int = DEFAULT_CUT
    """Bytes of a document, at most, when a .txt or .md file is cut, see `read_pieces`; 0: they are left whole."""

    def __post_init__(self):
        if not 0 <= self.heldout < 1:
            raise UserError(f"--heldout is {self.heldout}: give a fraction from 0 up to, but not including, 1.")
        if self.shard_tokens < 1:
            raise UserError(f"--shard-tokens is {self.shard_tokens}: give 1 or more.")
        if self.cut != 0 and self.cut < SMALLEST_CUT:
            raise UserError(f"--cut is {self.cut}: give at least {SMALLEST_CUT} bytes, or 0 to leave text files whole.")


DEFAULTS = PrepareOptions()

Reader = Callable[[Path, PrepareOptions, int], Iterator[Record]]
"""(path, how to read it, where to start: 0 or a record's `after`) -> records."""


def read_text(path: Path, options: PrepareOptions, start: int) -> Iterator[Record]:
    """The pieces of a text file, see `read_pieces`."""
    for text, end in read_pieces(path, start, options.cut):
        # What comes after an empty file starts at 1: its one record is not to be read again.
        yield Record(max(1, end), text, None, str(path), end)


class _ZstdStream(io.RawIOBase):
    """Decompressed bytes of a .zst file; one that is cut short is an EOFError.

    Why not a library: zstandard's own reader, and so fsspec's, takes half a file for a whole one. Text would be
    missing, and nobody would know.
    """

    def __init__(self, raw: BinaryIO):
        self._raw, self._rest = raw, b""
        self._frame = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._rest:
            chunk = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            chunk = chunk or self._raw.read(1 << 17)
            if not chunk:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("compressed file ended early")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._rest = self._frame.decompress(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


@contextlib.contextmanager
def _decompressed(path: Path, raw: BinaryIO) -> Iterator[Iterable[bytes]]:
    """The content of a file that may be compressed; a damaged one is a `UserError`."""
    damaged: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, lzma.LZMAError)
    try:
        if path.suffix == ".gz":
            import zlib

            damaged = (*damaged, zlib.error)
            with gzip.open(raw) as lines:
                yield lines
        elif path.suffix == ".xz":
            with lzma.open(raw) as lines:
                yield lines
        elif path.suffix == ".zst":
            damaged = (*damaged, _import("zstandard", "data", ".zst files").ZstdError)
            yield io.BufferedReader(_ZstdStream(raw), 1 << 17)
        else:
            yield raw
    except damaged as error:
        raise UserError(f"{path} is damaged or cut short ({error}): get the file again.") from error


def _import(package: str, extra: str, what: str) -> Any:
    """A package that reading something needs, of an extra of this one."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"Reading {what} needs {package}: run `pip install 'widestream[{extra}]'`.") from None


def read_jsonl(path: Path, options: PrepareOptions, start: int) -> Iterator[Record]:
    """One JSON object a line, plain or compressed (.gz, .xz, .zst). Blank lines are passed over."""
    with path.open("rb") as raw, _decompressed(path, raw) as lines:
        offset = 0
        for number, line in enumerate(lines, start=1):
            if number > start and line.strip():
                where = f"{path}, line {number}"
                value = _parse_line(decode_utf8(line, path, offset, f", line {number},"), where, options.text_field)
                yield Record(number, value[options.text_field], value.get(SPLIT_FIELD), where, raw.tell())
            offset += len(line)


def _parse_line(line: str, where: str, text_field: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}): mend or remove the line.") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(value).__name__}: mend or remove the line.")
    if text_field not in value:
        raise UserError(_no_field(where, text_field, list(value)))
    return value


def _no_field(where: str, text_field: str, names: list[str]) -> str:
    there = ", ".join(names) or "none"
    return f"{where}: no field '{text_field}' (there is {there}): name the right one with --text-field."


def read_parquet(path: Path, options: PrepareOptions, start: int) -> Iterator[Record]:
    """Rows of a parquet file, one row group at a time."""
    pyarrow = _import("pyarrow", "data", ".parquet files")
    try:
        file = importlib.import_module("pyarrow.parquet").ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is not a parquet file or is cut short ({error}): get the file again.") from error
    with file:
        names, text_field = file.schema_arrow.names, options.text_field
        if text_field not in names:
            raise UserError(_no_field(f"{path}", text_field, names))
        columns = [name for name in (text_field, SPLIT_FIELD) if name in names]
        row_size = path.stat().st_size / max(1, file.metadata.num_rows)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = list(itertools.accumulate(sizes))
        groups = [group for group, end in enumerate(ends) if end > start]
        number = ends[groups[0]] - sizes[groups[0]] if groups else 0
        try:
            for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    if number > start:
                        where, consumed = f"{path}, row {number}", int(number * row_size)
                        yield Record(number, row[text_field], row.get(SPLIT_FIELD), where, consumed)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): get the file again.") from error


def read_hub(name: str, options: PrepareOptions, start: int) -> Iterator[Record]:
    """The `train` split of a Hugging Face data set, streamed.

    Args:
        name: `hf:OWNER/NAME[:CONFIG][@REVISION]`, or a folder in the place of OWNER/NAME.
        options: names the column with the text.
        start: number of rows to pass over.

    Raises:
        UserError: the package is missing, or the data set cannot be reached or read.
    """
    datasets = _import("datasets", "hub", name)
    address, _, revision = name.removeprefix("hf:").partition("@")
    path, _, config = address.partition(":")
    try:
        rows = datasets.load_dataset(path, config or None, split="train", revision=revision or None, streaming=True)
        for number, row in enumerate(rows.skip(start) if start else rows, start=start + 1):
            where = f"{name}, row {number}"
            if options.text_field not in row:
                raise UserError(_no_field(where, options.text_field, list(row)))
            yield Record(number, row[options.text_field], row.get(SPLIT_FIELD), where, 0)
    except UserError:
        raise
    except Exception as error:  # the hub's clients raise errors of many libraries, without a common class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"Cannot read {name} ({reason}): check the name and the connection, then run the same command again, "
            "or download it and give a local .parquet or .jsonl file."
        ) from error


READERS: dict[str, Reader] = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".jsonl.xz": read_jsonl,
    ".jsonl.zst": read_jsonl,
    ".parquet": read_parquet,
}
"""Reader by the end of a file's name."""


def reader_for(path: Path) -> Reader | None:
    """The reader of a file by its name, or None."""
    return next((reader for suffix, reader in READERS.items() if path.name.lower().endswith(suffix)), None)
