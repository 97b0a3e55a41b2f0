"""Text files to pieces: where a long file is cut, read as a stream and without losing a byte."""

from collections.abc import Iterator
from pathlib import Path

from widestream.errors import UserError

DEFAULT_CUT = 100_000
"""Bytes of a piece, at most, unless the user says otherwise."""
SMALLEST_CUT = 16
"""A byte order mark and one character of four bytes fit into half of it, so no piece is without text."""
_PLACES = ((b"\n\n", b"\n\r\n"), (b"\n",), (b" ",))
"""What to cut behind, best first: a blank line, a line end, a space."""


def decode_utf8(data: bytes, path: Path, offset: int, detail: str = "") -> str:
    """Decode, or say at which byte of which file the text stops being UTF-8. A byte order mark at 0 is dropped."""
    try:
        return data.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        mark = 3 if offset == 0 and data.startswith(b"\xef\xbb\xbf") else 0
        raise UserError(
            f"{path}{detail} is not UTF-8 at byte {offset + mark + error.start}: convert the file to UTF-8."
        ) from None


def read_pieces(path: Path, start: int, cut: int) -> Iterator[tuple[str, int]]:
    """Cut a text file into pieces that follow each other without a gap.

    A piece ends behind the last blank line in the second half of the first `cut` bytes that are left of the file; if
    there is none, behind the last line end there, else behind the last space there, else with the last character that
    fits. So a piece depends on nothing before it, and reading can start again behind any of them.

    Args:
        path: the file, UTF-8.
        start: byte at which to start: 0, or the end of a piece.
        cut: bytes of a piece, at most; 0 reads the file as one piece. About twice as many are held in memory.

    Yields:
        The text of a piece, and the byte at which it ends. An empty file is one empty piece.

    Raises:
        UserError: the file is not UTF-8; the message names the byte.
    """
    cut = min(cut, path.stat().st_size)  # reading reserves as much memory as it is asked for
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(cut + 1 if cut else -1)
        more = bool(data) or start == 0
        while more:
            more = 0 < cut < len(data)
            end = _piece_end(data, cut) if more else len(data)
            yield decode_utf8(data[:end], path, start), start + end
            start += end
            if more:
                data = data[end:] + file.read(end)


def _piece_end(data: bytes, cut: int) -> int:
    """Where the first piece of `data`, which is longer than `cut`, ends."""
    for marks in _PLACES:
        ends = [place + len(mark) for mark in marks if (place := data.rfind(mark, cut // 2, cut)) >= 0]
        if ends:
            return max(ends)
    # 0b10xxxxxx continues a character. Four of them in a row are not UTF-8 wherever the cut is; decoding will say so.
    return next((cut - back for back in range(4) if data[cut - back] & 0xC0 != 0x80), cut)
