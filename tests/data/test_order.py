import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widestream.data.batches import TrainBatches
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


class Whole:
    """The same order in Python's integers, which know no rounding and no overflow, and back again."""

    def __init__(self, size: int, seed: int, epoch: int):
        digest = hashlib.blake2b(f"widestream order {seed} {epoch}".encode(), digest_size=64).digest()
        self.keys = [int.from_bytes(digest[start : start + 8], "little") for start in range(0, 64, 8)]
        self.size, self.half = size, 1
        while 4**self.half < size:
            self.half += 1

    def scrambled(self, number: int) -> int:
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            number = (number ^ (number >> shift)) * factor % 2**64
        return (number ^ (number >> 31)) % 2**self.half

    def forwards(self, position: int) -> int:
        while True:
            left, right = divmod(position, 2**self.half)
            for key in self.keys:
                left, right = right, left ^ self.scrambled(right ^ key)
            position = left * 2**self.half + right
            if position < self.size:
                return position

    def backwards(self, item: int) -> int:
        while True:
            left, right = divmod(item, 2**self.half)
            for key in reversed(self.keys):
                left, right = right ^ self.scrambled(left ^ key), left
            item = left * 2**self.half + right
            if item < self.size:
                return item


BEYOND = [2**40 + 1, 2**41 - 1, 2**42 + 12_345, 2**53 - 1, 2**53, 2**53 + 1, 2**60 + 7, 2**61 + 1, 2**62 - 1, 2**62]


@pytest.mark.parametrize("size", BEYOND)
def test_orders_of_more_than_a_trillion_windows_are_exact_and_can_be_undone(size):
    """Every item of a neighbourhood leads back to its position, so no two positions share one, nor is any lost."""
    whole = Whole(size, 5, 2)
    middles = [0, 2**32, 2**40, size // 3, size // 2, 2**53, size - 1]
    positions = sorted({near for middle in middles for near in range(middle - 20, middle + 20) if 0 <= near < size})
    items = permute(np.array(positions), size, 5, 2).tolist()
    assert items == [whole.forwards(position) for position in positions]
    assert [whole.backwards(item) for item in items] == positions
    assert max(items) > size // 2, "large items are reached"
    reached = [whole.backwards(item) for item in positions]  # and every item of a neighbourhood has a position
    assert permute(np.array(reached), size, 5, 2).tolist() == positions


@pytest.mark.parametrize("size", BEYOND)
def test_large_orders_are_spread_evenly(size):
    """A sixteenth of the items, to within the chance of a random order, lies in each sixteenth of the epoch."""
    items = permute(np.arange(size - 16_000, size), size, 1, 0)
    counts = np.bincount([item * 16 // size for item in items.tolist()], minlength=16)
    assert counts.size == 16
    assert abs(counts - 1000).max() < 5 * 1000**0.5


def test_batches_of_more_than_a_trillion_windows_go_through_an_epoch_and_on():
    """A batch that lies across the end of the first epoch, shared by two processes."""
    windows = 2**42 + 3
    store = SimpleNamespace(tokens=windows * 1024 + 1, split="train", folder="data")
    batches = TrainBatches(store, 1024, 64, 9)  # pyright: ignore[reportArgumentType]
    step = windows // 64
    found = [index for rank in (0, 1) for index in batches.window_indices(step, rank, 2).tolist()]
    places = [divmod(step * 64 + row, windows) for row in range(64)]
    assert {epoch for epoch, _ in places} == {0, 1}
    assert found == [Whole(windows, 9, epoch).forwards(position) for epoch, position in places]
