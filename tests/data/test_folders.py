"""Folders as they come: links, split names, cards, pipes, names that are not UTF-8."""

import json
import os

import pytest
from small_corpora import texts, write_jsonl

from widestream.data.manifest import read_manifest
from widestream.data.options import PrepareOptions
from widestream.data.prepare import prepare
from widestream.data.sources import open_corpus
from widestream.data.tokenizer import ByteTokenizer
from widestream.errors import UserError


def labels(*paths) -> dict[str, str | None]:
    return {source.label: source.split for source in open_corpus(paths).sources}


def passed_over(*paths) -> dict[str, str]:
    return {entry.path: entry.reason for entry in open_corpus(paths).passed_over}


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / name, texts(10, seed=len(name)))
    return folder


def test_links_to_folders_are_followed(tmp_path):
    write(tmp_path, "store/b.jsonl", "links/a.jsonl")
    (tmp_path / "links" / "part1").symlink_to("../store")
    assert list(labels(tmp_path / "links")) == ["a.jsonl", "part1/b.jsonl"]


def test_what_is_reached_twice_is_read_once_and_said(tmp_path):
    write(tmp_path, "b/x.jsonl")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b" / "up").symlink_to("..")
    (tmp_path / "y.jsonl").symlink_to("b/x.jsonl")
    os.link(tmp_path / "b" / "x.jsonl", tmp_path / "b" / "z.jsonl")
    assert list(labels(tmp_path)) == ["b/x.jsonl"]
    first = tmp_path / "b" / "x.jsonl"
    assert passed_over(tmp_path) == {
        str(tmp_path / "a"): f"the same as {tmp_path / 'b'}",
        str(tmp_path / "b" / "up"): f"the same as {tmp_path}",
        str(tmp_path / "b" / "z.jsonl"): f"the same as {first}",
        str(tmp_path / "y.jsonl"): f"the same as {first}",
    }


def test_a_link_of_a_snapshot_goes_by_its_own_name(tmp_path):
    write(tmp_path, "blobs/0123.jsonl")
    (tmp_path / "blobs" / "0123.jsonl").rename(tmp_path / "blobs" / "0123")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "train.jsonl").symlink_to("../blobs/0123")
    assert len(list(open_corpus([tmp_path / "snapshot"]).documents())) == 10


def test_a_broken_link_is_named(tmp_path):
    write(tmp_path, "a.jsonl")
    (tmp_path / "gone.jsonl").symlink_to("../nowhere/gone.jsonl")
    for path in (tmp_path, tmp_path / "gone.jsonl"):
        with pytest.raises(UserError, match=r"gone.jsonl is a broken link"):
            open_corpus([path])
    (tmp_path / "gone.jsonl").rename(tmp_path / "gone.lock")
    assert list(labels(tmp_path)) == ["a.jsonl"]


def test_pipes_are_refused_and_in_folders_passed_over(tmp_path):
    write(tmp_path, "a.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match=r"pipe.jsonl is no regular file"):
        open_corpus([tmp_path / "pipe.jsonl"])
    assert passed_over(tmp_path) == {str(tmp_path / "pipe.jsonl"): "no regular file"}
    with pytest.raises(UserError, match="/dev/null is no regular file"):
        open_corpus(["/dev/null"])


def test_splits_in_names(tmp_path):
    folder = write(tmp_path, "data/train-0.jsonl", "data/validation-0.jsonl", "data/test-0.jsonl", "more.jsonl")
    (folder / "README.md").write_text("# A card")
    assert labels(folder) == {
        "data/test-0.jsonl": "test",
        "data/train-0.jsonl": "train",
        "data/validation-0.jsonl": "heldout",
        "more.jsonl": None,
    }
    assert passed_over(folder) == {str(folder / "README.md"): "about the data, not of them"}


@pytest.mark.parametrize("names", [["train-0.jsonl", "train-1.jsonl"], ["train.jsonl", "a.jsonl"], ["test.jsonl"]])
def test_names_that_tell_nothing_apart_do_not_count(tmp_path, names):
    assert set(labels(write(tmp_path, *names)).values()) == {None}


def test_splits_in_the_names_of_arguments(tmp_path):
    write(tmp_path, "train/a.jsonl", "test/b.jsonl", "dev.jsonl")
    assert labels(tmp_path / "train", tmp_path / "test") == {"a.jsonl": "train", "b.jsonl": "test"}
    assert labels(tmp_path / "train" / "a.jsonl", tmp_path / "dev.jsonl") == {"a.jsonl": None, "dev.jsonl": "heldout"}


def test_a_snapshot_is_prepared_by_its_names(tmp_path):
    folder = write(tmp_path / "snapshot", "train-0.jsonl", "test-0.jsonl")
    prepare([folder], tmp_path / "out", ByteTokenizer(), workers=1, progress=False)
    manifest = read_manifest(tmp_path / "out")
    assert {name: split.documents for name, split in manifest.splits.items()} == {"train": 10, "test": 10}
    assert [(file.path, file.split) for file in manifest.files] == [
        (str(folder / "test-0.jsonl"), "test"),
        (str(folder / "train-0.jsonl"), "train"),
    ]
    with pytest.raises(UserError, match=r"no split 'heldout'; it has train, test: .*data.heldout_split=none"):
        manifest.split("heldout", tmp_path / "out")


def test_splits_of_records_have_the_same_words(tmp_path):
    words = ["train", "training", "validation", "Valid", "dev", "heldout", "test", "eval"]
    source = write_jsonl(tmp_path / "a.jsonl", texts(8), words)
    found = [document.split for document in open_corpus([source]).documents()]
    assert found == ["train"] * 2 + ["heldout"] * 4 + ["test"] * 2


def test_a_name_that_is_not_utf8(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts(20))
    folder = tmp_path / "names"
    folder.mkdir()
    source.rename(folder / os.fsdecode(b"caf\xe9.jsonl"))
    prepare([folder], tmp_path / "out", ByteTokenizer(), PrepareOptions(heldout=0.2), workers=1, progress=False)
    raw = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert raw["files"] == [{"path": str(folder) + r"/caf\xe9.jsonl", "split": None, "bytes": raw["files"][0]["bytes"]}]
