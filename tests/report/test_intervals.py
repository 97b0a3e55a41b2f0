import pytest
from hypothesis import given
from hypothesis import strategies as st

from widestream.report.stats.intervals import Interval, difference, holm, mean_interval

values = st.floats(-10, 10)


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
    assert found.holds_zero


def test_no_interval_for_one_unpaired_seed():
    found = difference({0: 1.0}, {1: 2.0, 2: 3.0})
    assert (found.mean, found.low) == (1.5, None)


def test_welch_is_scipys():
    """Degrees of freedom are not rounded: 2.9 of them give a factor of 3.25, where 2 would give 4.30."""
    from scipy.stats import ttest_ind

    ours, theirs = [2.9, 3.1, 3.05], [3.3, 3.32, 3.29]
    found = difference(dict(enumerate(theirs)), dict(enumerate(ours, start=7)))
    test = ttest_ind(ours, theirs, equal_var=False)
    ends = test.confidence_interval()
    assert (found.low, found.high, found.p) == pytest.approx((ends.low, ends.high, test.pvalue))


def test_one_shared_seed_among_several_is_no_pair():
    found = difference({0: 1.0, 1: 2.0}, {1: 4.0, 2: 6.0})
    assert (found.method, found.n, found.mean) == ("welch", 2, 3.5)


@given(st.lists(values, min_size=2, max_size=6))
def test_p_is_below_five_in_a_hundred_where_zero_lies_outside(seeds):
    found = mean_interval(seeds)
    assert found.p is not None
    assert (found.p < 0.05) == (not found.holds_zero)


def test_holms_correction_by_hand():
    ps = [0.01, 0.04, 0.03, None]
    family = [Interval(mean=1.0, low=0.0, high=2.0, n=3, p=p) for p in ps]
    assert holm(family) == pytest.approx([0.03, 0.06, 0.06, None])
    assert holm([]) == []
