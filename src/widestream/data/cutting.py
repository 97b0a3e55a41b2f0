"""Text files to pieces: where a long file is cut, read as a stream and without losing a byte."""

from collections.abc import Iterator
from typing import BinaryIO

_PLACES = ((b"\n\n", b"\n\r\n"), (b"\n",), (b" ",))
"""What to cut behind, best first: a blank line, a line end, a space."""


def read_pieces(file: BinaryIO, start: int, cut: int) -> Iterator[tuple[bytes, int]]:
    """Cut a text file into pieces that follow each other without a gap.

    A piece ends behind the last blank line in the second half of the first `cut` bytes that are left of the file; if
    there is none, behind the last line end there, else behind the last space there, else with the last character that
    fits. So a piece depends on nothing before it, and reading can start again behind any of them.

    Args:
        file: the file, UTF-8, at `start`.
        start: byte at which it stands: 0, or the end of a piece.
        cut: bytes of a piece, at most. About twice as many are held in memory.

    Yields:
        A piece, and the byte at which it ends. An empty file is one empty piece.
    """
    data = file.read(cut + 1)
    more = bool(data) or start == 0
    while more:
        more = cut < len(data)
        end = _piece_end(data, cut) if more else len(data)
        start += end
        yield data[:end], start
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
