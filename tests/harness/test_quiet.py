"""What others print while tasks are scored stays off the standard output, and bars out of files."""

import io
import sys

from tqdm import tqdm

from widestream.harness.quiet import quiet_without_terminal


class Terminal(io.StringIO):
    def isatty(self):
        return True


def speak():
    print("bootstrapping")
    for _ in tqdm(range(3), mininterval=0):
        print("a warning", file=sys.stderr)
    print("done", file=sys.stderr)


def test_a_file_gets_words_and_no_bars(monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with quiet_without_terminal():
        speak()
    assert out.getvalue() == ""
    assert err.getvalue() == "bootstrapping\n" + "a warning\n" * 3 + "done\n"


def test_a_terminal_has_both(monkeypatch):
    out, err = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with quiet_without_terminal():
        speak()
    assert out.getvalue() == ""
    assert "%|" in err.getvalue()
