import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from widestream.report.stats.intervals import difference, mean_interval, t_quantile

values = st.floats(-10, 10)


@pytest.mark.parametrize(
    ("df", "level", "expected"),
    [
        (1, 0.95, 12.7062),
        (2, 0.95, 4.30265),
        (3, 0.95, 3.18245),
        (4, 0.95, 2.77645),
        (9, 0.95, 2.26216),
        (30, 0.95, 2.04227),
        (5, 0.99, 4.03214),
        (1000, 0.95, 1.96234),
    ],
)
def test_quantiles_of_student(df, level, expected):
    assert t_quantile(df, level) == pytest.approx(expected, abs=1e-4)


def test_interval_of_two_values_by_hand():
    found = mean_interval([3.0, 3.2])
    assert found.mean == pytest.approx(3.1)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.mean == pytest.approx(12.7062 * 0.1, abs=1e-4)
    assert found.mean - found.low == pytest.approx(12.7062 * 0.1, abs=1e-4)


def test_one_value_has_no_interval():
    found = mean_interval([3.0])
    assert (found.mean, found.low, found.high, found.n) == (3.0, None, None, 1)
    assert not found.holds_zero


@given(st.lists(values, min_size=2, max_size=6), values)
def test_pairing_takes_away_what_seeds_have_in_common(seeds, gap):
    found = difference(dict(enumerate(seeds)), {seed: loss + gap for seed, loss in enumerate(seeds)})
    assert found.method == "paired"
    assert found.n == len(seeds)
    assert found.mean == pytest.approx(gap, abs=1e-9)
    assert found.low == pytest.approx(gap, abs=1e-6)


def test_only_shared_seeds_are_paired():
    found = difference({0: 1.0, 1: 2.0, 2: 50.0}, {1: 2.5, 0: 1.5, 7: -50.0})
    assert (found.method, found.n, found.mean) == ("paired", 2, 0.5)


def test_welch_without_a_seed_in_common():
    found = difference({0: 1.0, 1: 2.0}, {2: 4.0, 3: 6.0})
    assert (found.method, found.n, found.mean) == ("welch", 2, 3.5)
    assert found.low is not None
    assert found.low == pytest.approx(3.5 - 12.7062 * (0.5**2 + 1.0**2) ** 0.5, abs=1e-3)
    assert found.holds_zero


def test_no_interval_for_one_unpaired_seed():
    found = difference({0: 1.0}, {1: 2.0, 2: 3.0})
    assert (found.mean, found.low) == (1.5, None)


def test_intervals_cover_the_truth_about_95_times_in_100():
    dice, hits = random.Random(0), 0
    for _ in range(2000):
        found = mean_interval([dice.gauss(0, 1) for _ in range(3)])
        hits += found.holds_zero
    assert 0.935 < hits / 2000 < 0.965
