"""The next batch is read in the background: its mistakes come out in front, and nothing of it outlives the run."""

import json
import threading

import pytest

from tiny_runs import tiny_config
from widestream.data.batches import TrainBatches
from widestream.errors import UserError
from widestream.train import loop
from widestream.train.loop import train


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_batches_are_read_by_another_thread_one_step_ahead(data, tmp_path, monkeypatch):
    seen, at, take = [], TrainBatches.at, loop._take_step

    def read(self, step, *world):
        seen.append(("read", step, threading.current_thread() is not threading.main_thread()))
        return at(self, step, *world)

    def compute(run, batch, ending):
        seen.append(("step", run.reached.step, False))
        return take(run, batch, ending)

    monkeypatch.setattr(TrainBatches, "at", read)
    monkeypatch.setattr(loop, "_take_step", compute)
    train(tiny_config(data, train={"steps": 3}), tmp_path / "run")
    assert sorted(step for what, step, _ in seen if what == "read") == [0, 1, 2]
    assert all(behind for what, _, behind in seen if what == "read")
    assert not readers()


def test_an_error_of_the_reader_is_that_of_the_run(data, tmp_path, monkeypatch):
    at = TrainBatches.at

    def read(self, step, *world):
        if step == 3:
            raise UserError("The text is gone; put it back.")
        return at(self, step, *world)

    whole = tiny_config(data, train={"save_every": 1})
    monkeypatch.setattr(TrainBatches, "at", read)
    with pytest.raises(UserError, match=r"^The text is gone; put it back\.$"):
        train(whole, tmp_path / "run")
    assert not readers()
    monkeypatch.setattr(TrainBatches, "at", at)
    train(whole, tmp_path / "run")
    train(whole, tmp_path / "other")
    losses = [
        [
            row["loss"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
            if (row := json.loads(line))["kind"] == "train"
        ]
        for name in ("run", "other")
    ]
    assert losses[0] == losses[1]


def test_an_interruption_ends_the_reader(data, tmp_path, monkeypatch):
    def interrupted(run, batch, ending):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_take_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(data), tmp_path / "run")
    assert not readers()
