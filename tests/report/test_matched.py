import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from widestream.report.stats.matched import Curve, gap_at, gaps, mean_curve, reach, smooth, trend, value_at


def curve(loss, tokens=None, flops_per_token=3.0, seconds_per_token=0.5):
    tokens = tokens or [25.0 * (i + 1) for i in range(len(loss))]
    return Curve(
        tokens=tuple(tokens),
        flops=tuple(flops_per_token * at for at in tokens),
        wall_s=tuple(seconds_per_token * at for at in tokens),
        loss=tuple(loss),
    )


def power_law(scale, power, n=40, **spending):
    return curve([scale * (25 * (i + 1)) ** -power for i in range(n)], **spending)


losses = st.lists(st.floats(0.5, 12), min_size=1, max_size=30)


@given(st.floats(0.1, 100), st.floats(0.0, 0.9), st.integers(1, 30))
def test_smoothing_does_not_move_a_power_law(scale, power, n):
    law = power_law(scale, power, n)
    assert smooth(law).loss == pytest.approx(law.loss, rel=1e-9)


@given(losses)
def test_smoothing_keeps_first_and_last_evaluation(values):
    smoothed = smooth(curve(values))
    assert smoothed.loss[0] == pytest.approx(values[0])
    assert smoothed.loss[-1] == pytest.approx(values[-1])


def test_smoothing_does_not_lift_a_curve_where_it_bends():
    bent = curve([8.32 * (1 + step / 60) ** -0.25 for step in range(25, 425, 25)])
    assert smooth(bent).loss == pytest.approx(bent.loss, abs=1e-3)


def test_smoothing_takes_away_a_third_of_the_noise():
    law, dice = power_law(9, 0.2, 200), random.Random(1)
    noisy = curve([loss * math.exp(0.01 * dice.gauss(0, 1)) for loss in law.loss])

    def error(measured):
        return sum((a - b) ** 2 for a, b in zip(measured.loss, law.loss, strict=True)) ** 0.5

    assert error(smooth(noisy)) < 0.67 * error(noisy)


@given(st.floats(25, 1000), st.floats(0.01, 0.9))
def test_loss_between_evaluations_follows_the_power_law(tokens, power):
    law = power_law(9, power)
    assert value_at(law, "tokens", tokens) == pytest.approx(9 * tokens**-power, rel=1e-9)
    assert value_at(law, "flops", 3 * tokens) == pytest.approx(9 * tokens**-power, rel=1e-9)


def test_no_loss_outside_what_was_measured():
    law = power_law(9, 0.2)
    assert value_at(law, "tokens", 24.9) is None
    assert value_at(law, "tokens", 1000.1) is None
    assert value_at(law, "tokens", 1000) == law.loss[-1]


@given(st.floats(30, 990), st.floats(0.05, 0.9))
def test_resources_to_a_loss_invert_the_power_law(tokens, power):
    spent = reach(power_law(9, power), 9 * tokens**-power)
    assert spent is not None
    assert spent.tokens == pytest.approx(tokens, rel=1e-9)
    assert spent.flops == pytest.approx(3 * tokens, rel=1e-9)
    assert spent.wall_s == pytest.approx(tokens / 2, rel=1e-9)
    assert not spent.at_most


@given(losses, st.floats(0.5, 12))
def test_a_loss_is_reached_where_the_curve_first_gets_there_or_not_at_all(values, target):
    spent = reach(curve(values), target)
    if min(values) > target:
        assert spent is None
        return
    first = next(i for i, loss in enumerate(values) if loss <= target)
    assert spent is not None
    assert 25 * first <= spent.tokens * (1 + 1e-9)
    assert spent.tokens <= 25 * (first + 1) * (1 + 1e-9)
    assert spent.at_most == (first == 0 and values[0] < target)


def test_a_rising_end_does_not_hide_the_first_crossing():
    spent = reach(curve([4.0, 3.0, 3.5, 3.0]), 3.0)
    assert spent is not None
    assert spent.tokens == 50


def test_the_papers_table_3_form():
    slow, fast = power_law(9, 0.2), power_law(8, 0.2)
    spent, own = reach(fast, slow.best), reach(slow, slow.best)
    assert spent is not None
    assert own is not None
    assert spent.tokens / own.tokens == pytest.approx((8 / 9) ** 5, rel=1e-6)
    assert reach(slow, fast.best) is None


@given(losses)
def test_a_curve_has_no_gap_to_itself(values):
    one = curve(values)
    assert all(gap == 0 for _, gap in gaps(one, one, "wall_s"))


def test_gap_is_other_minus_reference_where_both_have_spent_the_same():
    cheap, dear = power_law(9, 0.2, flops_per_token=2.0), power_law(9, 0.2, flops_per_token=4.0)
    points = gaps(cheap, dear, "flops")
    assert points[0][0] == 100  # the dear one's first evaluation
    assert points[-1][0] == 2000  # the cheap one's last
    for spent, gap in points:
        assert gap == pytest.approx(9 * (spent / 4) ** -0.2 - 9 * (spent / 2) ** -0.2)
    assert [(at, -gap) for at, gap in gaps(dear, cheap, "flops")] == points
    assert gap_at(cheap, dear, "flops", 2001) is None


def test_no_gap_where_curves_do_not_overlap():
    assert gaps(curve([4, 3], [10, 20]), curve([4, 3], [30, 40]), "tokens") == []


def test_mean_curve_uses_evaluations_that_all_runs_have():
    mean = mean_curve([curve([5, 4, 3], [10, 20, 30]), curve([6, 5], [10, 30])])
    assert mean is not None
    assert mean.tokens == (10, 30)
    assert mean.loss == (5.5, 4.0)
    assert mean_curve([curve([5], [10]), curve([5], [11])]) is None


def lead(sizes):
    """A pair of curves at tokens 25, 50, 75, 100 with these gaps; 50 is the half."""
    return curve([5, 4, 3.5, 3]), curve([a + b for a, b in zip((5, 4, 3.5, 3), sizes, strict=True)])


@pytest.mark.parametrize(
    ("sizes", "direction"),
    [
        ((-0.5, -0.4, -0.2, -0.1), "shrinking"),
        ((0.1, 0.1, 0.2, 0.3), "growing"),
        ((-0.4, -0.4, -0.4, -0.38), "unclear"),
        ((-0.4, -0.2, 0.0, 0.1), "crossing"),
    ],
)
def test_movement_of_the_gap(sizes, direction):
    found = trend([lead(sizes), lead(sizes)])
    assert found is not None
    assert found.direction == direction
    assert (found.half_tokens, found.half, found.end) == (50, pytest.approx(sizes[1]), pytest.approx(sizes[3]))


@pytest.mark.parametrize("ends", [(-0.4, -0.1), (-0.3, -0.25), (-0.4,)])
def test_movement_is_claimed_where_its_interval_over_seeds_leaves_zero_out(ends):
    found = trend([lead((-0.4, -0.2, -0.2, end)) for end in ends])
    assert found is not None
    assert found.direction == "unclear"


def test_no_movement_where_the_first_evaluation_is_past_the_half():
    assert trend([(curve([4, 3], [60, 100]), curve([4, 3], [60, 100]))]) is None
