"""Shards are read through once, and again where something about them has changed."""

import json
import os

import pytest

from tiny_runs import write_data
from widestream.data import store as store_module
from widestream.data.store import TokenStore
from widestream.errors import UserError
from widestream.files import cache_folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WIDESTREAM_CACHE", str(tmp_path / "cache"))
    made = write_data(tmp_path / "data")
    for path in made.iterdir():  # a file that has just changed is not remembered
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return made


def opened(folder):
    return TokenStore.open(folder, "train")


def test_the_second_time_nothing_is_read(folder, monkeypatch):
    assert opened(folder).verify_changed() == 1
    monkeypatch.setattr(store_module, "file_sha256", lambda path: pytest.fail(f"{path} was read"))
    assert opened(folder).verify_changed() == 0


def test_an_altered_shard_is_found_although_it_was_read_before(folder):
    opened(folder).verify_changed()
    shard = folder / "train_00000.bin"
    content = bytearray(shard.read_bytes())
    content[10] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="was altered"):
        opened(folder).verify_changed()


@pytest.mark.parametrize("what", ["time", "copy"])
def test_a_shard_that_was_touched_or_copied_is_read_again(folder, what):
    opened(folder).verify_changed()
    shard = folder / "train_00000.idx"
    if what == "time":
        os.utime(shard, (1_700_000_001, 1_700_000_001))
    else:
        content = shard.read_bytes()
        shard.rename(folder / "aside")
        shard.write_bytes(content)
        os.utime(shard, (1_700_000_000, 1_700_000_000))  # all but the inode is as it was
    assert opened(folder).verify_changed() == 1
    assert opened(folder).verify_changed() == 0


def test_a_shard_that_has_just_changed_is_not_remembered(folder):
    os.utime(folder / "train_00000.bin")
    assert [opened(folder).verify_changed() for _ in range(2)] == [1, 1]


def test_another_manifest_is_not_taken_for_this_one(folder):
    """What is remembered is a hash: a manifest that says another is not satisfied."""
    opened(folder).verify_changed()
    manifest = folder / "manifest.json"
    shard = json.loads(manifest.read_text())["splits"]["train"]["shards"][0]
    manifest.write_text(manifest.read_text().replace(shard["sha256"], "0" * 64))
    with pytest.raises(UserError, match="was altered"):
        opened(folder).verify_changed()


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"train_00000.bin": 3}', b"\x00" * 9, b"[" * 10_000])
def test_a_damaged_record_is_read_over(folder, content):
    opened(folder).verify_changed()
    (record,) = (cache_folder() / "verified").iterdir()
    record.write_bytes(content)
    assert [opened(folder).verify_changed() for _ in range(2)] == [1, 0]


def test_without_a_cache_everything_is_read(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WIDESTREAM_CACHE", str(tmp_path / "file" / "below"))
    assert [opened(folder).verify_changed() for _ in range(2)] == [1, 1]


def test_processes_share_the_work(folder):
    whole = opened(folder)
    assert [whole.verify_changed(part, 3) for part in range(3)] == [1, 0, 0]


def test_reading_everything_is_still_there(folder, monkeypatch):
    opened(folder).verify_changed()
    read = []
    monkeypatch.setattr(store_module, "file_sha256", lambda path: read.append(path) or "0")
    with pytest.raises(UserError, match="was altered"):
        TokenStore.open(folder, "train", verify=True)
    assert read
