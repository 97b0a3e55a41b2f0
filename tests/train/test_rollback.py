"""After a leap of the loss a run goes back to the checkpoint before, and on with batches it has not seen."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ranks
from processes import train_quickly
from tiny_runs import tiny_config
from widestream.errors import UserError
from widestream.train import loop
from widestream.train.rollback import WINDOW, Losses, Rollback, batch_of, seconds_at

LEAP = 74
"""Steps done at the leap: more than the window of usual losses, behind the checkpoint of step 70."""


def config(data, **train):
    return tiny_config(
        data, train={"steps": 80, "save_every": 10, "eval_every": 80, "rollback": 1.5, "batch_size": 1, **train}
    )


@pytest.fixture
def leaping(monkeypatch):
    """The loss of step 73 leaps, until the run has gone back; batches that were trained on are noted."""
    take_step, seen = loop._take_step, []

    def step(run, batch, ending):
        result = take_step(run, batch, ending)
        seen.append((run.reached.step, batch.tokens.clone()))
        leaps = run.reached.step == LEAP - 1 and not run.rollbacks
        return replace(result, loss=result.loss * 3) if leaps else result

    monkeypatch.setattr(loop, "_take_step", step)
    return seen


def test_a_run_goes_back_and_passes_over_the_batches(data, tmp_path, leaping, capsys):
    train_quickly(config(data), tmp_path / "run")
    assert "back to step 70, and on with other batches" in capsys.readouterr().err
    (entry,) = json.loads((tmp_path / "run" / "run.json").read_text())["rollbacks"]
    assert (entry["at"], entry["to"]) == (LEAP, 70)
    assert entry["loss"] > 1.5 * entry["usual"]
    assert [step for step, _ in leaping] == [*range(LEAP), *range(70, 80)]
    batches = [tokens for _, tokens in leaping]
    expected = {index: tokens for index, tokens in enumerate(batches[:LEAP])}
    for step, tokens in zip(range(70, 80), batches[LEAP:], strict=True):  # none of them is one of those before
        assert not any(torch.equal(tokens, other) for other in list(expected.values())[66:])
        expected[step + 4] = tokens
    rows = [row for row in ranks.rows(tmp_path / "run") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [*range(1, 81)]


def test_killed_after_that_it_comes_to_the_same(data, tmp_path, leaping, monkeypatch):
    train_quickly(config(data), tmp_path / "whole")
    log = loop._log

    def interrupted(run, *rest):
        if run.reached.step == 76 and run.rollbacks:
            raise KeyboardInterrupt
        log(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_quickly(config(data), tmp_path / "run")
    train_quickly(config(data), tmp_path / "run")
    whole, run = (ranks.weights(tmp_path / name, 80) for name in ("whole", "run"))
    assert all(torch.equal(run[name], value) for name, value in whole.items())
    walls = [row["clock"]["wall_s"] for row in ranks.rows(tmp_path / "run") if row["kind"] == "train"]
    assert walls == sorted(walls)


@pytest.mark.usefixtures("leaping")
def test_without_the_setting_nothing_goes_back(data, tmp_path):
    train_quickly(config(data, rollback=None), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["rollbacks"] == []


def test_a_run_that_leaps_again_and_again_ends_with_a_sentence(data, tmp_path, monkeypatch):
    take_step = loop._take_step

    def step(run, batch, ending):
        result = take_step(run, batch, ending)
        return replace(result, loss=99.0) if run.reached.step >= LEAP - 1 else result

    monkeypatch.setattr(loop, "_take_step", step)
    monkeypatch.setattr("widestream.train.rollback.MOST", 3)
    with pytest.raises(UserError, match=r"has leapt 4 times.*lr"):
        train_quickly(config(data), tmp_path / "run")


def test_what_is_a_leap():
    losses = Losses(1.5)
    for _ in range(WINDOW):
        assert losses.leapt_from(2.0) is None
    assert losses.leapt_from(2.9) is None
    assert losses.leapt_from(3.1) == 2.0
    assert len(losses.last) == WINDOW
    assert Losses(None, [2.0] * WINDOW).leapt_from(1e9) is None
    assert Losses(1.5, [2.0] * (WINDOW - 1)).leapt_from(1e9) is None


def test_batches_and_seconds_after_going_back():
    once = Rollback(at=74, to=70, loss=9.0, usual=2.0, wall_s=8.0)
    again = Rollback(at=75, to=70, loss=9.0, usual=2.0, wall_s=9.0)
    later = Rollback(at=92, to=90, loss=9.0, usual=2.0, wall_s=20.0)
    assert [batch_of(step, [once]) for step in (0, 69, 70, 71)] == [0, 69, 74, 75]
    assert batch_of(70, [once, again]) == 79
    assert [batch_of(step, [once, later]) for step in (89, 90)] == [93, 96]
    assert seconds_at(70, 7.0, [once, again, later]) == 9.0
    assert seconds_at(80, 10.0, [once, again]) == 10.0


def back(at, to):
    return Rollback(at=at, to=to, loss=9.0, usual=2.0, wall_s=1.0)


def test_batches_where_the_newest_checkpoint_was_damaged():
    """Further back than the time before: batches 20 to 31 were read by then, and none of them comes again."""
    further = [back(25, 20), back(27, 10)]
    assert [batch_of(step, further) for step in (9, 10, 20, 27)] == [9, 32, 42, 49]
    assert batch_of(12, [back(25, 10), back(15, 12)]) == 30
    assert batch_of(10, [back(25, 20), back(15, 10)]) == 25  # killed, and from the start again: it leapt at once


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 60)), max_size=12), st.integers(0, 60))
def test_no_batch_is_read_twice(parts, rest):
    """However far each time goes back, and however long the run has gone on till then."""
    rollbacks, step, seen, counts = [], 0, [], {}

    def take(length):
        for now in range(step, step + length):
            counts[now] = batch_of(now, rollbacks)
            seen.append(counts[now])

    for length, to in parts:
        take(length)
        rollbacks.append(back(step + length, min(to, step + length - 1)))
        step = rollbacks[-1].to
    take(rest)
    assert len(set(seen)) == len(seen)
    assert all(batch_of(now, rollbacks) == batch for now, batch in counts.items() if now < step + rest)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), max_size=12), st.integers(0, 400))
def test_no_further_back_than_before_the_batches_are_those_of_older_versions(parts, step):
    rollbacks, to = [], 0
    for length, forth in parts:
        to += forth
        rollbacks.append(back(to + length, to))
    assert batch_of(step, rollbacks) == step + sum(one.at - one.to for one in rollbacks if step >= one.to)


def test_a_factor_that_is_none_is_refused(data):
    with pytest.raises(UserError, match=r"train\.rollback is 1\.0; it must be above 1"):
        config(data, rollback=1.0)
