"""Making a prepared folder: what `prepare` and `merge` have in common, with clear words for what is wrong with OUT."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from widestream.data.manifest import MANIFEST, Manifest, read_manifest
from widestream.data.names import shown
from widestream.data.remote import url_of
from widestream.data.staging import Staging, check_out, check_plan, made_no_difference, plan_of
from widestream.errors import UserError
from widestream.files import disk_errors


def make_folder(
    out: Path,
    plan: dict[str, Any],
    stamp: list[Any],
    work: Callable[[Staging], None],
    *,
    overwrite: bool,
) -> Manifest:
    """Make OUT, unless it is there in the same way; it appears when all of it is there.

    Args:
        out: the folder to make.
        plan: what determines its content, see `plan_of`.
        stamp: of the files that it is made from.
        work: fills the folder of the staging, and ends with its `finish`.
        overwrite: replace data made in another way.

    Returns:
        The manifest.

    Raises:
        UserError: OUT or what was begun of it is something else, the disk is full, or what `work` raises.
    """
    if url := url_of(out):
        raise UserError(f"{shown(url)} cannot be written to: give a folder here as --out, and copy it there.")
    with disk_errors(out, "run the same command again; what was done is kept"), _other_errors(out):
        check_out(out)
        if (out / MANIFEST).exists() and not overwrite:
            manifest = read_manifest(out)
            forgiven = made_no_difference(manifest.skipped, manifest.splits.values())
            check_plan(plan, plan_of(manifest), out, "already prepared", forgiven)
            return manifest
        staging = Staging(out, plan, stamp)
        with staging.locked():
            if staging.complete and staging.is_as_planned:
                staging.publish()
                return read_manifest(out)
            try:
                work(staging)
            except UserError:
                if not (staging.recorded or staging.complete):
                    staging.clear()
                    staging.folder.rmdir()
                raise
    return read_manifest(out)


@contextlib.contextmanager
def _other_errors(out: Path) -> Iterator[None]:
    """Turn what is wrong with OUT, or too little memory, into a `UserError`; `disk_errors` has the frequent cases."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.EINVAL):
            raise UserError(f"{shown(out)} cannot be made ({error.strerror}): give another --out.") from error
        raise
    except MemoryError as error:
        raise UserError("There is too little memory: give fewer --workers, or a smaller --max-record.") from error
