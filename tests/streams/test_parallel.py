"""Parallel lanes against the speedrun's loop, written anew, and their starts and counts."""

import pytest
import torch

from models import tiny
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model
from widestream.streams.lanes.parallel import ParallelStream
from widestream.testing.models import random_model, tokens_of


@pytest.mark.parametrize("first", [None, 0, 1, 3])
def test_the_speedruns_loop(first):
    model = random_model({"kind": "parallel", "first": first}, {"num_layers": 4})
    stream = model.stream.double()
    begins = 2 if first is None else first
    embedding, *written = torch.randn(9, 1, 5, 32, generator=torch.Generator().manual_seed(0)).double()
    state, lane0, lane1 = stream.write_embedding(None, embedding, None), embedding, None
    for layer in range(4):
        if layer == begins:
            lane1 = lane0
        for kind, block in (("attention", 2 * layer), ("mlp", 2 * layer + 1)):
            reads = lane1 if kind == "mlp" and lane1 is not None else lane0
            torch.testing.assert_close(stream.read(block, state)["x"], stream.norms[block](reads))
            f = written[block]
            lane0 = stream.carry[block] * lane0 + stream.first_lane[block] * f
            if lane1 is not None:
                lane1 = stream.carry[block] * lane1 + stream.second_lane[block - 2 * begins] * f
            state = stream.write(block + 1, state, f)
    torch.testing.assert_close(state.x0, (lane0 + lane1) * 0.5, rtol=1e-12, atol=1e-12)


def test_attention_says_more_to_the_mlps_at_first():
    stream = build_model(tiny({"kind": "parallel", "first": 1}, num_layers=3)).stream
    assert stream.second_lane.tolist() == [1.5, 1.0, 1.5, 1.0]
    assert (stream.carry == 1).all()
    assert (stream.first_lane == 1).all()


def test_lanes_that_start_equal_are_told_apart_by_their_readers():
    model = build_model(tiny({"kind": "parallel", "first": 0, "cross": 1.0}))
    model.loss(tokens_of(2, 20), tokens_of(2, 20, seed=1)).total.backward()
    stream = model.stream
    assert (stream.first_lane.grad - stream.second_lane.grad).abs()[:-1].min() > 1e-6


@pytest.mark.parametrize(("layers", "first"), [(11, 7), (12, 8), (1, 0)])
def test_where_the_second_lane_begins(layers, first):
    assert meta_model(tiny({"kind": "parallel"}, num_layers=layers)).stream.single == 2 * first


def test_counts_at_the_size_of_gpt2_small():
    config = tiny({"kind": "parallel"}, num_layers=12, num_heads=12, head_dim=64)
    assert ParallelStream.parameter_formula(config) == 25 * 768 + 2 * 24 + 8


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match=r"first is -1; it must be at least 0"):
        tiny({"kind": "parallel", "first": -1})
    with pytest.raises(UserError, match=r"first is 2; of 2 layers the last one is 1"):
        meta_model(tiny({"kind": "parallel", "first": 2}))
