import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widestream.data.order import permute

SEEDS = st.integers(0, 2**63)


@given(size=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_permutation_is_a_bijection(size, seed, epoch):
    assert np.array_equal(np.sort(permute(np.arange(size), size, seed, epoch)), np.arange(size))


@given(size=st.integers(2**20, 2**62), seed=SEEDS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_large_sizes_stay_in_range_and_apart(size, seed, data):
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=20, unique=True)))
    items = permute(positions, size, seed, 0)
    assert len(set(items.tolist())) == len(positions)
    assert (items >= 0).all()
    assert (items < size).all()


@given(size=st.integers(2, 500), seed=SEEDS, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_position_does_not_depend_on_the_others_asked_for(size, seed, data):
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=30)))
    assert np.array_equal(permute(positions, size, seed, 3), permute(np.arange(size), size, seed, 3)[positions])


@pytest.mark.parametrize("other", [(1, 0), (0, 1)])
def test_seed_and_epoch_change_the_order(other):
    first, second = permute(np.arange(1000), 1000, 0, 0), permute(np.arange(1000), 1000, *other)
    assert (first == second).sum() < 20  # two random permutations share one place on average


def test_order_is_fixed_for_all_time():
    """A change here would silently change what every run sees, and what a resumed run sees next."""
    assert permute(np.arange(10), 10, 0, 0).tolist() == [0, 7, 9, 3, 2, 1, 8, 6, 5, 4]


def test_neighbours_are_spread_evenly():
    """Mean distance of consecutive items is a third of the size, as for a random permutation."""
    size = 20_000
    distance = np.abs(np.diff(permute(np.arange(size), size, 7, 0))).mean() / size
    assert distance == pytest.approx(1 / 3, abs=0.01)
