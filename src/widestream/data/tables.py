"""Tables of rows: parquet files and data sets of the Hugging Face hub."""

import importlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from widestream.data.names import shown
from widestream.data.options import PrepareOptions
from widestream.data.packed import HEAD, check_beginning, import_for
from widestream.data.records import SPLIT_FIELD, Record, no_field
from widestream.errors import UserError

_BATCH_ROWS = 1024
_BATCH_BYTES = 8 << 20
"""Of the rows that are made Python objects at a time."""
_PAGE_RECORDS = 8
"""A page of a parquet file, which has to be read as a whole, may be so many times as long as a record."""


def read_parquet(path: Path, options: PrepareOptions, start: int) -> Iterator[Record]:
    """Rows of a parquet file, some at a time.

    Raises:
        UserError: it is none, is damaged, has no column of the text, or was written in pieces too large to read.
    """
    pyarrow, name = import_for("pyarrow", "data", ".parquet files"), shown(path)
    try:
        # Not the defaults, which read a row group as a whole.
        parquet = importlib.import_module("pyarrow.parquet")
        file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    except pyarrow.ArrowInvalid as error:
        with path.open("rb") as raw:
            check_beginning(path, raw.read(HEAD))
        raise UserError(f"{name} is not a parquet file or is cut short ({error}): get the file again.") from error
    with file:
        names, text_field = file.schema_arrow.names, options.text_field
        if text_field not in names:
            problem = no_field(name, text_field, names)
            raise UserError(f"{problem.what}: {problem.mend}.")
        columns = [column for column in (text_field, SPLIT_FIELD) if column in names]
        _check_pages(path, file.metadata, text_field, options.max_record)
        row_size = path.stat().st_size / max(1, file.metadata.num_rows)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = list(itertools.accumulate(sizes))
        groups = [group for group, end in enumerate(ends) if end > start]
        number = ends[groups[0]] - sizes[groups[0]] if groups else 0
        batch_rows = _batch_rows(file.metadata, text_field)
        try:
            for batch in file.iter_batches(batch_size=batch_rows, row_groups=groups, columns=columns):
                for row in _rows(batch, pyarrow):
                    number += 1
                    if number > start:
                        where, consumed = f"{name}, row {number}", int(number * row_size)
                        yield Record(number, row[text_field], row.get(SPLIT_FIELD), where, consumed)
        except MemoryError as error:
            raise UserError(f"{name} needs more memory than there is: write it in smaller row groups.") from error
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{name} is damaged ({error}): get the file again.") from error


def _rows(batch: Any, pyarrow: Any) -> list[dict[str, Any]]:
    """Rows as dictionaries; where a text is not UTF-8, texts as bytes."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        columns = {name: batch.column(name).cast(pyarrow.large_binary()) for name in batch.schema.names}
        return pyarrow.table(columns).to_pylist()


def _chunks(metadata: Any, column: str) -> Iterator[Any]:
    """What a file says of its parts that hold a column, one a row group."""
    for group in range(metadata.num_row_groups):
        described = metadata.row_group(group)
        for index in range(described.num_columns):
            chunk = described.column(index)
            if chunk.path_in_schema.split(".")[0] == column or chunk.path_in_schema == column:
                yield chunk


def _batch_rows(metadata: Any, column: str) -> int:
    """Rows of about `_BATCH_BYTES` together, where they are longest."""
    longest = max(
        (chunk.total_uncompressed_size / max(1, chunk.num_values) for chunk in _chunks(metadata, column)), default=1
    )
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(1, longest))))


def _check_pages(path: Path, metadata: Any, column: str, max_record: int) -> None:
    """Refuse a file whose first pages are larger than what should be in memory at once.

    Raises:
        UserError: the message says how to write it better.
    """
    with path.open("rb") as raw:
        for chunk in _chunks(metadata, column):
            for place in (chunk.dictionary_page_offset, chunk.data_page_offset):
                if place is None:
                    continue
                raw.seek(place)
                if (size := _page_size(raw.read(16))) > _PAGE_RECORDS * max_record:
                    raise UserError(
                        f"{shown(path)} holds {size:,} bytes in one page, more than {_PAGE_RECORDS} times --max-record "
                        f"{max_record:,}: write it with a smaller row_group_size, or raise --max-record."
                    )


def _page_size(header: bytes) -> int:
    """Unpacked bytes of a page, the second field of its header in Thrift's compact form; 0 if it is not there."""
    size = place = 0
    for _ in range(2):  # two 32-bit integers: the page's type, its size
        if header[place : place + 1] != b"\x15":
            return 0
        place, size, shift = place + 1, 0, 0
        while place < len(header):
            size |= (header[place] & 0x7F) << shift
            place, shift = place + 1, shift + 7
            if header[place - 1] < 0x80:
                break
    return size >> 1  # zigzag, and never negative


def read_hub(name: str, options: PrepareOptions, start: int) -> Iterator[Record]:
    """The `train` split of a Hugging Face data set, streamed.

    Args:
        name: `hf:OWNER/NAME[:CONFIG][@REVISION]`, or a folder in the place of OWNER/NAME.
        options: names the column with the text.
        start: number of rows to pass over.

    Raises:
        UserError: the package is missing, or the data set cannot be reached or read.
    """
    datasets = import_for("datasets", "hub", name)
    address, _, revision = name.removeprefix("hf:").partition("@")
    path, _, config = address.partition(":")
    try:
        rows = datasets.load_dataset(path, config or None, split="train", revision=revision or None, streaming=True)
        for number, row in enumerate(rows.skip(start) if start else rows, start=start + 1):
            where = f"{name}, row {number}"
            if options.text_field in row:
                yield Record(number, row[options.text_field], row.get(SPLIT_FIELD), where, 0)
            else:
                yield Record(number, "", None, where, 0, no_field(where, options.text_field, list(row)))
    except Exception as error:  # the hub's clients raise errors of many libraries, without a common class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"Cannot read {name} ({reason}): check the name and the connection, then run the same command again, "
            "or download it and give a local .parquet or .jsonl file."
        ) from error
