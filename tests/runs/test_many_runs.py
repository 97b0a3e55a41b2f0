"""widestream.open of many runs: a folder, a pattern, a list; one table."""

import math

import numpy as np
import pytest

import widestream
from fake_runs import write_run


@pytest.fixture
def runs(tmp_path):
    for seed in (0, 1):
        for lr in (0.01, 0.02):
            write_run(tmp_path / f"r{lr}-seed{seed}", "rmt", seed=seed, steps=100, config={"optimizer.lr": lr})
    return tmp_path


def names(found):
    return [run.path.name for run in found]


def test_a_folder_of_runs_a_pattern_and_a_list(runs):
    every = ["r0.01-seed0", "r0.01-seed1", "r0.02-seed0", "r0.02-seed1"]
    assert names(widestream.open(runs)) == every
    assert names(widestream.open(f"{runs}/r0.02-*")) == every[2:]
    assert names(widestream.open([runs / every[3], f"{runs}/*seed0", runs])) == [every[3], every[0], every[2], every[1]]
    assert isinstance(widestream.open(runs / every[0]), widestream.RunFolder)
    assert isinstance(widestream.open([runs / every[0]]), widestream.Runs)


def test_it_is_a_sequence_that_can_be_filtered(runs):
    every = widestream.open(runs)
    assert (len(every), every[1].path.name, names(every[:2])) == (4, "r0.01-seed1", ["r0.01-seed0", "r0.01-seed1"])
    assert names(every.only("optimizer.lr=0.02").without("*seed1")) == ["r0.02-seed0"]
    assert names(every.only(lambda run: run.info["data"]["seed"] == 1)) == ["r0.01-seed1", "r0.02-seed1"]
    assert repr(every[:1]) == "<1 runs: r0.01-seed0>"


def test_the_table_of_many_runs(runs):
    (write_run(runs / "broken", "rmt", steps=100) / "run.json").write_text("null")
    lost = write_run(runs / "lost", "rmt", steps=100, finished=False)
    (lost / "nonfinite_step_55.safetensors").write_bytes(b"")
    table = widestream.open(runs).table()
    assert list(table["state"]) == ["diverged", "done", "done", "done", "done", "unreadable"]
    assert table["optimizer.lr"][1:5].tolist() == [0.01, 0.01, 0.02, 0.02]
    assert math.isnan(table["loss"][0])
    assert table["diverged_at"][0] == 55
    assert np.isfinite(table["loss"][1:5]).all()
    assert "damaged" in table["why"][5]
    assert {len(column) for column in table.values()} == {6}


@pytest.mark.parametrize("nothing", ["nowhere", "no-*", "."])
def test_where_no_run_lies(tmp_path, nothing, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(widestream.UserError, match=r"no run folder|No run lies at"):
        widestream.open(nothing)
