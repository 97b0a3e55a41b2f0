"""Text files and files of JSON lines: a path in, records out. Tables are in tables.py.

Checks of what a record holds are in sources.py. No more is held in memory than a record may be long.
"""

import json
import re
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from widestream.data.cutting import read_pieces
from widestream.data.names import kind_of, shown
from widestream.data.options import PrepareOptions
from widestream.data.packed import open_text
from widestream.data.records import SPLIT_FIELD, Problem, Reader, Record, no_field, too_long
from widestream.data.tables import read_parquet
from widestream.errors import UserError

_MARK = b"\xef\xbb\xbf"
"""The byte order mark: at the beginning of a file it is no text; in JSON, where files were joined, on no line."""
_OTHER_JSON = re.compile(rb"(\xef\xbb\xbf)?\s*(\[\s*(\{|$)|\{\s*$)")
"""How a file begins that is one array of objects, or an object on several lines."""


def read_text(path: Path, options: PrepareOptions, start: int) -> Iterator[Record]:
    """The pieces of a text file, see `read_pieces`. Of a piece that is not all UTF-8 the lines are kept that are."""
    name = shown(path)
    with open_text(path) as opened:
        opened.move_to(start)
        if options.cut:
            pieces = read_pieces(opened.content, start, options.cut)
        else:
            data = opened.content.read(options.max_record + 1)
            if len(data) > options.max_record:
                size = start + len(data) + opened.read_to_end()
                yield Record(size, "", None, name, opened.raw.tell(), too_long(name, size, options.max_record))
                return
            pieces = [(data, start + len(data))] if data or start == 0 else []
        for data, end in pieces:
            text, problem = _decoded(data, name, end - len(data))
            # What comes after an empty file starts at 1: its one record is not to be read again.
            yield Record(max(1, end), text, None, name, opened.raw.tell() if opened.packed else end, problem)


def _decoded(data: bytes, name: str, offset: int) -> tuple[str, Problem | None]:
    """A piece as text, and what was left out: the lines that are not UTF-8. `offset`: of the piece in the file."""
    mark = len(_MARK) if offset == 0 and data.startswith(_MARK) else 0
    data, offset = data[mark:], offset + mark
    try:
        return data.decode(), None
    except UnicodeDecodeError as error:
        place = offset + error.start
    lines = [(line, line.decode(errors="ignore")) for line in data.splitlines(keepends=True)]
    kept = [text for line, text in lines if text.encode() == line]
    bad = len(lines) - len(kept)
    more = f" (and on {bad - 1:,} more lines)" if bad > 1 else ""
    return "".join(kept), Problem(f"{name} is not UTF-8 at byte {place}{more}", "convert the file to UTF-8", bad)


def read_jsonl(path: Path, options: PrepareOptions, start: int) -> Iterator[Record]:
    """One JSON object a line. Blank lines are passed over."""
    with open_text(path) as opened:
        offset = 0
        for number, (line, length) in enumerate(_lines(opened.content, options.max_record), start=1):
            if number > start and (line is None or line.strip()):
                where = f"{shown(path)}, line {number}"
                if number == 1 and line is not None and _OTHER_JSON.match(line):
                    raise UserError(
                        f"{shown(path)} is JSON, but not an object a line: convert it with `jq -c .`, "
                        "or if it is one array with `jq -c '.[]'`."
                    )
                value: dict[str, Any] | Problem
                if line is None:
                    value = too_long(where, length, options.max_record)
                else:
                    value = _parse_line(line, where, offset, options.text_field)
                consumed = opened.raw.tell()
                if isinstance(value, Problem):
                    yield Record(number, "", None, where, consumed, value)
                else:
                    yield Record(number, value[options.text_field], value.get(SPLIT_FIELD), where, consumed)
            offset += length


def _lines(content: BufferedReader, limit: int) -> Iterator[tuple[bytes | None, int]]:
    """Lines with their length; None for one above the limit, which is never held as a whole."""
    while line := content.readline(limit + 1):
        length = len(line)
        if length <= limit:
            yield line, length
            continue
        while not line.endswith(b"\n") and (line := content.readline(1 << 20)):
            length += len(line)
        yield None, length


def _parse_line(line: bytes, where: str, offset: int, text_field: str) -> dict[str, Any] | Problem:
    """A line's object, or what is wrong with it. `offset`: of the line in the file."""
    try:
        text = line.removeprefix(_MARK).decode()
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            raise
        except ValueError:  # an integer of more digits than Python reads: whatever it is, it is not the text
            value = json.loads(text, parse_int=float)
    except UnicodeDecodeError as error:
        mark = len(_MARK) if line.startswith(_MARK) else 0
        return Problem(f"{where}, is not UTF-8 at byte {offset + mark + error.start}", "convert the file to UTF-8")
    except RecursionError:
        return Problem(f"{where}: JSON nested too deeply to be read")
    except ValueError as error:
        return Problem(f"{where}: not JSON ({error})", "mend or remove the line")
    if not isinstance(value, dict):
        return Problem(f"{where}: expected a JSON object, found {type(value).__name__}", "mend or remove the line")
    return value if text_field in value else no_field(where, text_field, list(value))


READERS: dict[str, Reader] = {"text": read_text, "json": read_jsonl, "parquet": read_parquet}
"""Reader by the kind of a file."""


def reader_for(path: Path) -> Reader | None:
    """The reader of a file by its name, or None."""
    kind = kind_of(path)
    return None if kind is None else READERS[kind]
