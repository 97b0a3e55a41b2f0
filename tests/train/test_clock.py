"""Training time that is added up, also by a clock that is not to be trusted."""

import pytest

from widestream.train import clock
from widestream.train.clock import Stopwatch


@pytest.fixture
def reading(monkeypatch):
    """What the clock shows, for the test to set."""
    shown = [1000.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: shown[0])

    def show(seconds):
        shown[0] = seconds

    return show


def step(watch, show, begin, ready, end):
    show(begin)
    watch.start()
    show(ready)
    watch.data_ready()
    show(end)
    watch.step_done()


def test_steps_are_added_up_and_what_lies_between_them_is_not(reading):
    watch = Stopwatch(5.0)
    step(watch, reading, 1000.0, 1000.5, 1002.0)
    step(watch, reading, 1050.0, 1050.5, 1052.0)
    assert watch.read(10) == {"wall_s": 9.0, "tokens_per_s": 5.0, "data_s": 0.5}
    assert (watch.step_s, watch.total_s) == (2.0, 9.0)


def test_a_clock_that_is_set_back_takes_no_time_away(reading):
    watch = Stopwatch(5.0)
    step(watch, reading, 1000.0, 900.0, 800.0)
    assert watch.step_s > 0, "rates are divided by it"
    row = watch.read(10)
    assert row["wall_s"] == pytest.approx(5.0)
    assert row["data_s"] == pytest.approx(0.0, abs=1e-6)
    assert row["tokens_per_s"] > 0
