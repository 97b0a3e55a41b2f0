"""Every kind of interval that a page prints holds the truth in 93 to 97 of 100 simulated experiments."""

import math
import random
from statistics import fmean

import pytest

from widestream.report.stats.fits import fit_by_seed, slope
from widestream.report.stats.intervals import difference, holm, mean_interval

EXPERIMENTS = 5000
"""With so many, the share of hits of a true 95 % interval lies within 94.4 and 95.6 % in 19 of 20 simulations."""
SIZES = (1e6, 4e6, 1.6e7, 6.4e7)
"""Sizes of a ladder or sweep."""

pytestmark = pytest.mark.parametrize("seeds", [3, 4, 6])


def coverage(interval, truth):
    """The share of experiments whose interval holds the truth; `interval(dice)` makes one."""
    dice = random.Random(0)
    found = [interval(dice) for _ in range(EXPERIMENTS)]
    return sum(one.low <= truth <= one.high for one in found) / EXPERIMENTS


def losses(dice, seeds, mean, spread, first=0):
    return {(seed, seed): dice.gauss(mean, spread) for seed in range(first, first + seeds)}


def test_mean(seeds):
    assert 0.93 < coverage(lambda dice: mean_interval([*losses(dice, seeds, 3.0, 0.1).values()]), 3.0) < 0.97


def test_paired_difference(seeds):
    def one(dice):
        reference = losses(dice, seeds, 3.0, 0.2)
        return difference(reference, {seed: dice.gauss(loss - 0.1, 0.05) for seed, loss in reference.items()})

    assert 0.93 < coverage(one, -0.1) < 0.97


@pytest.mark.parametrize("spread", [1.0, 2.0, 4.0])
def test_unpaired_difference(seeds, spread):
    """Welch's, with equal and with unlike spreads."""

    def one(dice):
        return difference(losses(dice, seeds, 3.0, 0.1), losses(dice, seeds, 2.9, 0.1 * spread, first=50))

    assert 0.93 < coverage(one, -0.1) < 0.97


def ladder(dice, seeds, exponent, noise):
    """(size, losses by seed) on a power law."""
    logs = {x: math.log(20) - exponent * math.log(x) for x in SIZES}
    return [(x, {seed: math.exp(log) for seed, log in losses(dice, seeds, logs[x], noise).items()}) for x in SIZES]


def test_exponent_of_a_power_law(seeds):
    def one(dice):
        return mean_interval([law.exponent for law in fit_by_seed(ladder(dice, seeds, 0.12, 0.01)).values()])

    assert 0.93 < coverage(one, 0.12) < 0.97


def test_line_of_a_power_law(seeds):
    def one(dice):
        laws = fit_by_seed(ladder(dice, seeds, 0.12, 0.01)).values()
        return mean_interval([math.log(law(SIZES[2])) for law in laws])

    assert 0.93 < coverage(one, math.log(20) - 0.12 * math.log(SIZES[2])) < 0.97


def test_resources_to_equal_loss(seeds):
    """Two families whose lines differ by a factor of resources: the ratio at one loss, in logarithms."""

    def one(dice):
        theirs, ours = (fit_by_seed(ladder(dice, seeds, 0.12, 0.004)) for _ in range(2))
        logs = [(ours[seed].log_where(3.0), theirs[seed].log_where(3.0)) for seed in ours]
        return mean_interval([a - b for a, b in logs])

    assert 0.93 < coverage(one, 0.0) < 0.97


def sweep(dice, seeds):
    return [(x, losses(dice, seeds, 3 - 0.02 * math.log2(x) + 0.003 * math.log2(x) ** 2, 0.05)) for x in SIZES]


def test_bend_of_a_sweep(seeds):
    assert 0.93 < coverage(lambda dice: slope(sweep(dice, seeds)).bend, 0.003) < 0.97


def test_slope_of_a_sweep(seeds):
    places = [math.log2(x) for x in SIZES]
    middle = fmean(places)
    straight = sum((x - middle) * (-0.02 * x + 0.003 * x * x) for x in places)
    truth = straight / sum((x - middle) ** 2 for x in places)  # of the least-squares line through the means
    assert 0.93 < coverage(lambda dice: slope(sweep(dice, seeds)).per_doubling, truth) < 0.97


def test_holm_finds_a_difference_among_none_in_one_family_of_twenty(seeds):
    """Eight arms that are all like the reference: without a correction a third of the pages would name a winner."""
    dice = random.Random(0)

    def family():
        reference = losses(dice, seeds, 3.0, 0.1)
        return [difference(reference, losses(dice, seeds, 3.0, 0.1)) for _ in range(8)]

    families = [family() for _ in range(EXPERIMENTS // 8)]
    found = [any(p < 0.05 for p in holm(one) if p is not None) for one in families]
    raw = [any(one.p < 0.05 for one in family) for family in families]
    assert fmean(found) < 0.07
    assert fmean(raw) > 0.15
