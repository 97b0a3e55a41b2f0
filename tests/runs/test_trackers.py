"""Trackers get the numbers of metrics.jsonl, go on with a run, and never end one."""

import json
import logging
import os
import sqlite3
import subprocess
import sys

import pytest

from tiny_runs import tiny_config
from widestream.errors import UserError
from widestream.recipe import to_dict
from widestream.runs import trackers
from widestream.runs.trackers import KINDS, Kind, Tracked
from widestream.train.loop import train


class Kept:
    """Notes what it is told."""

    def __init__(self, run: Tracked):
        self.run, self.rows, self.closed = run, [], False
        BEGUN.append(self)

    def log(self, step, numbers):
        self.rows.append((step, dict(numbers)))

    def close(self):
        self.closed = True


class Failing(Kept):
    """Fails at the second row."""

    def log(self, step, numbers):
        super().log(step, numbers)
        if len(self.rows) > 1:
            raise ConnectionError("the server\nis gone")


BEGUN: list[Kept] = []


def never(run):
    raise RuntimeError("no key")


@pytest.fixture(autouse=True)
def kinds(monkeypatch):
    BEGUN.clear()

    def use(**begin):
        monkeypatch.setattr(trackers, "KINDS", {name: Kind(name, "json", kind) for name, kind in begin.items()})

    return use


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_tracker_gets_every_row_of_the_metrics(data, tmp_path, kinds):
    kinds(wandb=Kept)
    train(tiny_config(data, train={"wandb": True, "trackio": False}), tmp_path / "run")
    (kept,) = BEGUN
    logged = metrics(tmp_path / "run")
    assert [step for step, _ in kept.rows] == [row["step"] for row in logged]
    for (_, numbers), row in zip(kept.rows, logged, strict=True):
        assert numbers[f"{row['kind']}/loss"] == row["loss"]
        assert f"{row['kind']}/wall_s" in numbers
        assert all(isinstance(value, float) for value in numbers.values())
    assert kept.closed
    assert kept.run.config["model"]["num_layers"] == 1


def test_a_run_that_goes_on_has_the_same_identity_and_another_run_another(data, tmp_path, kinds):
    kinds(wandb=Kept)
    config = tiny_config(data, train={"wandb": True, "steps": 4, "save_every": 2})
    train(config, tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    longer = tiny_config(data, train={"wandb": True, "steps": 6, "save_every": 2})
    train(longer, tmp_path / "moved", extend=True)
    train(config, tmp_path / "other")
    train(config, tmp_path / "other", resume=False)
    first, second, third, fourth = (kept.run for kept in BEGUN)
    assert (first.identity, first.step) == (second.identity, 0)
    assert second.step == 4
    assert len({one.identity for one in (first, third, fourth)}) == 3


@pytest.mark.parametrize(("kind", "rows"), [(Failing, 2), (never, 0)])
def test_one_that_fails_is_said_once_and_training_goes_on(data, tmp_path, kinds, caplog, kind, rows):
    kinds(wandb=kind, trackio=Kept)
    with caplog.at_level(logging.WARNING):
        train(tiny_config(data, train={"wandb": True, "trackio": True}), tmp_path / "run")
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(said) == 1
    assert "\n" not in said[0]
    assert (tmp_path / "run" / "done.json").exists()
    kept = BEGUN[-1]
    assert len(kept.rows) == len(metrics(tmp_path / "run"))
    assert sum(len(one.rows) for one in BEGUN if isinstance(one, Failing)) == rows


@pytest.mark.parametrize("name", KINDS)
def test_one_that_is_not_installed_is_one_sentence_before_anything_is_made(data, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, KINDS[name].module, None)
    with pytest.raises(UserError, match=r"pip install 'widestream\[track\]'"):
        train(tiny_config(data, train={name: True}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_wandb_and_trackio_offline(data, tmp_path):
    """The real ones, in a process of their own: both read where to write when they are imported."""
    for module in ("wandb", "trackio"):
        pytest.importorskip(module)
    environment = os.environ | {
        "WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    out = tmp_path / "run"
    for steps in (4, 6):
        config = tiny_config(data, train={"wandb": True, "trackio": True, "steps": steps, "save_every": 2})
        (tmp_path / "recipe.yaml").write_text(json.dumps(to_dict(config)))
        command = [
            sys.executable,
            "-m",
            "widestream",
            "train",
            str(tmp_path / "recipe.yaml"),
            "--out",
            str(out),
            "--extend",
        ]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert "left out" not in said.stderr
        assert "trackio" not in said.stdout.lower()
    identity = json.loads((out / "trackers.json").read_text())["id"]
    kept = [path.name for path in (out / "wandb").glob("offline-run-*")]
    assert len(kept) == 2
    assert all(name.endswith(f"-{identity}") for name in kept)
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as opened:
        rows = opened.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert {name for name, _, _ in rows} == {f"run-{identity}"}
    told = [(step, json.loads(text)) for _, step, text in rows]
    losses = {step: numbers["train/loss"] for step, numbers in told if "train/loss" in numbers}
    assert losses == {row["step"]: row["loss"] for row in metrics(out) if row["kind"] == "train"}
