"""A wiring in a few numbers."""

import math

import pytest
import torch

from lens_passes import seen_of
from widestream.lens import Reader, Wiring, Writer, flow, summarize
from widestream.lens.shares import Exactness


def wiring(size):
    """Two blocks and the head, with sizes of wires [readers, writers]."""
    readers, writers = (
        [Reader(site, "mlp", site) for site in range(3)],
        [Writer(site, "mlp", site) for site in range(3)],
    )
    size = torch.tensor(size, dtype=torch.float64)
    return Wiring(writers, readers, size, size, torch.zeros(3), Exactness())


NAN = math.nan


def test_by_hand():
    found = summarize(wiring([[3.0, NAN, NAN], [1.0, 1.0, NAN], [2.0, 1.0, 1.0]]))
    assert found.wires == 6
    assert found.largest == pytest.approx(3 / 9)  # one wire of six
    halves = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert found.entropy == pytest.approx((math.log(2) + halves) / 2)
    assert found.evenness == pytest.approx((1 + halves / math.log(3)) / 2)
    assert found.by_distance == pytest.approx([5 / 3, 1.0, 2.0])


def test_the_largest_are_one_in_a_hundred():
    readers, writers = [Reader(0, "mlp", 0)], [Writer(0, "mlp", 0, vector) for vector in range(150)]
    size = torch.ones(1, 150, dtype=torch.float64)
    size[0, 7] = 51.0
    found = summarize(Wiring(writers, readers, size, size, torch.zeros(1), Exactness()))
    assert found.largest == pytest.approx(52 / 200)  # two of 150


@pytest.mark.parametrize("kind", ["matrix", "vector", "mhc"])
def test_of_a_pass(kind):
    seen = seen_of(kind)
    found = summarize(flow(seen))
    assert found.wires == sum(w.site <= r.site for r in seen.readers() for w in seen.writers())
    assert len(found.by_distance) == len(seen.exchanges)
    assert 0 < found.evenness <= 1
    assert 1 / found.wires <= found.largest < 1
