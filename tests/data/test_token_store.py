import gc
import hashlib
import json
import os
import resource
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_corpora import prepare_bytes, texts

from widestream.data.manifest import read_manifest
from widestream.data.store import TokenStore
from widestream.errors import UserError

DOCUMENTS = ["first", "x", "", "a third one", "東京", *texts(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare_bytes(tmp_path_factory.mktemp("data"), DOCUMENTS, shard_tokens=500)


@pytest.fixture
def fresh(tmp_path):
    return prepare_bytes(tmp_path, ["one", "two", "three"], ["four"])


def expected() -> tuple[list[int], list[int]]:
    """All tokens and the number of the document of each, made the plain way."""
    kept = [text for text in DOCUMENTS if text]
    tokens = [token for text in kept for token in (256, *text.encode())]
    return tokens, [number for number, text in enumerate(kept) for _ in range(1 + len(text.encode()))]


def test_a_store_that_nobody_needs_is_gone_at_once(folder):
    """Its shards too, whose pages count as the process's memory; without waiting for the collector of circles."""
    store = TokenStore.open(folder, "train")
    assert len(store.window(0, 10)[0]) == 10
    shard = weakref.ref(store._shard(0).tokens)
    gc.disable()
    try:
        del store
        assert shard() is None
    finally:
        gc.enable()


def test_totals(folder):
    store = TokenStore.open(folder, "train", verify=True)
    assert len(read_manifest(folder).splits["train"].shards) > 3
    assert store.tokens == len(expected()[0])
    assert store.documents == sum(1 for text in DOCUMENTS if text)
    assert store.source_bytes == sum(len(text.encode()) for text in DOCUMENTS)
    assert (store.vocab_size, store.boundary_id) == (257, 256)
    assert read_manifest(folder).empty_documents == 1


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_windows_straddle_documents_and_shards(folder, data):
    store = TokenStore.open(folder, "train")
    start = data.draw(st.integers(0, store.tokens))
    length = data.draw(st.integers(0, store.tokens - start))
    all_tokens, owners = expected()
    tokens, segments = store.window(start, length)
    assert (tokens.dtype, segments.dtype) == (np.int64, np.int32)
    assert tokens.tolist() == all_tokens[start : start + length]
    assert segments.tolist() == [owner - owners[start] for owner in owners[start : start + length]]


def test_segments_do_not_come_from_token_ids(tmp_path):
    """A boundary id inside a document starts no segment, and documents of one token stay apart."""
    folder = prepare_bytes(tmp_path, ["ab", "c", "d"])
    tokens = np.array([256, 256, 98, 256, 99, 256, 100], dtype="<u2")
    tokens.tofile(folder / "train_00000.bin")
    assert TokenStore.open(folder, "train").window(0, 7)[1].tolist() == [0, 0, 0, 1, 1, 2, 2]
    np.array([0, 1, 2], dtype="<u8").tofile(folder / "train_00000.idx")
    assert TokenStore.open(folder, "train").window(0, 7)[1].tolist() == [0, 1, 2, 2, 2, 2, 2]


def test_documents_one_by_one(folder):
    store = TokenStore.open(folder, "train")
    found = [bytes(store.document(i).tolist()).decode() for i in range(store.documents)]
    assert found == [text for text in DOCUMENTS if text]


def test_fingerprint_follows_the_content(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, last in zip(folders, ("same", "same", "other"), strict=True):
        folder.mkdir()
        prepare_bytes(folder, ["one", last])
    prints = [TokenStore.open(folder / "prepared", "train").fingerprint for folder in folders]
    assert prints[0] == prints[1] != prints[2]
    assert TokenStore.open(folders[0] / "prepared", "heldout").fingerprint != prints[0]


def test_not_a_prepared_folder(tmp_path):
    with pytest.raises(UserError, match=r"holds no prepared data .*widestream data prepare"):
        TokenStore.open(tmp_path, "train")


def test_unknown_split(fresh):
    with pytest.raises(UserError, match="has no split 'test'; it has train, heldout"):
        TokenStore.open(fresh, "test")


def test_altered_shard_is_found_by_verify(fresh):
    shard = fresh / "train_00000.bin"
    shard.write_bytes(shard.read_bytes().replace(b"o\0", b"0\0", 1))
    TokenStore.open(fresh, "train")
    with pytest.raises(UserError, match=r"train_00000.bin was altered .*--overwrite"):
        TokenStore.open(fresh, "train", verify=True)
    TokenStore.open(fresh, "heldout", verify=True)


def test_altered_document_starts_are_found_by_verify(fresh):
    np.array([0, 5, 8], dtype="<u8").tofile(fresh / "train_00000.idx")
    with pytest.raises(UserError, match=r"train_00000.idx was altered"):
        TokenStore.open(fresh, "train", verify=True)


@pytest.mark.parametrize("name", ["train_00000.bin", "train_00000.idx"])
def test_shard_of_another_size_is_always_found(fresh, name):
    with (fresh / name).open("ab") as file:
        file.write(b"\0\0")
    with pytest.raises(UserError, match=rf"{name} has \d+ bytes, its manifest says \d+"):
        TokenStore.open(fresh, "train")


def test_missing_shard(fresh):
    (fresh / "train_00000.bin").unlink()
    with pytest.raises(UserError, match=r"train_00000.bin is missing"):
        TokenStore.open(fresh, "train")


def edit_manifest(folder, edit):
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))


def test_manifest_of_another_format(fresh):
    edit_manifest(fresh, lambda raw: raw.update(format=2))
    with pytest.raises(UserError, match="has format 2, this version of widestream reads format 1"):
        TokenStore.open(fresh, "train")


def test_token_outside_the_vocabulary_is_found_by_verify(fresh):
    shard = fresh / "train_00000.bin"
    shard.write_bytes(shard.read_bytes().replace(b"o\0", b"o\2", 1))
    sha256 = hashlib.sha256(shard.read_bytes()).hexdigest()
    edit_manifest(fresh, lambda raw: raw["splits"]["train"]["shards"][0].update(sha256=sha256))
    with pytest.raises(UserError, match=r"holds token 623, but the vocabulary has 257 ids"):
        TokenStore.open(fresh, "train", verify=True)


def test_manifest_that_does_not_add_up(fresh):
    edit_manifest(fresh, lambda raw: raw["splits"]["train"].update(tokens=3))
    with pytest.raises(UserError, match="do not add up"):
        TokenStore.open(fresh, "train")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        '{"format": 1}',
        '{"format": 1, "splits": {"train": 3}}',
        "[" * 10**5,
        "\udce9",
        '{"format": []}',
    ],
)
def test_damaged_manifest(fresh, text):
    (fresh / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"manifest.json"):
        TokenStore.open(fresh, "train")


WRONG = [
    (("splits", "heldout", "bytes"), 0),  # would divide by zero after training
    (("splits", "heldout", "bytes"), -5),
    (("splits", "heldout", "lost_characters"), -1),
    (("splits", "heldout", "bytes"), "six"),
    (("splits", "train", "tokens"), True),
    (("splits", "train", "tokens"), 10**30),
    (("splits", "train", "shards"), []),
    (("splits", "train", "shards", 0, "file"), "../../train_00000.bin"),
    (("splits", "train", "shards", 0, "file"), "/etc/passwd"),
    (("splits", "train", "shards", 0, "documents"), 0),
    (("splits", "train", "shards", 0, "sha256"), "x"),
    (("splits",), {}),
    (("dtype",), "object"),
    (("dtype",), None),
    (("tokenizer", "boundary_id"), 257),
    (("tokenizer", "boundary_id"), -1),
    (("tokenizer", "vocab_size"), 10**30),
    (("tokenizer",), []),
    (("sources",), 3),
    (("skipped",), {"records": "many"}),
    (("surplus",), 1),
]


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_impossible_values_are_found_when_the_manifest_is_read(fresh, place, value):
    def edit(raw):
        for key in place[:-1]:
            raw = raw[key]
        raw[place[-1]] = value

    edit_manifest(fresh, edit)
    with pytest.raises(UserError, match=r"manifest.json is damaged \(.*prepare the data again"):
        TokenStore.open(fresh, "heldout")


def test_what_lies_where_a_file_should(fresh):
    (fresh / "train_00000.bin").unlink()
    (fresh / "train_00000.bin").mkdir()
    with pytest.raises(UserError, match=r"train_00000.bin is no file"):
        TokenStore.open(fresh, "train")
    (fresh / "train_00000.bin").rmdir()
    (fresh / "train_00000.bin").symlink_to("train_00000.bin")
    with pytest.raises(UserError, match=r"train_00000.bin cannot be read"):
        TokenStore.open(fresh, "train")
    (fresh / "manifest.json").unlink()
    os.mkfifo(fresh / "manifest.json")
    with pytest.raises(UserError, match=r"manifest.json is no file"):
        TokenStore.open(fresh, "train")


def test_manifests_of_older_versions_are_read_and_their_fingerprints_stay(fresh):
    expected = TokenStore.open(fresh, "train").fingerprint

    def edit(raw):
        for key in ("files", "passed_over", "skipped"):
            del raw[key]
        for split in raw["splits"].values():
            for key in ("characters", "lost_characters", "changed_documents"):
                del split[key]

    edit_manifest(fresh, edit)
    store = TokenStore.open(fresh, "train")
    assert store.fingerprint == expected
    assert store.is_exact


def test_more_shards_than_files_may_be_open(tmp_path):
    folder = prepare_bytes(tmp_path, [f"document {i}" for i in range(1200)], shard_tokens=14)
    assert len(read_manifest(folder).splits["train"].shards) == 1200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        store = TokenStore.open(folder, "train", verify=True)
        tokens, segments = store.window(0, store.tokens)
        assert (segments[-1], store.document(0).tolist()) == (1199, [*b"document 0"])
        expected = "".join(f"\0document {i}" for i in range(1200)).encode()
        assert np.where(tokens == 256, 0, tokens).astype(np.uint8).tobytes() == expected
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
