import subprocess
import sys

import pytest
from small_corpora import contents, texts, write_jsonl

from widestream.data.prepare import prepare
from widestream.data.tokenizer import ByteTokenizer
from widestream.data.workers import WorkerPool
from widestream.errors import UserError

WITHOUT_GUARD = """
import sys
from widestream.data.prepare import prepare
from widestream.data.tokenizer import ByteTokenizer
class Own(ByteTokenizer):
    pass
print("started")
tokenizer = Own() if "own" in sys.argv else ByteTokenizer()
prepare([sys.argv[1]], sys.argv[2], tokenizer, workers=2, progress=False)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Enough text for two processes."""
    path = write_jsonl(tmp_path_factory.mktemp("workers") / "source.jsonl", texts(12_000))
    assert path.stat().st_size > 2 << 20
    return path


@pytest.fixture(scope="module")
def expected(source):
    prepare([source], source.with_name("expected"), ByteTokenizer(), workers=1, progress=False)
    return contents(source.with_name("expected"))


def run_script(folder, script, *arguments):
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, input=WITHOUT_GUARD, capture_output=True, text=True, timeout=60, cwd=folder)


@pytest.mark.parametrize("script", ["scripts/script.py", "-"])
def test_a_script_needs_no_guard(source, expected, tmp_path, script):
    if script != "-":
        (tmp_path / "scripts").mkdir()
        (tmp_path / script).write_text(WITHOUT_GUARD)
        # The parent does not look for modules in the working directory, so its workers must not either.
        (tmp_path / "queue.py").write_text("raise SystemExit('not the library')")
    result = run_script(tmp_path, script, source, "out")
    assert (result.returncode, result.stdout, result.stderr) == (0, "started\n", "")
    assert contents(tmp_path / "out") == expected


def test_a_tokenizer_of_the_script_itself(source, tmp_path):
    result = run_script(tmp_path, "-", source, "out", "own")
    assert "Worker processes cannot find the class Own" in result.stderr
    assert "move it to a module, or give workers=1" in result.stderr


def test_calls_return_in_their_own_futures():
    with WorkerPool(len, 2) as pool:
        futures = [pool.submit("x" * size) for size in (3, 1_000_000, 0, 17)]
        assert [future.result() for future in futures] == [3, 1_000_000, 0, 17]


def test_what_a_worker_raises_or_prints():
    with WorkerPool(eval, 1) as pool:
        with pytest.raises(ZeroDivisionError):
            pool.submit("1 / 0").result()
        assert pool.submit("print('a message for people')").result() is None
        assert pool.submit("__import__('os').environ['TOKENIZERS_PARALLELISM']").result() == "false"


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("__import__('os').kill(__import__('os').getpid(), 9)", "was killed, most likely for want of memory: .*fewer"),
        ("__import__('os')._exit(3)", "failed, its error stands above: .*--workers 1"),
    ],
)
def test_a_worker_that_dies(end, message):
    with WorkerPool(eval, 1) as pool:
        for request in (end, "1"):
            with pytest.raises(UserError, match=message):
                pool.submit(request).result()


def test_leaving_early_does_not_wait_for_the_work():
    with WorkerPool(eval, 2) as pool:
        hours = [pool.submit("__import__('time').sleep(10_000)") for _ in range(5)]
        assert not any(future.done() for future in hours)
    assert all(future.done() for future in hours)


def test_workers_end_with_a_parent_that_is_killed():
    script = """
from widestream.data.workers import WorkerPool
pool = WorkerPool(eval, 2)
print(pool.submit("__import__('os').getpid()").result(), flush=True)
__import__("os").kill(__import__("os").getpid(), 9)
"""
    # The workers hold stderr open, so reading it to its end waits for theirs.
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.returncode == -9
    assert int(result.stdout) > 0
    assert result.stderr == ""
