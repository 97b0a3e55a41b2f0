"""A data set of a hundred thousand shards: no file stays open, and opening it is quick and small."""

import gc
import json
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from small_corpora import prepare_bytes

from widestream.data import store as store_module
from widestream.data.manifest import MANIFEST, read_manifest
from widestream.data.mapping import map_file
from widestream.data.store import TokenStore

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


def mapped(folder: Path) -> int:
    """Mappings of files of the folder that this process has."""
    gc.collect()
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def fake_manifest(folder: Path, shards: int) -> str:
    """A manifest of very many shards, without the shards; returns its text."""
    folder.mkdir()
    entries = [
        {
            "file": f"train_{i:05d}.bin",
            "tokens": 100_000_000 + i % 3,
            "documents": 100_000,
            "sha256": f"{i:064x}",
            "index_sha256": f"{i:064x}",
        }
        for i in range(shards)
    ]
    tokens = sum(entry["tokens"] for entry in entries)
    split = {"shards": entries, "tokens": tokens, "documents": 100_000 * shards, "bytes": tokens}
    raw = {
        "format": 1,
        "tokenizer": {"kind": "byte", "sha256": "0" * 64, "vocab_size": 257, "boundary_id": 256},
        "dtype": "uint16",
        "settings": {},
        "sources": [],
        "empty_documents": 0,
        "splits": {"train": split},
    }
    text = json.dumps(raw, indent=2)
    (folder / MANIFEST).write_text(text)
    return text


@linux
def test_no_file_stays_open_and_what_is_dropped_is_unmapped(tmp_path):
    folder = prepare_bytes(tmp_path, [f"document {i}" for i in range(300)], shard_tokens=14)
    before = open_files()
    store = TokenStore.open(folder, "train")
    for number in range(store.documents):
        assert store.document(number).tolist() == [*f"document {number}".encode()]
    assert mapped(folder) == 600
    assert open_files() == before
    del store
    assert mapped(folder) == 0


@linux
def test_a_bounded_number_of_shards_is_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_MOST_MAPPED", 5)
    folder = prepare_bytes(tmp_path, [f"document {i}" for i in range(60)], shard_tokens=14)
    store = TokenStore.open(folder, "train")
    tokens, segments = store.window(0, store.tokens)
    assert (tokens.tolist().count(256), segments[-1]) == (60, 59)
    assert mapped(folder) == 10


def test_a_mapped_file_is_what_it_holds_and_cannot_be_written_to(tmp_path):
    path = tmp_path / "numbers"
    np.array([1, 2**31, 5], dtype="<u4").tofile(path)
    array = map_file(path, "uint32")
    tail = array[1:]
    del array
    gc.collect()
    path.unlink()  # what is mapped outlives its name
    assert tail.tolist() == [2**31, 5]
    with pytest.raises(ValueError, match="read-only"):
        tail[0] = 1
    path.touch()
    with pytest.raises(OSError, match="empty"):
        map_file(path, "uint32")


def test_reading_a_manifest_of_many_shards_costs_little_more_than_its_json(tmp_path):
    text = fake_manifest(tmp_path / "data", 10_000)
    start = time.process_time()
    json.loads(text)
    parsed = time.process_time()
    manifest = read_manifest(tmp_path / "data")
    manifest.fingerprint("train")
    assert time.process_time() - parsed < 25 * (parsed - start)  # about 10 times as long; once it was 43
    assert manifest.splits["train"].shards[9_999].sha256 == f"{9_999:064x}"


def test_little_of_a_manifest_of_many_shards_is_kept(tmp_path, monkeypatch):
    fake_manifest(tmp_path / "data", 10_000)
    monkeypatch.setattr(store_module, "_check_size", lambda *what: None)
    read_manifest(tmp_path / "data")  # what is made once is not counted
    tracemalloc.start()
    try:
        store = TokenStore.open(tmp_path / "data", "train")
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 300 * 10_000  # 30 MB for a hundred thousand
    assert store.tokens == 10_000 * 100_000_000 + 9_999  # a trillion: 0 + 1 + 2 over and over, and a 0
