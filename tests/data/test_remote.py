"""Data behind a URL: what is fetched, when, and what is said where that fails."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from small_corpora import prepare_bytes, texts, write_jsonl

from widestream.data import remote
from widestream.data.bpe import train_tokenizer
from widestream.data.inspection import inspect_folder
from widestream.data.manifest import read_manifest
from widestream.data.prepare import PrepareOptions, prepare
from widestream.data.store import TokenStore
from widestream.data.tokenizer import ByteTokenizer, load_tokenizer
from widestream.errors import UserError

URL = "memory://bucket/data"
READ_ALL = """
import sys
from widestream.data.store import TokenStore
store = TokenStore.open(sys.argv[1], "train")
print(store.window(0, store.tokens)[0].sum())
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WIDESTREAM_CACHE", str(tmp_path / "cache"))
    remote._standing_for.cache_clear()
    yield tmp_path / "cache"
    remote._standing_for.cache_clear()
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def folder(tmp_path):
    return prepare_bytes(tmp_path, texts(40), shard_tokens=2000)


def upload(folder: Path, url: str = URL) -> None:
    for path in folder.iterdir():
        fsspec.filesystem("memory").pipe_file(f"{url}/{path.name}", path.read_bytes())


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Names of the files that are read from memory://, in order."""
    names, original = [], MemoryFileSystem.open

    def counted(self, path, *more, **options):
        names.append(path.rsplit("/", 1)[-1])
        return original(self, path, *more, **options)

    monkeypatch.setattr(MemoryFileSystem, "open", counted)
    return names


def test_shards_are_fetched_once_and_when_they_are_needed(folder, cache, opened):
    upload(folder)
    opened.clear()
    here, there = TokenStore.open(folder, "train"), TokenStore.open(URL, "train")
    assert (there.fingerprint, there.tokens) == (here.fingerprint, here.tokens)
    assert there.verify_changed() == 0
    assert set(opened) == {"manifest.json", "tokenizer.json"}
    opened.clear()
    last = here.tokens - 10
    assert there.window(last, 10)[0].tolist() == here.window(last, 10)[0].tolist()
    shards = read_manifest(folder).splits["train"].shards
    assert opened == [shards[-1].file, shards[-1].index_file]
    for one, other in zip(here.window(0, here.tokens), there.window(0, here.tokens), strict=True):
        assert np.array_equal(one, other)
    assert sorted(opened) == sorted(name for shard in shards for name in (shard.file, shard.index_file))
    again = TokenStore.open(URL, "train")
    again.window(0, again.tokens)
    assert again.verify_changed() == len(shards) > 2
    assert len(opened) == 2 * len(shards)
    (place,) = (cache / "data").iterdir()
    assert not [path.name for path in place.iterdir() if path.suffix in (".tmp", ".lock")]


def test_manifest_and_tokenizer_through_every_way_in(tmp_path):
    source = write_jsonl(tmp_path / "source.jsonl", texts(60))
    tokenizer = train_tokenizer([source], 300, tmp_path / "bpe.json", progress=False)
    prepare([source], tmp_path / "prepared", tokenizer, PrepareOptions(heldout=0.1), workers=1, progress=False)
    upload(tmp_path / "prepared")
    assert load_tokenizer(URL).sha256 == tokenizer.sha256
    assert read_manifest(Path(URL)) == read_manifest(tmp_path / "prepared")  # a Path has lost a slash
    found = inspect_folder(Path(URL), documents=1, verify=True)
    expected = inspect_folder(tmp_path / "prepared", documents=1, verify=True)
    assert found == expected | {"path": URL}


def test_file_urls_and_several_processes(folder, cache):
    command = [sys.executable, "-c", READ_ALL, folder.as_uri()]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(3)]
    results = [process.communicate(timeout=120)[0] for process in processes]
    store = TokenStore.open(folder, "train")
    assert results == [f"{store.window(0, store.tokens)[0].sum()}\n"] * 3
    (place,) = (cache / "data").iterdir()
    expected = {path.name for path in folder.iterdir() if path.name.startswith("train")}
    assert {path.name for path in place.iterdir()} == expected | {"manifest.json", "remote.json"}
    for name in expected:
        assert (place / name).read_bytes() == (folder / name).read_bytes()


def test_data_prepared_anew_are_other_data(folder, tmp_path):
    upload(folder)
    old = TokenStore.open(URL, "train")
    old.document(0)
    (tmp_path / "new").mkdir()
    upload(prepare_bytes(tmp_path / "new", ["quite", "another"], shard_tokens=2000))
    remote._standing_for.cache_clear()  # as a new process has it
    new = TokenStore.open(URL, "train")
    assert bytes(new.document(0).tolist()) == b"quite"
    assert bytes(old.document(0).tolist()).decode() == texts(40)[0]


def test_a_shard_of_another_content_is_refused_and_not_kept(folder, cache):
    upload(folder)
    store = TokenStore.open(URL, "train")
    altered = (folder / "train_00000.bin").read_bytes().replace(b"q", b"Q", 1)
    fsspec.filesystem("memory").pipe_file(f"{URL}/train_00000.bin", altered)
    with pytest.raises(UserError, match=r"memory://bucket/data/train_00000.bin is not what its manifest says"):
        store.document(0)
    assert not list(cache.rglob("train*"))
    upload(folder)
    assert bytes(store.document(0).tolist()).decode() == texts(40)[0]


def test_impossible_content_is_found_when_it_is_fetched(folder):
    (folder / "train_00000.idx").write_bytes(b"\7" * (folder / "train_00000.idx").stat().st_size)
    raw = json.loads((folder / "manifest.json").read_text())
    raw["splits"]["train"]["shards"][0]["index_sha256"] = hashlib.sha256(
        (folder / "train_00000.idx").read_bytes()
    ).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(raw))
    upload(folder)
    with pytest.raises(UserError, match="document starts that are not in order: remove it, and it is fetched again"):
        TokenStore.open(URL, "train").document(0)


@pytest.mark.parametrize("file", ["manifest.json", "remote.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"url": 5}', None])
def test_what_was_damaged_here_is_made_right(folder, cache, file, content):
    upload(folder)
    whole = TokenStore.open(URL, "train")
    expected = whole.window(0, whole.tokens)[0].copy()
    (kept,) = (cache / "data").iterdir()
    if content is None:
        (kept / file).unlink()
    else:
        (kept / file).write_text(content)
    next(kept.glob("train_*.bin")).unlink()
    remote._standing_for.cache_clear()  # as in another process
    again = TokenStore.open(URL, "train")
    assert np.array_equal(again.window(0, again.tokens)[0], expected)


def test_a_cache_that_is_none(folder, cache):
    upload(folder)
    (cache / "data").mkdir(parents=True)
    TokenStore.open(URL, "train")
    (kept,) = (cache / "data").iterdir()
    shutil.rmtree(kept)
    kept.touch()
    remote._standing_for.cache_clear()
    with pytest.raises(UserError, match="is no folder: remove it"):
        TokenStore.open(URL, "train")


def test_what_is_not_there(folder):
    with pytest.raises(UserError, match=r"memory://bucket/data holds no prepared data .*check the URL"):
        TokenStore.open(URL, "train")
    upload(folder)
    store = TokenStore.open(URL, "train")
    fsspec.filesystem("memory").rm("/bucket/data/train_00000.bin")
    with pytest.raises(UserError, match=r"memory://bucket/data/train_00000.bin is missing"):
        store.document(0)


def test_protocols_that_there_are_not():
    with pytest.raises(UserError):
        TokenStore.open(f"s3://{'x' * 5000}", "train")
    with pytest.raises(UserError, match=r"nosuch://bucket/data cannot be opened \(Protocol not known: nosuch"):
        read_manifest("nosuch://bucket/data")


def test_a_package_that_is_not_installed(monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(UserError, match=r"s3://bucket/data needs a package .*Install s3fs.*pip install"):
        read_manifest("s3://bucket/data/")


def test_a_network_that_fails_on_the_way_leaves_nothing_half(folder, cache, monkeypatch):
    upload(folder)
    store = TokenStore.open(URL, "train")
    pieces = remote._PIECE
    monkeypatch.setattr(remote, "_PIECE", 100)
    original = MemoryFileSystem.open

    class Broken:
        def __init__(self, file):
            self.file, self.left = file, 2

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def read(self, size):
            self.left -= 1
            if self.left < 0:
                raise TimeoutError("no answer")
            return self.file.read(size)

    monkeypatch.setattr(MemoryFileSystem, "open", lambda self, *what, **more: Broken(original(self, *what, **more)))
    with pytest.raises(UserError, match=r"Cannot read memory://.*train_00000.bin \(TimeoutError: no answer\): check"):
        store.document(0)
    assert not [path for path in cache.rglob("*") if path.name.startswith("train")]
    monkeypatch.setattr(MemoryFileSystem, "open", original)
    monkeypatch.setattr(remote, "_PIECE", pieces)
    assert bytes(store.document(0).tolist()).decode() == texts(40)[0]


def test_nothing_is_prepared_into_a_url(tmp_path):
    source = write_jsonl(tmp_path / "source.jsonl", texts(60))
    for out in (URL, Path(URL)):
        with pytest.raises(UserError, match=r"memory://bucket/data cannot be written to: give a folder"):
            prepare([source], out, ByteTokenizer(), workers=1, progress=False)


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("s3://bucket/folder/", "s3://bucket/folder"),
        (Path("s3://bucket/folder"), "s3://bucket/folder"),
        ("file:///data/x", "file:///data/x"),
        (Path("file:///data/x"), "file:///data/x"),
        ("data/prose", None),
        ("/data/prose", None),
        ("bundled:prose", None),
        ("C:/data", None),
    ],
)
def test_what_is_a_url(path, url):
    assert remote.url_of(path) == url
