"""Intervals over the items of a task hold the truth in 93 to 97 of 100 simulated data sets, or more often where answers
are right or wrong and few items differ; and no fewer of them than the bootstrap's do."""

import numpy as np
import pytest
from scipy.stats import binomtest

from widestream.report.stats.items import (
    accuracy_difference,
    averaged,
    bootstrap,
    mean_over_items,
    proportion,
)

EXPERIMENTS = 1500


def coverage(interval, truth, experiments=EXPERIMENTS):
    dice = np.random.default_rng(0)
    found = [interval(dice) for _ in range(experiments)]
    return sum(one.low - 1e-12 <= truth <= one.high + 1e-12 for one in found) / experiments


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("items", [50, 400])
def test_share_of_right_answers(items, share):
    assert 0.92 < coverage(lambda dice: proportion((dice.random(items) < share) * 1.0), share) < 0.98


@pytest.mark.parametrize(("gain", "loss"), [(0.1, 0.1), (0.08, 0.03), (0.2, 0.1), (0.02, 0.02)])
@pytest.mark.parametrize("items", [40, 200, 1000])
def test_difference_of_right_answers(items, gain, loss):
    """`gain`, `loss`: share of items that one model alone has right."""

    def one(dice):
        drawn = dice.random(items)
        reference, other = (drawn < loss) * 1.0, ((drawn >= loss) & (drawn < loss + gain)) * 1.0
        return accuracy_difference(reference.tolist(), other.tolist())

    assert coverage(one, gain - loss, 600) > 0.93
    if items * (gain + loss) > 20:
        assert coverage(one, gain - loss, 600) < 0.98


@pytest.mark.parametrize("items", [60, 400])
def test_difference_of_right_answers_over_several_seeds(items):
    def one(dice):
        hard = dice.beta(1, 1, items)
        runs = [[(dice.random(items) < np.clip(hard + lead, 0, 1)) * 1.0 for _ in range(3)] for lead in (0.0, 0.0)]
        return accuracy_difference(averaged(runs[0]), averaged(runs[1]))

    assert 0.93 < coverage(one, 0.0, 600) < 0.985


def skewed(dice, items):
    return (dice.gamma(0.7, 2.0, items) - 1.0).tolist(), None


def documents(dice, items):
    """Texts of very unlike lengths, whose differences go along with them."""
    words = np.round(dice.lognormal(6, 0.7, items)) + 1
    return (dice.normal(-0.02 * words, 0.3 * np.sqrt(words) + 0.03 * words)).tolist(), words.tolist()


@pytest.mark.parametrize(("draw", "truth"), [(skewed, 0.4), (documents, -0.02)])
def test_difference_of_nats(draw, truth):
    assert 0.92 < coverage(lambda dice: mean_over_items(*draw(dice, 200), paired=True), truth) < 0.97


@pytest.mark.parametrize("draw", [skewed, documents])
def test_the_bootstrap_agrees_but_is_a_little_narrow(draw):
    """Why it stands beside and not in front: its interval is that of a mean without Student's factor."""
    dice = np.random.default_rng(0)
    shares = []
    for _ in range(30):
        values, weights = draw(dice, 100)
        student, (low, high) = mean_over_items(values, weights), bootstrap(values, weights)
        shares.append((high - low) / (student.high - student.low))
    assert 0.93 < np.mean(shares) < 1.0
    assert bootstrap([1.0]) is None


def test_mcnemar_is_exact():
    reference, other = [1.0] * 9 + [0.0] * 3 + [1.0] * 50, [0.0] * 9 + [1.0] * 3 + [1.0] * 50
    found = accuracy_difference(reference, other)
    assert found.p == pytest.approx(binomtest(3, 12).pvalue)
    assert found.mean == pytest.approx(-6 / 62)
    same = accuracy_difference(other, other)
    assert (same.p, same.mean) == (1.0, 0.0)
    assert same.low < 0 < same.high, "that no item differed does not say that none would"


def test_weights_make_a_ratio_of_sums():
    found = mean_over_items([1.0, 6.0], [1.0, 2.0])
    assert found.mean == pytest.approx(7 / 3)
    assert mean_over_items([1.0, 2.0, 4.0]).low == pytest.approx(mean_over_items([1.0, 2.0, 4.0], [1.0] * 3).low)
    assert mean_over_items([1.0]).low is None
