"""`widestream data merge`: parts of a corpus, prepared by jobs of their own -> one prepared folder.

Parts are runs of the corpus's files, and every part holds out what the whole would. So the merged folder has the same
documents in the same order, and the same description, as one preparation of everything; only its shards end elsewhere.
"""

import itertools
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from widestream.data.making import make_folder
from widestream.data.manifest import MOST_NOTED, Manifest, ShardInfo, Skipped, SplitInfo, read_manifest
from widestream.data.names import kind_of, shown
from widestream.data.options import DEFAULTS
from widestream.data.prepare import check_splits
from widestream.data.sources import SPLITS
from widestream.data.staging import Staging, plan_of
from widestream.data.store import check_sizes
from widestream.data.tokenizer import load_tokenizer
from widestream.errors import UserError

_MAY_DIFFER = ("skip_bad", "allow_lost_text")
"""Options without which a part comes out the same, or not at all."""


def merge(folders: Sequence[str | Path], out: str | Path, *, overwrite: bool = False) -> Manifest:
    """Join the parts of a corpus.

    Shards are hard links to those of the parts where the file system can, and copies elsewhere; the parts may be
    deleted afterwards.

    Args:
        folders: of `widestream data prepare --part i/n`, all n of them in any order.
        out: folder to make. While the work goes on, it is in OUT.preparing.
        overwrite: replace data prepared in another way (they stay until the new ones are complete).

    Returns:
        The manifest.

    Raises:
        UserError: a folder is no part, one is missing or there twice, they do not belong together or are damaged,
            nothing ends up in a split, or the disk is full.
    """
    parts = _in_order([Path(folder) for folder in folders])
    _check_alike(parts)
    merged = _merged([manifest for _, manifest in parts])
    text_files = any(kind_of(Path(file.path)) == "text" for file in merged.files)
    check_splits(merged.splits, merged.settings["heldout"], merged.skipped, text_files)

    def work(staging: Staging) -> None:
        if not overwrite and (staging.recorded or staging.complete):
            raise UserError(
                f"{shown(staging.folder)} holds what another command began: let it go on, give another --out, or "
                "--overwrite to throw it away."
            )
        staging.clear()
        load_tokenizer(parts[0][0]).save(staging.folder)
        for split, info in merged.splits.items():
            for (folder, old), new in zip(_shards(parts, split), info.shards, strict=True):
                _bring(folder / old.file, staging.folder / new.file)
                _bring(folder / old.index_file, staging.folder / new.index_file)
        staging.finish(merged)

    return make_folder(Path(out), plan_of(merged), [], work, overwrite=overwrite)


_Parts = list[tuple[Path, Manifest]]


def _in_order(folders: Sequence[Path]) -> _Parts:
    """The parts from the first to the last.

    Raises:
        UserError: a folder is no part, or they are not 1 to n, each of them once.
    """
    found: dict[int, tuple[Path, Manifest]] = {}
    count = 0
    for folder in folders:
        manifest = read_manifest(folder)
        number, parts = _place(folder, manifest)
        if found and parts != count:
            first = next(iter(found.values()))[0]
            raise UserError(
                f"{shown(folder)} is a part of {parts} and {shown(first)} of {count}: give the parts of one division."
            )
        if number in found:
            raise UserError(
                f"{shown(folder)} and {shown(found[number][0])} are both part {number} of {parts}: give one of them."
            )
        found[number], count = (folder, manifest), parts
    if missing := count - len(found):
        first = itertools.islice((number for number in range(1, count + 1) if number not in found), 8)
        names = ", ".join(f"{number}/{count}" for number in first) + ", ..." * (missing > 8)
        raise UserError(
            f"{missing} of {count} parts missing: {names}; prepare with --part what is not there yet, and give it."
        )
    return [found[number] for number in sorted(found)]


def _place(folder: Path, manifest: Manifest) -> tuple[int, int]:
    """Which part of how many a folder is.

    Raises:
        UserError: it is none.
    """
    match manifest.settings.get("part"):
        case [int() as number, int() as parts] if 1 <= number <= parts:
            return number, parts
    raise UserError(
        f"{shown(folder)} is no part, but prepared as a whole: give folders made by "
        "`widestream data prepare ... --part i/n`."
    )


def _check_alike(parts: _Parts) -> None:
    """Refuse what was not prepared from the same files in the same way, or is not what its manifest says.

    Raises:
        UserError: see above.
    """
    (first, manifest), *others = parts
    wanted = _common(manifest)
    for folder, other in others:
        found = _common(other)
        if different := [key for key in wanted if wanted[key] != found.get(key)]:
            raise UserError(
                f"{shown(folder)} was prepared with different {' and '.join(different)} than {shown(first)}: prepare "
                "it again with the same sources, tokenizer and options."
            )
    for folder, part in parts:
        for split in part.splits.values():
            check_sizes(folder, split.shards, part.dtype)


def _common(manifest: Manifest) -> dict[str, Any]:
    """What must be the same for all parts; options one by one."""
    plan = plan_of(manifest)
    options = {key: value for key, value in plan.pop("settings").items() if key not in (*_MAY_DIFFER, "part")}
    return plan | {f"--{key.replace('_', '-')}": value for key, value in options.items()}


def _merged(parts: Sequence[Manifest]) -> Manifest:
    """The manifest of all parts together."""
    skipped = Skipped(
        records=sum(part.skipped.records for part in parts),
        first=list(itertools.chain(*(part.skipped.first for part in parts)))[:MOST_NOTED],
    )
    splits = {name: [part.splits[name] for part in parts if name in part.splits] for name in SPLITS}
    used = {key: any(part.settings.get(key) for part in parts) for key in _MAY_DIFFER}
    return replace(
        parts[0],
        settings=asdict(DEFAULTS) | parts[0].settings | used | {"part": None},
        empty_documents=sum(part.empty_documents for part in parts),
        splits={name: _merged_split(name, infos) for name, infos in splits.items() if infos},
        files=tuple(itertools.chain(*(part.files for part in parts))),
        skipped=skipped,
    )


def _merged_split(name: str, infos: Sequence[SplitInfo]) -> SplitInfo:
    """One split of all parts; its shards are numbered anew."""
    shards = itertools.chain(*(info.shards for info in infos))
    return SplitInfo(
        shards=tuple(replace(shard, file=f"{name}_{number:05d}.bin") for number, shard in enumerate(shards)),
        tokens=sum(info.tokens for info in infos),
        documents=sum(info.documents for info in infos),
        bytes=sum(info.bytes for info in infos),
        characters=sum(info.characters for info in infos),
        lost_characters=sum(info.lost_characters for info in infos),
        changed_documents=sum(info.changed_documents for info in infos),
    )


def _shards(parts: _Parts, split: str) -> list[tuple[Path, ShardInfo]]:
    """Folder and shard, in the order in which `_merged_split` numbers them."""
    return [(folder, shard) for folder, part in parts if split in part.splits for shard in part.splits[split].shards]


def _bring(old: Path, new: Path) -> None:
    """Make a file another name, or copy it to another file system."""
    try:
        new.hardlink_to(old.resolve())
    except OSError:  # another file system, one without links, or the most links that it lets a file have
        shutil.copyfile(old, new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
