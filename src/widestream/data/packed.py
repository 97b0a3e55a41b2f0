"""Opening a file of text: what is compressed is seen from its first bytes, not from its name."""

import bz2
import codecs
import contextlib
import gzip
import importlib
import io
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from widestream.data.names import claimed_packing, shown
from widestream.errors import UserError

HEAD = 1024
"""Bytes from which it is seen what a file is."""
_MAGIC = {
    b"\x1f\x8b": "gz",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bz2",
    b"\x28\xb5\x2f\xfd": "zst",
    **{bytes([0x50 + i, 0x2A, 0x4D, 0x18]): "zst" for i in range(16)},  # a frame to skip, which tools put in front
}
"""First bytes of compressed files."""
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_POINTER = b"version https://git-lfs.github.com"
_FEED = 1024
"""Compressed bytes that zstandard gets at a time: they can become 32 MiB, 128 KiB for every 4 of them."""
_LARGEST_WINDOW = 1 << 31
"""Of zstd; some tools make files that need it, and the library allows 128 MiB unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A file's text, and how far it was read."""

    content: io.BufferedReader
    """Unpacked bytes."""
    raw: BinaryIO
    """The file as it is on disk; the content itself if it is not packed."""

    @property
    def packed(self) -> bool:
        """Whether the file is compressed."""
        return self.raw is not self.content

    def move_to(self, start: int) -> None:
        """Go on with the byte `start` of the content; nothing was read yet."""
        if not self.packed:
            self.content.seek(start)
            return
        while start > 0 and (data := self.content.read(min(start, 1 << 20))):
            start -= len(data)

    def read_to_end(self) -> int:
        """Read what is left without keeping it; its number of bytes."""
        return sum(map(len, iter(lambda: self.content.read(1 << 20), b"")))


class _ZstdStream(io.RawIOBase):
    """Decompressed bytes of a .zst file; one that is cut short is an EOFError.

    Why not a library: zstandard's own reader, and so fsspec's, takes half a file for a whole one. Text would be
    missing, and nobody would know.
    """

    def __init__(self, raw: BinaryIO):
        self._raw, self._rest = raw, memoryview(b"")
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._rest:
            if self._frame is not None and self._frame.eof:
                chunk, self._frame = self._frame.unused_data, None
            else:
                chunk = b""
            chunk = chunk or self._raw.read(_FEED)
            if not chunk:
                if self._frame is not None:
                    raise EOFError("compressed file ended early")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
            self._rest = memoryview(self._frame.decompress(chunk))
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[Opened]:
    """Open a file of UTF-8 text, unpacked if it is packed.

    Raises:
        UserError: it is damaged, or is something else than its name says. Errors while it is read are among them.
    """
    damaged: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
    with path.open("rb") as raw:
        head = raw.peek(HEAD)
        codec = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
        if codec == "zst":
            damaged = (*damaged, import_for("zstandard", "data", ".zst files").ZstdError)
        try:
            content = _unpacked(raw, codec)
            check_beginning(path, content.peek(HEAD), claimed_packing(path) if codec is None else "")
            yield Opened(content, raw)
        except damaged as error:
            raise UserError(f"{shown(path)} {_reason(error)}.") from error
        except MemoryError as error:
            raise UserError(f"{shown(path)} needs more memory to unpack than there is: pack it anew.") from error


def _unpacked(raw: io.BufferedReader, codec: str | None) -> io.BufferedReader:
    if codec == "gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 17)  # pyright: ignore[reportArgumentType]
    if codec == "xz":
        return io.BufferedReader(lzma.LZMAFile(raw), 1 << 17)  # pyright: ignore[reportArgumentType]
    if codec == "bz2":
        return io.BufferedReader(bz2.BZ2File(raw), 1 << 17)  # pyright: ignore[reportArgumentType]
    return io.BufferedReader(_ZstdStream(raw), 1 << 17) if codec == "zst" else raw


def _reason(error: Exception) -> str:
    """What a decompressor's error means."""
    if "too much memory" in str(error):
        return "has a zstd window above 2^31 bytes, which zstd itself does not unpack: pack it anew"
    if "memory" in str(error):
        return f"needs more memory to unpack than there is ({error}): pack it anew with a smaller window"
    return f"is damaged or cut short ({error}): get the file again"


def check_beginning(path: Path, head: bytes, claimed: str = "") -> None:
    """Name what is no UTF-8 text from its first bytes; `claimed` is a packing that only the file's name speaks of.

    Raises:
        UserError: it is something else.
    """
    if head.startswith(_POINTER):
        raise UserError(f"{shown(path)} is a pointer of Git LFS, not the text itself: fetch it with `git lfs pull`.")
    if head.startswith(_UTF_16):
        raise UserError(f"{shown(path)} is UTF-16: convert the file to UTF-8.")
    if claimed:
        try:
            text = codecs.getincrementaldecoder("utf-8")().decode(head)
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise UserError(
                f"{shown(path)} is neither packed as {claimed} says nor text; it is damaged or cut short: get it again."
            )


def import_for(package: str, extra: str, what: str) -> Any:
    """A package that reading something needs, of an extra of this one.

    Raises:
        UserError: it is missing.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"Reading {what} needs {package}: run `pip install 'widestream[{extra}]'`.") from None
