"""Results of studies as one compressed file to keep and to report from: records and run folders without checkpoints.

An archive is a tar file under xz. Its first member, `MANIFEST.json`, holds size and sha256 of every other one.
"""

import hashlib
import io
import json
import lzma
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from widestream.errors import UserError
from widestream.files import read_json
from widestream.runs.folder import is_run, reported_files
from widestream.study.page.results import RECORD

ENDING = ".tar.xz"
MANIFEST = "MANIFEST.json"
LARGEST = 4 << 30
"""Bytes that an archive may hold; one that holds more was not made here."""
MOST = 100_000
"""Files that an archive may hold."""
_PIECE = 1 << 20
_LONGEST_HEADER = 16 << 10
"""Bytes of one of tar's headers: as many as it takes of a file at once, and far more than the longest name needs."""


def pack_results(folder: Path, archive: Path) -> int:
    """Pack all records and runs of a folder.

    Args:
        folder: of one scale, as `widestream study run` wrote it.
        archive: the file to write, NAME.tar.xz; one that holds nothing else is replaced when complete.

    Returns:
        Runs packed.

    Raises:
        UserError: no study lies there, the name has another ending, or the archive holds what would be lost.
    """
    if not archive.name.endswith(ENDING):
        raise UserError(f"{archive} must end in {ENDING}.")
    # A list of files lies there where an archive was unpacked by hand, to go on with its studies: it is made anew.
    records = sorted(path for path in folder.glob("*.json") if path.name != MANIFEST)
    if not any(path.name.endswith(RECORD) for path in records):
        raise UserError(f"{folder} holds no study (no *.study.json); run one first.")
    if odd := next((path for path in records if not path.is_file()), None):
        raise UserError(f"{odd} is no file; move it away.")  # opening a pipe would wait for ever
    if not archive.parent.is_dir():
        raise UserError(f"The folder {archive.parent} does not exist; make it first.")
    runs = sorted(path for within in ("runs/*", "*") for path in folder.glob(within) if is_run(path))
    files = [*records, *(path for run in runs for path in reported_files(run))]
    if archive.exists():
        _require_superseded(archive, folder, {str(path.relative_to(folder)) for path in files})
    try:
        _write(archive, folder, files)
    except OSError as error:
        raise UserError(f"{archive} cannot be written: {error.strerror}.") from error
    return len(runs)


def _write(archive: Path, folder: Path, files: list[Path]) -> None:
    """Write the archive whole, or not at all."""
    manifest = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files
    }
    first = json.dumps(manifest, indent=0, sort_keys=True).encode()
    partial = archive.with_name(f"{archive.name}.tmp")
    try:
        with tarfile.open(partial, "w:xz", preset=9) as tar:
            head = tarfile.TarInfo(MANIFEST)
            head.size = len(first)
            tar.addfile(_plain(head), io.BytesIO(first))
            for path in files:
                tar.add(path, arcname=str(path.relative_to(folder)), filter=_plain)
        partial.replace(archive)
    finally:
        partial.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_superseded(archive: Path, folder: Path, names: set[str]) -> None:
    """Make sure that an archive that lies there is of the same studies and holds no run that is not packed again.

    Raises:
        UserError: names what would be lost, or the file is no archive.
    """
    with opened(archive) as (there,):
        kept = [path for path in there.rglob("*") if path.is_file()]
        lost = next((path for path in kept if str(path.relative_to(there)) not in names), None)
        if lost is not None:
            raise UserError(f"{archive} holds {lost.relative_to(there)}, which {folder} lacks; give another file.")
        for path in kept:
            if path.name.endswith(RECORD) and _title(path) != _title(folder / path.name):
                raise UserError(f"{archive} holds another study as {path.name}, and stays as it is; give another file.")


def _title(record: Path) -> Any:
    """Of what study a record is; what is none has no title."""
    found = read_json(record)
    return found.get("title") if isinstance(found, dict) else None


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without what only says who packed it and when."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mode = 0o644
    return info


@contextmanager
def opened(path: Path) -> Iterator[list[Path]]:
    """Folders of results: a folder and the archives that lie in it, or one archive, unpacked while they are needed.

    Raises:
        UserError: neither a folder nor a readable archive.
    """
    if not path.is_dir() and not path.is_file():  # opening a pipe would wait for ever
        raise UserError(
            f"{path} does not exist or is no file; give the folder or the {ENDING} file that `widestream study` wrote."
        )
    folders = [path] if path.is_dir() else []
    archives = sorted(path.glob(f"*{ENDING}")) if path.is_dir() else [path]
    with tempfile.TemporaryDirectory() as place:
        for archive in archives:
            folders.append(Path(place, archive.name.removesuffix(ENDING)))
            _unpack(archive, folders[-1])
        yield folders


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive that is whole to the last byte.

    All of it is decompressed first, which checks the sums that xz keeps; tar alone stops reading at the first header
    that it does not understand, as if there were no more.

    Raises:
        UserError: it is damaged, no archive, or holds too much.
    """
    try:
        with tempfile.TemporaryFile() as plain:
            fits = _decompress(archive, plain)
            if fits:
                _extract(plain, folder)
                _check(folder)
    except _DAMAGED as error:
        raise UserError(f"{archive} cannot be unpacked; it is damaged or no {ENDING} file.") from error
    if not fits:
        raise UserError(f"{archive} holds more than {LARGEST >> 30} GB; it was not packed here.")
    if not any(folder.glob(f"*{RECORD}")):
        raise UserError(f"{archive} holds no study; give one that `widestream study pack` wrote.")


def _decompress(archive: Path, plain: IO[bytes]) -> bool:
    """Write what an archive holds, to the end; False where that is too much."""
    with lzma.open(archive) as packed:
        while piece := packed.read(_PIECE):
            if plain.tell() + len(piece) > LARGEST:
                return False
            plain.write(piece)
    return True


_DAMAGED = (
    *(tarfile.TarError, lzma.LZMAError, EOFError, OSError),
    *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),  # of numbers, names and values made up
    *(MemoryError, RecursionError),  # a dictionary of gigabytes that xz shall keep
)


class _InPieces:
    """An unpacked archive, read in small pieces: how long a header is says the archive, and tar reads it at once."""

    def __init__(self, plain: IO[bytes]):
        self._plain = plain
        self.tell, self.seek = plain.tell, plain.seek

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise ValueError(f"a header of {size} bytes")
        return self._plain.read(size)


def _extract(plain: IO[bytes], folder: Path) -> None:
    """Write the files of an archive, which has nothing else in it: no links, no devices, no files with holes.

    Raises:
        ValueError: it has, or has too many.
    """
    plain.seek(0)
    with tarfile.open(fileobj=_InPieces(plain), mode="r:") as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for number, member in enumerate(tar):
            if not member.isreg() or member.issparse() or number > MOST:
                raise ValueError(f"{member.name} is no plain file, or one too many")
            source = tar.extractfile(member)
            assert source is not None
            place = _inside(folder, member.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as file:
                shutil.copyfileobj(source, file, _LONGEST_HEADER)


def _inside(folder: Path, name: str) -> Path:
    """Where a file of an archive belongs. (`tarfile.data_filter` would see to it, which Python 3.11.2 lacks, Debian's.)

    Raises:
        ValueError: nowhere in the folder.
    """
    inner = PurePosixPath(name)
    if inner.is_absolute() or ".." in inner.parts or not inner.parts:
        raise ValueError(f"{name!r} leads out of the archive")
    return folder / inner


def _check(folder: Path) -> None:
    """Hold what was unpacked against its manifest, and take that away; archives of earlier versions have none.

    Raises:
        UserError: the manifest cannot be read.
        ValueError: a file is missing, altered, or not in the manifest.
    """
    listing = folder / MANIFEST
    if not listing.exists():
        return
    manifest = read_json(listing)
    listing.unlink()
    there = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    if there.keys() != manifest.keys() or any(_sha256(there[name]) != one["sha256"] for name, one in manifest.items()):
        raise ValueError("the manifest and the files differ")
