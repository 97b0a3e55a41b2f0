"""How lanes are mixed over depth, and how gates spread over tokens."""

import pytest
import torch

from lens_passes import CASES, seen_of, seen_with
from widestream.lens import gates, lane_mixing
from widestream.streams.lanes.base import LaneBase, Lanes

STATIC = {"kind": "hyper_connections", "dynamic": False, "lanes": 3}


def moved(seen, start, end, lanes):
    """Lanes [B, T, n, W] in front of reader `start` in front of reader `end`, nothing written between."""
    stream = seen.model.stream
    for site in range(start, end):
        state = stream.mix(site, lanes)
        assert isinstance(state, Lanes)
        lanes = stream.deposit(state, torch.zeros(*lanes.shape[:2], stream.segments * stream.lane_width))
    return lanes


def test_the_composite_is_what_the_stream_does_to_lanes():
    seen = seen_with(STATIC, {})
    found = lane_mixing(seen)
    assert not found.dynamic
    assert found.readers[0] == "0.attention"
    assert found.readers[-1] == "head"
    lanes = torch.randn(1, 2, 3, seen.model.stream.lane_width, generator=torch.Generator().manual_seed(0))
    for start, end in ((0, len(found.readers) - 1), (1, 3), (2, 2)):
        wanted = moved(seen, start, end, lanes).double()
        torch.testing.assert_close(found.between(start, end)[0, 0] @ lanes.double(), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.composite()[end, start] @ lanes.double(), wanted, rtol=1e-4, atol=1e-4)
    assert found.composite()[0, 1].isnan().all()


def test_static_mixing_is_the_tables_product():
    seen = seen_with(STATIC, {})
    product = torch.eye(3)
    for table in seen.model.stream.A.detach():
        product = table[:, 1:].T @ product
    torch.testing.assert_close(lane_mixing(seen).composite()[-1, 0], product.double(), rtol=1e-5, atol=1e-5)
    forward, backward = lane_mixing(seen).gains()
    assert forward == pytest.approx(product.abs().sum(1).max().item(), rel=1e-5)
    assert backward == pytest.approx(product.abs().sum(0).max().item(), rel=1e-5)


def test_doubly_stochastic_lanes_stay_so_token_by_token():
    seen = seen_with({"kind": "mhc", "projection": "newton", "phi": "random"}, {})
    found = lane_mixing(seen)
    assert found.dynamic
    whole = found.between(0, len(found.readers) - 1)
    assert whole.shape == (2, 20, 4, 4)
    assert (whole[0, 0] - whole[1, 5]).abs().max() > 1e-4, "every token has its own"
    torch.testing.assert_close(whole.sum(-1), torch.ones(2, 20, 4).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(whole.sum(-2), torch.ones(2, 20, 4).double(), rtol=0, atol=1e-3)
    assert found.gains() == pytest.approx((1, 1), abs=1e-3)


def test_with_what_was_written_the_lanes_of_a_pass_follow_it():
    """H_(i+1) = A_i H_i + B_i y_i: what is left when the mixed lanes are taken off is what was written."""
    seen = seen_with({"kind": "hyper_connections", "lanes": 3}, {})
    stream, found = seen.model.stream, lane_mixing(seen)
    carried = seen.exchanges[1].state.carried  # A_1 H_1
    lanes = stream.deposit(seen.exchanges[0].state, seen.exchanges[1].written[0])  # H_1
    torch.testing.assert_close((found.steps[1].float() @ lanes), carried, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 3])
def test_lanes_of_alternating_updates(rank):
    """The lanes with their weights held: what they are when nothing but lanes is added up (eqs. 1 to 3 by hand)."""
    seen = seen_with({"kind": "altup", "lanes": 3, "rank": rank}, {})
    found, stream = lane_mixing(seen), seen.model.stream
    assert found.dynamic
    assert (found.steps[0] == torch.eye(3)).all(), "attention leaves the lanes as they are"
    start, behind, done = (exchange.state for exchange in seen.exchanges[:3])
    mlp, P = seen.exchanges[2].written[0], start.lanes
    c = behind.active + mlp

    def routed(layer, v):
        normed = stream.router_norms[layer](v) / stream.width
        return torch.tanh(normed @ stream.router[layer].T)

    weights = 1 + routed(0, c) @ stream.correct[0].T
    x = P + weights[..., None] * (c - P[..., :1, :].squeeze(-2))[..., None, :]
    M = (routed(1, x[..., 0, :]) @ stream.predict[1].T).unflatten(-1, (3, 3))
    torch.testing.assert_close(done.lanes, x + M @ x, rtol=1e-4, atol=1e-5)
    written = c - P[..., 0, :] * (1 / 2**0.5 if rank else 1)  # all of c that is no lane
    left = done.lanes - (M @ (weights[..., None] * written[..., None, :]) + weights[..., None] * written[..., None, :])
    torch.testing.assert_close(found.steps[1].float() @ P, left, rtol=1e-4, atol=1e-5)
    assert weights.std() > 0.01
    assert M.std() > 0.01


@pytest.mark.parametrize(
    "stream", [{"kind": "mhc", "residual": "identity"}, {"kind": "gated_residual", "rank": 4}, {"kind": "parallel"}]
)
def test_lanes_that_go_past_unmixed(stream):
    assert lane_mixing(seen_with(stream, {})) is None


@pytest.mark.parametrize(("kind", "number"), [(kind, number) for kind, number in CASES if number == 0])
def test_every_kind_can_be_asked(kind, number):
    seen = seen_of(kind, number)
    found, mixing = gates(seen), lane_mixing(seen)
    mixed = isinstance(seen.model.stream, LaneBase) and seen.model.stream.lanes > 0
    assert (mixing is not None) == (mixed or kind == "altup")
    for gate in found:
        least, *quartiles, largest = gate.over_all()
        assert least <= quartiles[0] <= quartiles[1] <= quartiles[2] <= largest
        assert len(gate.values) == seen.tokens.numel()
        if "sigmoid" in gate.name or "softmax" in gate.name:
            assert 0 <= least <= largest <= 1
    assert bool(found) or kind not in {
        "mhc",
        "hyper_connections",
        "attn_res",
        "highway",
        "gated_residual",
    }
    assert not found or kind not in {"vector", "matrix", "rezero", "dense_former"}


def test_gates_of_lanes_are_the_equations():
    seen = seen_with({"kind": "mhc", "phi": "random", "lanes": 2}, {}, rows=1, length=6)
    stream = seen.model.stream
    x = seen.exchanges[0].written[0] + sum(seen.exchanges[0].written[1:])
    lanes = torch.cat([x, x], -1)
    normed = lanes / (lanes.square().mean(-1, keepdim=True) + seen.model.config.norm_eps).sqrt()
    wanted = torch.sigmoid(stream.alpha[0, 0] * (normed @ stream.phi[0, :2].T) + stream.b_pre[0])[0]
    found = next(gate for gate in gates(seen) if (gate.reader, gate.name) == ("0.attention", "read"))
    torch.testing.assert_close(found.values, wanted.detach(), rtol=1e-5, atol=1e-6)
    spread = found.spread()
    torch.testing.assert_close(spread[0], wanted.min(0).values.detach())
    torch.testing.assert_close(spread[4], wanted.max(0).values.detach())


def test_softmax_over_depth_sums_to_one():
    found = [gate for gate in gates(seen_of("attn_res")) if gate.name == "softmax"]
    assert len(found) > 3
    for gate in found:
        torch.testing.assert_close(gate.values.sum(1), torch.ones(len(gate.values)), rtol=1e-4, atol=1e-4)
