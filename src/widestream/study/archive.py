"""Results of studies as one compressed file to keep and to report from: records and run folders without checkpoints."""

import lzma
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from widestream.errors import UserError
from widestream.runs.folder import is_run, reported_files

ENDING = ".tar.xz"


def pack_results(folder: Path, archive: Path) -> int:
    """Pack all records and runs of a folder.

    Args:
        folder: of one scale, as `widestream study run` wrote it.
        archive: the file to write, NAME.tar.xz; replaced when complete.

    Returns:
        Runs packed.

    Raises:
        UserError: no study lies there, or the name has another ending.
    """
    if not archive.name.endswith(ENDING):
        raise UserError(f"{archive} must end in {ENDING}.")
    records = sorted(folder.glob("*.json"))
    if not any(path.name.endswith(".study.json") for path in records):
        raise UserError(f"{folder} holds no study (no *.study.json); run one first.")
    if not archive.parent.is_dir():
        raise UserError(f"The folder {archive.parent} does not exist; make it first.")
    runs = sorted(path for within in ("runs/*", "*") for path in folder.glob(within) if is_run(path))
    files = [*records, *(path for run in runs for path in reported_files(run))]
    partial = archive.with_name(f"{archive.name}.tmp")
    with tarfile.open(partial, "w:xz", preset=9) as tar:
        for path in files:
            tar.add(path, arcname=str(path.relative_to(folder)), filter=_plain)
    partial.replace(archive)
    return len(runs)


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
    if not path.exists():
        raise UserError(f"{path} does not exist; give the folder or the {ENDING} file that `widestream study` wrote.")
    folders = [path] if path.is_dir() else []
    archives = sorted(path.glob(f"*{ENDING}")) if path.is_dir() else [path]
    with tempfile.TemporaryDirectory() as place:
        for archive in archives:
            folders.append(Path(place, archive.name.removesuffix(ENDING)))
            _unpack(archive, folders[-1])
        yield folders


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise UserError(f"{archive} cannot be unpacked; it is damaged or no {ENDING} file.") from error
