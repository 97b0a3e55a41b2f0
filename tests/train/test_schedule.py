import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from widestream.errors import UserError
from widestream.recipe.train import ScheduleConfig
from widestream.train.schedule import factor, phases

totals = st.integers(20, 400)
configs = st.builds(
    ScheduleConfig,
    kind=st.sampled_from(["cosine", "wsd", "constant"]),
    warmup=st.floats(0, 0.5) | st.integers(1, 9),
    floor=st.floats(0, 1),
    decay=st.floats(0, 0.4) | st.integers(1, 9),
)


@given(totals, configs, st.data())
def test_factor_lies_between_zero_and_one_and_begins_at_zero_after_any_warmup(total, config, data):
    step = data.draw(st.integers(0, 2 * total))
    warmup, _ = phases(total, config)
    assert 0 <= factor(step, total, config) <= 1
    assert factor(0, total, config) == (0 if warmup else 1)
    assert factor(warmup, total, config) == pytest.approx(1)


@given(totals, configs)
def test_factor_rises_through_the_warmup_and_never_after_it(total, config):
    warmup, _ = phases(total, config)
    values = [factor(step, total, config) for step in range(total + 1)]
    assert values[: warmup + 1] == sorted(values[: warmup + 1])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
    assert values[total] == pytest.approx(1.0 if config.kind == "constant" or no_decay(total, config) else config.floor)


def no_decay(total, config):
    return config.kind == "wsd" and phases(total, config)[1] == 0


def test_cosine_is_that_of_the_published_code():
    """optax.warmup_cosine_decay_schedule(0, 1, warmup_steps=500, decay_steps=5000, end_value=0.1), by definition."""
    config = ScheduleConfig(warmup=0.1, floor=0.1)
    assert factor(250, 5000, config) == 0.5
    for step in (500, 1234, 4999, 5000, 6000):
        cosine = 0.5 * (1 + math.cos(math.pi * min(step - 500, 4500) / 4500))
        assert factor(step, 5000, config) == pytest.approx(0.9 * cosine + 0.1)


def test_wsd_is_stable_and_then_falls_linearly():
    config = ScheduleConfig(kind="wsd", warmup=10, decay=20, floor=0.5)
    assert [factor(step, 100, config) for step in (5, 10, 80, 90, 100)] == [0.5, 1.0, 1.0, 0.75, 0.5]


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (ScheduleConfig(warmup=100), "schedule.warmup is 100 steps but the run has only 100"),
        (ScheduleConfig(kind="wsd", warmup=60, decay=50), "schedule.decay"),
    ],
)
def test_phases_that_do_not_fit_are_refused(config, key):
    with pytest.raises(UserError, match=key):
        factor(0, 100, config)


@pytest.mark.parametrize("wrong", [{"warmup": -1}, {"floor": 1.5}, {"decay": -0.1}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=f"schedule.{next(iter(wrong))}"):
        ScheduleConfig(**wrong)
