import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_runs import tiny_config
from widestream.errors import UserError
from widestream.runs import progress
from widestream.runs.metrics import MetricsWriter, length_up_to
from widestream.train.loop import train


@given(
    steps=st.lists(st.integers(1, 30), max_size=12).map(sorted),
    resumed=st.integers(0, 31),
    cut=st.integers(0, 400),
)
def test_a_resumed_log_holds_the_whole_lines_up_to_its_step(tmp_path_factory, steps, resumed, cut):
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    lines = [json.dumps({"kind": "train", "step": step, "loss": 1.5}).encode() + b"\n" for step in steps]
    content = b"".join(lines)[: max(0, len(b"".join(lines)) - cut)]
    path.write_bytes(content)
    whole = content[: content.rfind(b"\n") + 1]
    expected = b"".join(line for line in whole.splitlines(keepends=True) if json.loads(line)["step"] <= resumed)
    assert content[: length_up_to(path, resumed)] == expected


def test_numbers_that_are_not_finite_become_null(tmp_path):
    with MetricsWriter(tmp_path, step=0) as metrics:
        metrics.write({"kind": "event", "step": 1, "loss": float("nan"), "grad_norm": float("inf"), "lr": 0.5})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"kind": "event", "step": 1, "loss": None, "grad_norm": None, "lr": 0.5}


def test_a_full_disk_while_logging_is_one_sentence(data, tmp_path, monkeypatch):
    def full(self, row):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MetricsWriter, "write", full)
    with pytest.raises(UserError, match=r"No space left on the disk of .*run.*give the same command again"):
        train(tiny_config(data), tmp_path / "run")


def test_without_a_terminal_a_line_now_and_then_tells_the_time_left(data, tmp_path, monkeypatch, capsys):
    train(tiny_config(data), tmp_path / "silent")
    assert "left" not in capsys.readouterr().err
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    train(tiny_config(data), tmp_path / "run")
    said = capsys.readouterr().err
    assert "step 3/6: loss" in said
    assert "min left" in said
    assert "step 6/6: held-out loss" in said
