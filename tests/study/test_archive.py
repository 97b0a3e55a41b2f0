"""Archives of results: whole or refused, never half."""

import io
import lzma
import os
import random
import shutil
import tarfile

import pytest

from memory import memory_of_at_most
from study_runs import finish, write_study
from widestream.errors import UserError
from widestream.study import archive as archives
from widestream.study import run
from widestream.study.archive import opened, pack_results
from widestream.study.run import StudyOptions, run_study


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_jobs", finish)
        record = run_study(
            str(write_study(folder / "mine.yaml", seeds=1)), StudyOptions(folder=folder / "out", workers=1)
        )
    pack_results(record.parent, folder / "mine.tar.xz")
    return folder / "mine.tar.xz"


def content(archive):
    with opened(archive) as (folder,):
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_unpacked_is_what_was_packed(packed):
    folder = next((packed.parent / "out").rglob("mine.study.json")).parent
    found = content(packed)
    assert "mine.study.json" in found
    assert archives.MANIFEST not in found
    assert all((folder / name).read_bytes() == text for name, text in found.items())


def test_what_was_unpacked_by_hand_and_gone_on_with_is_packed_again(packed, tmp_path):
    shutil.unpack_archive(packed, tmp_path / "cpu")
    record = tmp_path / "cpu" / "mine.study.json"
    record.write_text(record.read_text() + "\n")
    pack_results(tmp_path / "cpu", tmp_path / "again.tar.xz")
    assert content(tmp_path / "again.tar.xz") == content(packed) | {"mine.study.json": record.read_bytes()}


def test_no_altered_byte_is_taken(packed, tmp_path):
    whole, there = packed.read_bytes(), content(packed)
    damaged = tmp_path / "x.tar.xz"
    dice = random.Random(0)
    places = [*range(40), *range(len(whole) - 40, len(whole)), *dice.sample(range(len(whole)), 150)]
    for place in places:
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with pytest.raises(UserError, match="damaged"):
            content(damaged)
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        damaged.write_bytes(whole[:cut])
        with pytest.raises(UserError):
            content(damaged)
    assert content(packed) == there


def repacked(packed, tmp_path, change):
    """The archive with other members, made anew, so that xz's own sums hold."""
    with opened(packed) as (folder,), tarfile.open(tmp_path / "y.tar.xz", "w:xz") as tar:
        with tarfile.open(packed) as old:
            (folder / archives.MANIFEST).write_bytes(old.extractfile(archives.MANIFEST).read())
        change(folder)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            tar.add(path, arcname=str(path.relative_to(folder)))
    return tmp_path / "y.tar.xz"


def test_files_that_are_not_those_of_the_manifest_are_refused(packed, tmp_path):
    def lose(folder):
        next(folder.rglob("metrics.jsonl")).unlink()

    def alter(folder):
        file = next(folder.rglob("metrics.jsonl"))
        file.write_text(file.read_text().replace("1", "2"))

    def add(folder):
        (folder / "more.json").write_text("{}")

    assert content(repacked(packed, tmp_path, lambda folder: None)) == content(packed)
    for change in (lose, alter, add):
        with pytest.raises(UserError, match="damaged"):
            content(repacked(packed, tmp_path, change))


def test_an_archive_that_holds_too_much_is_refused(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST", 1 << 20)
    bomb = tmp_path / "bomb.tar.xz"
    bomb.write_bytes(lzma.compress(bytes(2 << 20)))
    with pytest.raises(UserError, match="holds more than"):
        content(bomb)


def one_file(name, content=b"", **facts):
    """A tar file of one member and its end."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for fact, value in facts.items():
        setattr(member, fact, value)
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            tar.addfile(member, io.BytesIO(content))
        return file.getvalue()


def with_holes():
    """A file of a terabyte that takes 512 bytes of the archive, as GNU's tar writes it."""
    head = bytearray(one_file("runs/a/metrics.jsonl", bytes(512))[:512])
    head[156:157] = tarfile.GNUTYPE_SPARSE
    head[386:410] = b"%011o\0%011o\0" % (0, 512)
    head[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    head[148:156] = b"        "
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + bytes(1536)


HOSTILE = {
    "a link": lambda: one_file("a", type=tarfile.SYMTYPE, linkname="/etc"),
    "a device": lambda: one_file("a", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "a pipe": lambda: one_file("z.study.json", type=tarfile.FIFOTYPE),
    "holes": with_holes,
    "a header of 100 MB": lambda: one_file("a", pax_headers={"comment": "9" * (100 << 20)}),
    "another folder": lambda: one_file("../evil", b"x"),
    "the root": lambda: one_file("/evil", b"x"),
    "a manifest without hashes": lambda: one_file(archives.MANIFEST, b'{"MANIFEST.json": {}}'),
    "a manifest of brackets": lambda: one_file(archives.MANIFEST, b"[" * 100_000),
    "no study": lambda: one_file("a.json", b"{}"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_archive_of_ours_holds_is_refused_without_much_memory(tmp_path, what):
    archive = tmp_path / "hostile.tar.xz"
    archive.write_bytes(lzma.compress(HOSTILE[what](), preset=0))
    with (
        memory_of_at_most(1 << 27),
        pytest.raises(UserError, match=r"^[^\n]*hostile.tar.xz (cannot be unpacked|holds no study)"),
        opened(archive),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.tar.xz"]


def test_an_archive_of_too_many_files_is_refused(packed, monkeypatch):
    monkeypatch.setattr(archives, "MOST", 2)
    with pytest.raises(UserError, match="cannot be unpacked"):
        content(packed)


def test_pipes_are_neither_read_nor_packed(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar.xz")
    with pytest.raises(UserError, match="is no file"), opened(tmp_path / "pipe.tar.xz"):
        pass
    os.mkfifo(tmp_path / "a.study.json")
    with pytest.raises(UserError, match=r"a.study.json is no file"):
        pack_results(tmp_path, tmp_path / "x.tar.xz")


def test_a_full_disk_leaves_the_older_archive(packed, tmp_path, monkeypatch):
    folder = next((packed.parent / "out").rglob("mine.study.json")).parent
    archive = tmp_path / "kept.tar.xz"
    pack_results(folder, archive)
    before = archive.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "add", full)
    with pytest.raises(UserError, match="No space left on device"):
        pack_results(folder, archive)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.tar.xz"]
    assert archive.read_bytes() == before
