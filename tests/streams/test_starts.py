"""What an initial model is said to be, it is at the sizes and scales that are trained; the contract has small ones."""

import functools

import pytest
import torch

from models import tiny
from widestream.model.build import build_model
from widestream.streams import OWN_KINDS, stream_class
from widestream.testing.streams import SMALL_SCALE

GPT2_SMALL = {"num_layers": 12, "num_heads": 12, "head_dim": 64, "mlp_dim": 3072, "init": SMALL_SCALE}
PLAIN = [
    kind
    for kind in OWN_KINDS
    if kind != "vector" and stream_class(kind).spec(tiny({"kind": kind, **stream_class(kind).examples[0]})).starts_plain
]
RMT = [
    {"kind": "matrix_history"},
    {"kind": "matrix_dynamic"},
    {"kind": "matrix_softmax", "form": "added"},
    {"kind": "matrix_carry"},
    {"kind": "matrix_lane", "lane": 16},
]


def logits(stream, **changes):
    tokens = torch.randint(50, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model = build_model(tiny(stream, **changes), seed=1)
        return model.logits(model(tokens))


@functools.cache
def plain_logits():
    return logits("vector", **GPT2_SMALL)


def assert_near(ours, wanted):
    assert (ours - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLAIN)
def test_plain_at_the_size_of_gpt2_small(kind):
    assert_near(logits({"kind": kind, **stream_class(kind).examples[0]}, **GPT2_SMALL), plain_logits())


@pytest.mark.parametrize("layers", [12, 24])
@pytest.mark.parametrize("init", [{}, SMALL_SCALE], ids=["lecun", "small"])
@pytest.mark.parametrize("stream", RMT, ids=lambda stream: stream["kind"])
def test_relatives_of_rmt_that_say_so_start_as_it(stream, init, layers):
    changes = {"num_layers": layers, "init": init}
    rmt = logits({"kind": "matrix", "key_dim": 16}, **changes)
    assert_near(logits(stream | {"key_dim": 16}, **changes), rmt)
