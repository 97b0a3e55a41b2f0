"""Encoding in threads: order, errors, and leaving early."""

import functools
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from small_corpora import contents, texts, write_jsonl

from widestream.data.encode import encode_documents
from widestream.data.prepare import prepare
from widestream.data.sources import open_corpus
from widestream.data.tokenizer import ByteTokenizer

SCRIPT = """
import sys
from widestream.data.prepare import prepare
from widestream.data.tokenizer import ByteTokenizer
class Own(ByteTokenizer):
    pass
print("started")
prepare([sys.argv[1]], sys.argv[2], Own(), workers=2, progress=False)
"""
SLOW = """
import sys, time
from widestream.data import encode
from widestream.data.prepare import prepare
from widestream.data.tokenizer import ByteTokenizer
encode._BATCH_BYTES = 1000
class Slow(ByteTokenizer):
    def encode_batch(self, texts):
        sys.stdout.write("encoding\\n")  # in one piece, unlike print, whose line end another thread may cut off
        sys.stdout.flush()
        time.sleep(0.5)
        return super().encode_batch(texts)
prepare([sys.argv[1]], sys.argv[2], Slow(), workers=2, progress=False)
"""


class Uneven(ByteTokenizer):
    """Takes longer for some batches than for others, and counts how many it works on at a time."""

    def __init__(self):
        self.now = self.most = 0
        self.lock = threading.Lock()

    def encode_batch(self, texts):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(len(texts[0]) % 7 / 500)
        with self.lock:
            self.now -= 1
        return super().encode_batch(texts)


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr("widestream.data.encode._BATCH_BYTES", 5_000)
    return write_jsonl(tmp_path / "source.jsonl", texts(1000))


@pytest.mark.parametrize("workers", [1, 3])
def test_order_is_that_of_the_documents(source, workers):
    tokenizer, found = Uneven(), []
    for batch in encode_documents(open_corpus([source]).documents(), tokenizer, "uint16", workers):
        rows = np.split(batch.tokens, np.cumsum(batch.lengths)[:-1])
        assert [row[0] for row in rows] == [256] * len(batch.documents)
        found += [row[1:].astype(np.uint8).tobytes().decode() for row in rows]
    assert found == texts(1000)
    assert tokenizer.most == workers


def test_few_batches_are_held_at_a_time(source):
    read = []
    documents = (read.append(document.text) or document for document in open_corpus([source]).documents())
    batches = encode_documents(documents, ByteTokenizer(), "uint16", 2)
    first = next(batches)
    assert len(read) < 6 * len(first.documents)
    batches.close()


def test_leaving_early_ends_the_threads(source):
    before = threading.active_count()
    batches = encode_documents(open_corpus([source]).documents(), Uneven(), "uint16", 3)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_what_a_thread_raises_reaches_the_caller(source):
    class Broken(ByteTokenizer):
        def encode_batch(self, texts):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(encode_documents(open_corpus([source]).documents(), Broken(), "uint16", 2))


def test_a_script_needs_no_guard(source, tmp_path):
    prepare([source], tmp_path / "expected", ByteTokenizer(), workers=1, progress=False)
    command = [sys.executable, "-", source, "out"]
    result = subprocess.run(command, input=SCRIPT, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "started\n", "")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_an_interrupt_is_heeded_at_once(source, tmp_path):
    command = [sys.executable, "-c", SLOW, source, tmp_path / "out"]
    # A shell's background job ignores interrupts, and so would this process, were the tests run in one.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    assert process.stdout is not None
    # Not before both threads run: CPython takes an interrupt amiss ("release unlocked lock") while it starts one.
    assert [process.stdout.readline() for _ in range(3)] == ["encoding\n"] * 3
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=300)
    assert rest.count("encoding") < 20, "hundreds of batches were left"
    assert process.returncode == -signal.SIGINT
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    assert not (tmp_path / "out").exists()
