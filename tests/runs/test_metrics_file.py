import errno
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_runs import tiny_config
from widestream.errors import UserError
from widestream.runs import progress
from widestream.runs.metrics import MetricsWriter, length_up_to
from widestream.runs.read import load_run
from widestream.train.loop import train


@given(
    steps=st.lists(st.integers(1, 30), max_size=12, unique=True).map(sorted),
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


def harmed(path, how):
    """Rows of steps 1 to 6, of which the third is harmed."""
    with MetricsWriter(path.parent, 0) as metrics:
        for step in range(1, 7):
            metrics.write({"kind": "train", "step": step, "loss": 1.5})
        written = metrics.sync()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2:3] = {
        "flipped": [lines[2][:3] + b"\xf4" + lines[2][4:]],
        "altered": [lines[2].replace(b"1.5", b"1.6")],
        "missing": [],
        "doubled": [lines[2], lines[2]],
        "emptied": [b"{}\n"],
    }[how]
    path.write_bytes(b"".join(lines))
    return written


@pytest.mark.parametrize("how", ["flipped", "altered", "missing", "doubled", "emptied"])
def test_damaged_rows_are_refused_and_stay(tmp_path, how):
    path = tmp_path / "metrics.jsonl"
    written = harmed(path, how)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"metrics.jsonl is not as it was at the checkpoint of step 6"):
        MetricsWriter(tmp_path, 6, written=written)
    assert path.read_bytes() == before
    MetricsWriter(tmp_path, 0).__exit__()  # it is not held
    assert path.read_bytes() == b"", "a run that begins anew needs none of them"


@pytest.mark.parametrize("how", ["flipped", "doubled", "emptied"])
def test_damaged_rows_are_seen_where_an_older_checkpoint_says_nothing_of_them(tmp_path, how):
    harmed(tmp_path / "metrics.jsonl", how)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"Line [34] of .*metrics.jsonl"):
        MetricsWriter(tmp_path, 6)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("how", ["altered", "missing"])
def test_a_finished_run_with_other_rows_than_it_wrote_is_not_read(data, tmp_path, how):
    train(tiny_config(data), tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    load_run(tmp_path / "run")
    lines = path.read_text().splitlines(keepends=True)
    lines[2:3] = [] if how == "missing" else [lines[2].replace('"loss": ', '"loss": 1')]
    path.write_text("".join(lines))
    with pytest.raises(UserError, match="is not as the run wrote it"):
        load_run(tmp_path / "run")


def test_without_its_rows_a_run_goes_on_and_says_so(data, tmp_path, caplog):
    config = tiny_config(data)
    train(config, tmp_path / "run")
    (tmp_path / "run" / "done.json").unlink()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    train(config, tmp_path / "run")
    assert "metrics.jsonl is gone; the rows of the first 6 steps will be missing" in caplog.text


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
