"""A preparation that is killed and started again ends with the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from small_corpora import CountingTokenizer, contents, texts, write_jsonl

from widestream.data import staging
from widestream.data.prepare import PrepareOptions, prepare
from widestream.data.sources import open_corpus
from widestream.data.tokenizer import ByteTokenizer
from widestream.errors import UserError

OPTIONS = PrepareOptions(heldout=0.1, shard_tokens=4000, cut=500)
SCRIPT = """
import sys
from widestream.data import encode, prepare
from widestream.data.tokenizer import ByteTokenizer
prepare.RECORD_SECONDS, encode._BATCH_BYTES = 0.0, 2000
options = prepare.PrepareOptions(heldout=0.1, shard_tokens=4000, cut=500)
prepare.prepare([sys.argv[1]], sys.argv[2], ByteTokenizer(), options, workers=1, progress=False)
"""


@pytest.fixture
def often(monkeypatch):
    """Small batches, recorded after each."""
    monkeypatch.setattr("widestream.data.prepare.RECORD_SECONDS", 0)
    monkeypatch.setattr("widestream.data.encode._BATCH_BYTES", 2000)


def run(source, out, tokenizer=None, overwrite=False, options=OPTIONS):
    tokenizer = tokenizer or ByteTokenizer()
    return prepare([source], out, tokenizer, options, workers=1, overwrite=overwrite, progress=False)


def consumed(out: Path) -> int:
    """How far a running preparation has recorded; -1 before the first record."""
    try:
        return json.loads((out.with_name(out.name + ".preparing") / "progress.json").read_text())["progress"][
            "consumed"
        ]
    except FileNotFoundError:
        return -1


def write_source(path: Path, documents: list[str]) -> Path:
    """A .jsonl file of documents, or one text file of them."""
    if path.suffix == ".jsonl":
        return write_jsonl(path, documents)
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "seed"), [("source.jsonl", 0), ("source.jsonl", 1), ("source.txt", 0)])
def test_killed_process_ends_with_the_same_bytes(tmp_path, name, seed):
    source = write_source(tmp_path / name, ["", *texts(1200, seed), ""])
    run(source, tmp_path / "expected")
    draw, out, stops = random.Random(seed), tmp_path / "out", 0
    for fraction in sorted(draw.uniform(0, 0.9) for _ in range(3)):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, source, out], env=os.environ)
        while consumed(out) < fraction * source.stat().st_size and process.poll() is None:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.01))
        stops += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert stops == 3, "every process was to be killed on its way"
    assert not out.exists()
    run(source, out)
    assert contents(out) == contents(tmp_path / "expected")


@pytest.mark.parametrize("name", ["source.jsonl", "source.txt"])
def test_nothing_is_tokenized_twice(often, tmp_path, name):
    source = write_source(tmp_path / name, texts(300))
    documents = [document.text for document in open_corpus([source], PrepareOptions(cut=500)).documents()]
    first, second = CountingTokenizer(limit=100), CountingTokenizer()
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", first)
    run(source, tmp_path / "out", second)
    assert first.encoded + second.encoded == documents
    assert len(second.encoded) <= len(documents) - 100


def test_killed_while_recording(often, tmp_path, monkeypatch):
    source = write_jsonl(tmp_path / "source.jsonl", texts(300))
    run(source, tmp_path / "expected")
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", CountingTokenizer(limit=100))
    (tmp_path / "out.preparing" / "progress.json.00ff00ff.tmp").write_text("{")
    monkeypatch.setattr("widestream.data.prepare.RECORD_SECONDS", 1000)
    run(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_half_done_is_never_mixed_with_another(often, tmp_path):
    source = write_jsonl(tmp_path / "source.jsonl", texts(300))
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", CountingTokenizer(limit=100))
    half = contents(tmp_path / "out.preparing")
    for other in (replace(OPTIONS, cut=600), replace(OPTIONS, heldout=0.2)):
        with pytest.raises(UserError, match=r"out.preparing is half prepared with different settings: .*--overwrite"):
            run(source, tmp_path / "out", options=other)
    assert contents(tmp_path / "out.preparing") == half
    run(source, tmp_path / "out", options=other, overwrite=True)
    run(source, tmp_path / "expected", options=other)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_start_with_nothing_recorded_does_not_stand_in_the_way(tmp_path):
    source = write_jsonl(tmp_path / "source.jsonl", texts(300))
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", CountingTokenizer(limit=0))
    run(source, tmp_path / "out", options=PrepareOptions(heldout=0.3))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"plan": {}}', b'{"plan": {}, "progress": {"consumed": []}}'])
def test_damaged_record(often, tmp_path, content):
    source = write_jsonl(tmp_path / "source.jsonl", texts(300))
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", CountingTokenizer(limit=100))
    (tmp_path / "out.preparing" / "progress.json").write_bytes(content)
    with pytest.raises(UserError, match=r"progress.json is damaged .*--overwrite"):
        run(source, tmp_path / "out")
    run(source, tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("place", [("progress", "splits"), ("progress", "read"), ("progress", "position", "offset")])
def test_a_record_without_a_key_is_not_taken(often, tmp_path, place):
    source = write_jsonl(tmp_path / "source.jsonl", texts(300))
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", CountingTokenizer(limit=100))
    path = tmp_path / "out.preparing" / "progress.json"
    raw = json.loads(path.read_text())
    inner = raw
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"progress.json is damaged \(it was altered.*--overwrite"):
        run(source, tmp_path / "out")


def test_shard_shorter_than_recorded(often, tmp_path):
    source = write_jsonl(tmp_path / "source.jsonl", texts(300))
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", CountingTokenizer(limit=100))
    for shard in (tmp_path / "out.preparing").glob("heldout_*.bin"):
        os.truncate(shard, 2)
    with pytest.raises(UserError, match=r"heldout_\d+.bin is shorter than recorded: .*--overwrite"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize("renames", [0, 1])
def test_interrupted_renaming_is_finished_by_the_next_run(tmp_path, monkeypatch, renames):
    source = write_jsonl(tmp_path / "source.jsonl", texts(300))
    run(source, tmp_path / "expected")
    run(source, tmp_path / "out", options=PrepareOptions(heldout=0.5))
    real, count = Path.rename, iter(range(100))

    def rename(path, target):
        if next(count) == renames:
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(staging.Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", overwrite=True)
    monkeypatch.undo()
    tokenizer = CountingTokenizer()
    run(source, tmp_path / "out", tokenizer, overwrite=True)
    assert tokenizer.encoded == []
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "out", "source.jsonl"]


def test_files_that_are_not_ours_are_kept(tmp_path):
    source = write_jsonl(tmp_path / "source.jsonl", texts(300))
    (tmp_path / "out.preparing").mkdir()
    (tmp_path / "out.preparing" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes.txt is not from widestream"):
        run(source, tmp_path / "out")
    assert (tmp_path / "out.preparing" / "notes.txt").read_text() == "mine"
