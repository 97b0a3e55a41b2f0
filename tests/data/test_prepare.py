import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from small_corpora import (
    CountingTokenizer,
    LyingTokenizer,
    contents,
    prepare_bytes,
    texts,
    write_jsonl,
)

from widestream.data.bpe import train_tokenizer
from widestream.data.manifest import read_manifest
from widestream.data.prepare import PrepareOptions, prepare
from widestream.data.store import TokenStore
from widestream.data.tokenizer import ByteTokenizer, FileTokenizer
from widestream.errors import UserError
from widestream.files import disk_errors


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "source.jsonl", texts(300))


def run(source, out, tokenizer=None, workers=1, overwrite=False, **options):
    sources = source if isinstance(source, list) else [source]
    tokenizer = tokenizer or ByteTokenizer()
    options = PrepareOptions(**{"heldout": 0.1, **options})
    return prepare(sources, out, tokenizer, options, workers=workers, overwrite=overwrite, progress=False)


def test_files_are_what_the_format_says(tmp_path):
    folder = prepare_bytes(tmp_path, ["ab", "", "東", "c" * 20, "d"], shard_tokens=8)
    tokens = [np.fromfile(folder / f"train_{i:05d}.bin", dtype="<u2").tolist() for i in range(3)]
    starts = [np.fromfile(folder / f"train_{i:05d}.idx", dtype="<u8").tolist() for i in range(3)]
    assert tokens == [[256, *b"ab", 256, *"東".encode()], [256, *b"c" * 20], [256, *b"d"]]
    assert starts == [[0, 3], [0], [0]]
    manifest = json.loads((folder / "manifest.json").read_text())
    train = manifest["splits"]["train"]
    assert (train["tokens"], train["documents"], train["bytes"]) == (7 + 21 + 2, 4, 26)
    assert train["shards"][1]["sha256"] == hashlib.sha256((folder / "train_00001.bin").read_bytes()).hexdigest()
    assert [shard["tokens"] for shard in train["shards"]] == [7, 21, 2]
    assert manifest["tokenizer"]["kind"] == "byte"
    assert (manifest["format"], manifest["dtype"], manifest["empty_documents"]) == (1, "uint16", 1)


def test_nothing_else_is_left_behind(source, tmp_path):
    run(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source.jsonl"]
    assert set(contents(tmp_path / "out")) == {
        *("manifest.json", "train_00000.bin", "train_00000.idx", "heldout_00000.bin", "heldout_00000.idx")
    }


def test_large_vocabulary_takes_four_bytes(source, tmp_path):
    small = train_tokenizer([source], 300, tmp_path / "bpe.json", progress=False)
    raw = json.loads(small.content)
    raw["added_tokens"].append({**raw["added_tokens"][0], "id": 70_000, "content": "</s>"})
    tokenizer = FileTokenizer(json.dumps(raw).encode(), "large", boundary="</s>")
    assert run(source, tmp_path / "out", tokenizer).dtype == "uint32"
    store = TokenStore.open(tmp_path / "out", "train", verify=True)
    assert store.window(0, 1)[0].tolist() == [70_000]


def test_result_does_not_depend_on_workers_or_batches(tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "source.jsonl", texts(12_000))
    assert source.stat().st_size > 2 << 20, "the test wants a few batches"
    tokenizer = train_tokenizer([source], 300, tmp_path / "bpe.json", progress=False)
    run(source, tmp_path / "two", tokenizer, workers=2, shard_tokens=200_000)
    monkeypatch.setattr("widestream.data.encode._BATCH_BYTES", 10_000)
    run(source, tmp_path / "one", tokenizer, workers=1, shard_tokens=200_000)
    assert len(contents(tmp_path / "one")) > 6
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_bytes_are_those_of_the_text(tmp_path):
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(texts(40)):
        (tmp_path / "texts" / f"{number}.txt").write_text(text, encoding="utf-8")
    manifest = run(tmp_path / "texts", tmp_path / "out", heldout=0.3)
    size = sum(path.stat().st_size for path in (tmp_path / "texts").iterdir())
    assert sum(split.bytes for split in manifest.splits.values()) == size
    assert sum(split.tokens for split in manifest.splits.values()) == size + 40


def test_prepared_twice_is_left_alone(source, tmp_path):
    run(source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    tokenizer = CountingTokenizer()
    run(source, tmp_path / "out", tokenizer)
    assert tokenizer.encoded == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("tokenizer", "tokenizer"),
        ("heldout", "settings"),
        ("shard_tokens", "settings"),
        ("cut", "settings"),
        ("text", "sources"),
    ],
)
def test_another_preparation_is_never_mixed_in(source, tmp_path, change, named):
    if change == "cut":
        source = tmp_path / "a.txt"
        source.write_text("\n".join(texts(3000)), encoding="utf-8")
    run(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    tokenizer, options = None, {}
    if change == "tokenizer":
        tokenizer = train_tokenizer([source], 300, tmp_path / "bpe.json", progress=False)
    elif change == "text":
        write_jsonl(source, texts(301))
    else:
        options = {change: {"heldout": 0.2, "shard_tokens": 999, "cut": 1000}[change]}
    with pytest.raises(UserError, match=rf"out is already prepared with different {named}.*--overwrite"):
        run(source, tmp_path / "out", tokenizer, **options)
    assert contents(tmp_path / "out") == before
    run(source, tmp_path / "out", tokenizer, overwrite=True, **options)
    assert contents(tmp_path / "out") != before
    assert TokenStore.open(tmp_path / "out", "train", verify=True).documents > 200


def test_failed_overwrite_keeps_the_old_data(source, tmp_path):
    run(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    source.write_text(source.read_text() + "not json\n")
    with pytest.raises(UserError, match=r"source.jsonl, line 301: not JSON"):
        run(source, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before
    assert not (tmp_path / "out.preparing").exists()


def test_empty_corpus(tmp_path):
    with pytest.raises(UserError, match="The corpus is empty"):
        run(write_jsonl(tmp_path / "a.jsonl", ["", ""]), tmp_path / "out")
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(UserError, match="The corpus is empty"):
        run(tmp_path / "b.txt", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.txt"]


def test_nothing_held_out(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts(3))
    with pytest.raises(UserError, match=r"No document was held out \(3 in all, --heldout 0.001\): raise --heldout"):
        run(source, tmp_path / "out", heldout=0.001)
    assert not (tmp_path / "out").exists()
    assert set(run(source, tmp_path / "out", heldout=0).splits) == {"train"}


def test_nothing_held_out_of_text_files_is_mended_by_cut(tmp_path):
    text = " ".join(texts(30))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    size = (tmp_path / "a.txt").stat().st_size
    message = rf"No document was held out \(1 in all, --heldout 0.001\): cut text .* --cut {size // 10}\), mark"
    with pytest.raises(UserError, match=message):
        run(tmp_path / "a.txt", tmp_path / "out", heldout=0.001)
    assert run(tmp_path / "a.txt", tmp_path / "out", heldout=0.001, cut=size // 10).splits["heldout"].documents == 1
    write_jsonl(tmp_path / "a.jsonl", [text])
    with pytest.raises(UserError, match=r"--heldout 0.001\): mark some with the field split = heldout"):
        run(tmp_path / "a.jsonl", tmp_path / "other", heldout=0.001)


def test_one_big_text_file_needs_no_options(tmp_path):
    text = "\n\n".join(texts(6000))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    manifest = prepare([tmp_path / "a.txt"], tmp_path / "out", ByteTokenizer(), workers=1, progress=False)
    size = (tmp_path / "a.txt").stat().st_size
    documents = size // 100_000 + 1
    train, heldout = manifest.splits["train"], manifest.splits["heldout"]
    assert (train.documents, heldout.documents) == (documents - 1, 1)
    assert train.bytes + heldout.bytes == size == train.tokens + heldout.tokens - documents
    held = TokenStore.open(tmp_path / "out", "heldout").document(0).astype(np.uint8).tobytes().decode()
    kept = [TokenStore.open(tmp_path / "out", "train").document(i) for i in range(train.documents)]
    before, after = text.split(held)
    assert before + after == np.concatenate(kept).astype(np.uint8).tobytes().decode()


def test_nothing_left_for_training(tmp_path):
    with pytest.raises(UserError, match="No document is left for training: lower --heldout"):
        run(write_jsonl(tmp_path / "a.jsonl", texts(3), ["heldout"] * 3), tmp_path / "out")


def test_missing_source_leaves_no_trace(tmp_path):
    with pytest.raises(UserError, match="There is no file or folder"):
        run(tmp_path / "nowhere.txt", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options", [{"heldout": 1.0}, {"heldout": -0.1}, {"shard_tokens": 0}, {"workers": 0}, {"cut": 3}]
)
def test_options_out_of_range(source, tmp_path, options):
    (name,) = options
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is"):
        run(source, tmp_path / "out", **options)


@pytest.mark.parametrize("names", [["notes.txt"], ["manifest.json", "notes.txt"], ["manifest.json", "train_00009.bin"]])
def test_folder_with_other_files_is_never_replaced(source, tmp_path, names):
    out = tmp_path / "out"
    if "manifest.json" in names:
        run(source, out)
    out.mkdir(exist_ok=True)
    (out / names[-1]).write_text("mine")
    with pytest.raises(UserError, match=r"give another --out"):
        run(source, out, overwrite=True)
    assert (out / names[-1]).read_text() == "mine"


def test_out_is_a_file_a_link_or_empty(source, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file: give another --out"):
        run(source, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(UserError, match="is a link or a mount point"):
        run(source, tmp_path / "link")
    run(source, tmp_path / "empty")
    assert read_manifest(tmp_path / "empty").splits["train"].documents > 200


def test_token_outside_the_vocabulary(source, tmp_path):
    with pytest.raises(UserError, match=r"made token \d+, but its vocabulary has 100 ids"):
        run(source, tmp_path / "out", LyingTokenizer())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("calls", [0, 3, 9])
def test_full_disk_keeps_what_is_there_and_goes_on_later(source, tmp_path, monkeypatch, calls):
    run(source, tmp_path / "expected")
    run(source, tmp_path / "out", heldout=0.5)
    before = contents(tmp_path / "out")
    monkeypatch.setattr("widestream.data.prepare.RECORD_SECONDS", 0)
    monkeypatch.setattr("widestream.data.encode._BATCH_BYTES", 5000)
    real, count = os.fsync, iter(range(10**6))

    def full(descriptor):
        if next(count) >= calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"No space left on the disk of .*out: free some, then run the same command"):
        run(source, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before
    monkeypatch.setattr("os.fsync", real)
    run(source, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_no_permission():
    with (
        pytest.raises(UserError, match=r"No permission to write x: get it or .*, then choose"),
        disk_errors(Path("out"), "choose another"),
    ):
        raise PermissionError(errno.EACCES, "denied", "x")
    with pytest.raises(OSError, match="other"), disk_errors(Path("out"), "choose another"):
        raise OSError(errno.EIO, "other")


HOLD = """
import sys, time
from pathlib import Path
from widestream.data.staging import Staging
with Staging(Path(sys.argv[1]), {}, []).locked():
    print("held", flush=True)
    time.sleep(1000)
"""


def test_second_process_is_refused_until_the_first_is_gone(source, tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=r"Another process is preparing .*out: wait for it, or end it"):
        run(source, tmp_path / "out")
    holder.kill()
    holder.communicate()
    run(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source.jsonl"]


def test_progress_goes_to_stderr(source, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.csv").write_text("x")
    write_jsonl(tmp_path / "folder" / "a.jsonl", texts(50))
    prepare([tmp_path / "folder"], tmp_path / "out", ByteTokenizer(), PrepareOptions(heldout=0.2), workers=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "100%" in err
    assert "Reading 1 file(s)." in err
    assert f"Passing over 1: {tmp_path / 'folder' / 'a.csv'} (no kind of file that is read)." in err


@pytest.mark.parametrize(
    ("number", "words"), [(28, "No space left on the disk of out"), (13, "No permission to write")]
)
def test_a_full_disk_under_safetensors_is_a_sentence_too(number, words):
    """It tells the system's number in words of its own."""
    error = SafetensorError(f"Error while serializing: I/O error: something (os error {number})")
    with pytest.raises(UserError, match=words), disk_errors(Path("out"), "choose another"):
        raise error


def test_other_errors_of_safetensors_stay_what_they_are():
    with pytest.raises(SafetensorError, match="header"), disk_errors(Path("out"), "choose another"):
        raise SafetensorError("header too large")
