"""Prepared data behind a URL, such as s3://bucket/folder: whatever fsspec opens.

A folder of the cache stands for them here. It gets the manifest and the tokenizer at once, and every shard when it is
first needed, whole and only if its hash is the manifest's. Its name is a hash of the URL and of the manifest, so data
that are prepared anew under the same URL are other data.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from widestream.data.names import MANIFEST, shown
from widestream.data.tokenizer_base import TOKENIZER_FILE
from widestream.errors import UserError
from widestream.files import cache_folder, disk_errors, make_folder, read_json, write_atomic

_REMOTE = "remote.json"
"""In a folder of the cache: the URL that it stands for."""
_PIECE = 4 << 20
"""Bytes that are read at a time."""
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)")


def url_of(path: str | Path) -> str | None:
    """The URL that a path is, without a slash at its end; None for a path of this machine.

    Of two slashes a `Path` keeps one, so one is enough.
    """
    found = _URL.fullmatch(str(path))
    with contextlib.suppress(OSError):  # a name that is too long for a file
        found = None if Path(path).exists() else found
    if found is None:
        return None
    scheme, rest = found.groups()
    return f"{scheme}://{'/' * (scheme == 'file')}{rest}".rstrip("/")


def local_folder(path: str | Path) -> Path:
    """The folder of this machine in which prepared data are found: the one place where URLs become folders.

    Args:
        path: a folder, or the URL of one.

    Returns:
        The folder itself; for a URL one with manifest and tokenizer, whose shards `fetch` brings.

    Raises:
        UserError: nothing is there, there is no way to read it, or the cache cannot be written to.
    """
    url = url_of(path)
    return Path(path) if url is None else _standing_for(url)


@functools.cache
def _standing_for(url: str) -> Path:
    """The folder for a URL. Within a process its data stay what they are."""
    manifest = _read(url, MANIFEST)
    if manifest is None:
        raise UserError(
            f"{shown(url)} holds no prepared data ({MANIFEST} is missing): check the URL, or copy a folder there that "
            "`widestream data prepare` made."
        )
    folder = cache_folder() / "data" / hashlib.sha256(url.encode() + b"\n" + manifest).hexdigest()[:24]
    about = json.dumps({"url": url}).encode()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{shown(folder)} is no folder: remove it, and the data are fetched there.")
    with disk_errors(folder, "start again, or set WIDESTREAM_CACHE to another folder"):
        # Also where somebody, or a full disk, has damaged what was here: the right ones are at hand.
        if not _holds(folder / _REMOTE, about) or not _holds(folder / MANIFEST, manifest):
            make_folder(folder)
            tokenizer = _read(url, TOKENIZER_FILE)  # bytes need none; where one is missed, its reader says so
            if tokenizer is not None:
                write_atomic(folder / TOKENIZER_FILE, tokenizer)
            write_atomic(folder / _REMOTE, about)
            write_atomic(folder / MANIFEST, manifest)
    return folder


def _holds(file: Path, content: bytes) -> bool:
    """Whether a file is there and has this content."""
    return file.is_file() and file.stat().st_size == len(content) and file.read_bytes() == content


def is_remote(folder: Path) -> bool:
    """Whether a folder stands for a URL, so that shards may still be missing there."""
    return (folder / _REMOTE).is_file()


def fetch(folder: Path, file: str, sha256: str) -> bool:
    """Bring a file of remote data here, unless it is here. Of several processes that want it one fetches.

    Args:
        folder: of `local_folder`.
        file: name of the file.
        sha256: what its hash must be.

    Returns:
        Whether it was fetched now.

    Raises:
        UserError: it is not there, it cannot be read, its hash is another one, or the disk is full.
    """
    target = folder / file
    if target.exists():
        return False
    url = read_json(folder / _REMOTE)["url"]
    with disk_errors(folder, "start again, or set WIDESTREAM_CACHE to another folder"), _alone(target):
        if target.exists():
            return False
        aside = target.with_name(f"{file}.{secrets.token_hex(4)}.tmp")
        try:
            if (found := _download(url, file, aside)) != sha256:
                raise UserError(
                    f"{shown(url)}/{file} is not what its manifest says (its SHA-256 is {found[:12]}..., not "
                    f"{sha256[:12]}...): copy the prepared folder there again."
                )
            aside.replace(target)
        except FileNotFoundError:
            raise UserError(f"{shown(url)}/{file} is missing: copy the prepared folder there again.") from None
        finally:
            aside.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold a lock beside a file. It saves fetching twice; that the file is whole does not hang on it."""
    path = target.with_name(f"{target.name}.lock")
    with FileLock(path):
        try:
            yield
        finally:  # while it is held, so that nobody's lock is taken away
            path.unlink(missing_ok=True)


def _download(url: str, file: str, aside: Path) -> str:
    """Write a remote file to `aside`; returns its SHA-256."""
    digest = hashlib.sha256()
    with aside.open("wb") as target:
        for piece in _pieces(url, file):
            target.write(piece)
            digest.update(piece)
        target.flush()
        os.fsync(target.fileno())
    return digest.hexdigest()


def _read(url: str, file: str) -> bytes | None:
    """A small remote file; None if it is not there."""
    try:
        return b"".join(_pieces(url, file))
    except FileNotFoundError:
        return None


def _pieces(url: str, file: str) -> Iterator[bytes]:
    """The content of a remote file.

    Raises:
        FileNotFoundError: it is not there.
        UserError: there is no way to read it.
    """
    system, path = file_system(url)
    try:
        with system.open(f"{path}/{file}", "rb") as source:
            while piece := source.read(_PIECE):
                yield piece
    except FileNotFoundError:
        raise
    except Exception as error:  # every kind of storage has errors of its own
        raise UserError(
            f"Cannot read {shown(url)}/{file} ({type(error).__name__}: {shown(str(error)[:200])}): check the network "
            "and your rights there, then start again; what was fetched is kept."
        ) from error


def file_system(url: str) -> tuple[Any, str]:
    """What fsspec opens a URL with, and the path that the URL has there.

    Raises:
        UserError: a package is missing, or there is no such kind of URL.
    """
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)
    except ImportError as error:
        raise UserError(
            f"{shown(url)} needs a package that is not installed ({error}): `pip install 'widestream[remote]'`, and "
            "the package of that kind of storage, such as s3fs or gcsfs."
        ) from error
    except ValueError as error:
        raise UserError(
            f"{shown(url)} cannot be opened ({error}): give a folder, or a URL that fsspec knows."
        ) from error
