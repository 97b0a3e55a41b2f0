"""Experts in whole models: the balance loss by every way through the depth, decoding, weights in half precision."""

import pytest
import torch

from models import tiny
from widestream.generate.decoding import cast_weights
from widestream.model.build import build_model
from widestream.model.depth import (
    Compiled,
    CompiledBlocks,
    Eager,
    Fused,
    Rebuilt,
    Recomputed,
    RecomputedBlocks,
    sites_of_layers,
)
from widestream.testing.models import copy_of, random_model, tokens_of

SETTINGS = {"num_experts": 4, "top_k": 2, "balance_weight": 0.5}
STREAMS = {
    "vector": {"kind": "vector"},
    "matrix": {"kind": "matrix", "key_dim": 6},
    "mhc": {"kind": "mhc"},
    "delta": {"kind": "matrix_delta", "key_dim": 6},
}
AOT = {"backend": "aot_eager"}
WAYS = [
    ("vector", "eager", lambda layers: Eager()),
    ("vector", "recomputed", Recomputed),
    ("vector", "compiled", lambda layers: Compiled(Eager(), fullgraph=True, **AOT)),
    ("vector", "compiled, recomputed", lambda layers: Compiled(Recomputed(layers), **AOT)),
    ("matrix", "rebuilt", lambda layers: Rebuilt()),
    ("matrix", "rebuilt, recomputed", lambda layers: Rebuilt(loop=RecomputedBlocks(Eager()))),
    ("matrix", "rebuilt, compiled", lambda layers: Rebuilt(loop=CompiledBlocks(Eager(), **AOT))),
    ("matrix", "fused", lambda layers: Fused("any")),
    ("matrix", "fused, recomputed", lambda layers: Fused("any", Recomputed(layers))),
    ("delta", "undone", lambda layers: Rebuilt()),
    ("mhc", "replayed", lambda layers: Rebuilt(anchors=2)),
]


def loss_as_a_sum(model, tokens, targets):
    """Loss of a model that adds no balance, and the balance of every layer from the formula, by plain autograd."""
    received = []
    hooks = [block.register_forward_pre_hook(lambda _, args: received.append(args[0]["x"])) for block in model.experts]
    cross_entropy = model.loss(tokens, targets).total
    for hook in hooks:
        hook.remove()
    balances = []
    for block, x in zip(model.experts, received, strict=True):
        p = (x @ block.router.T).softmax(-1)
        picked = torch.nn.functional.one_hot(p.topk(2).indices, 4).sum(2)
        balances.append(4 * (picked.to(p.dtype).mean(1) * p.mean(1)).sum(-1).mean())
    assert len(balances) == 2
    return cross_entropy + 0.5 * torch.stack(balances).mean()


@pytest.mark.parametrize(("stream", "name", "way"), WAYS, ids=[f"{stream}-{name}" for stream, name, _ in WAYS])
def test_the_balance_loss_has_exact_gradients_by_every_way(stream, name, way):
    model, plain = (
        random_model(STREAMS[stream], {"num_layers": 2, "moe": SETTINGS | {"balance": balance}})
        for balance in ("loss", "none")
    )
    plain = copy_of(plain, dtype=torch.float64)
    model = copy_of(model, way(sites_of_layers(plain.layout)), torch.float64)
    tokens, targets = tokens_of(3, 20), tokens_of(3, 20, seed=1)
    torch._dynamo.reset()
    terms, wanted = model.loss(tokens, targets), loss_as_a_sum(plain, tokens, targets)
    torch.testing.assert_close(terms.total, wanted)
    assert terms.load.shape == (2, 4)
    assert terms.load.sum(-1).tolist() == [3 * 20 * 2] * 2
    share = 0.37  # of a micro-batch
    (terms.total * share).backward()
    (wanted * share).backward()
    for (parameter, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        error = (a.grad - b.grad).norm() / b.grad.norm()
        assert error < 1e-9, f"the gradient of {parameter} is off by {error:.1e}"


def test_windows_count_by_their_targets():
    model = build_model(tiny(moe=SETTINGS), seed=1)
    tokens, weights = tokens_of(2, 20), torch.zeros(2, 20)
    weights[0, :5], weights[1, :15] = 1, 1
    first, second = (model.loss(tokens[b : b + 1], tokens[b : b + 1]).balance for b in (0, 1))
    both = model.loss(tokens, tokens, weights=weights).balance
    torch.testing.assert_close(both, first / 4 + 3 * second / 4)


def test_without_balance_loss_nothing_is_added():
    for balance in ("none", "bias"):
        model = build_model(tiny(moe=SETTINGS | {"balance": balance}))
        terms = model.loss(tokens_of(2, 20), tokens_of(2, 20))
        assert terms.total == terms.cross_entropy
        assert terms.balance > 1
    with torch.no_grad():
        assert len(model.loss(tokens_of(2, 20), tokens_of(2, 20)).load) == 0


def test_every_second_layer():
    model = build_model(tiny(num_layers=4, moe=SETTINGS | {"every": 2}))
    assert [experts.layer for experts in model.experts] == [1, 3]


def test_a_fixed_seed_gives_no_expert_the_weights_of_another():
    w1 = build_model(tiny(moe=SETTINGS)).experts[0].w1
    assert not torch.equal(w1[0], w1[1])


def test_weights_in_half_precision_pick_the_same_experts():
    model = build_model(tiny(moe=SETTINGS, activation="swiglu"))
    tokens = tokens_of(2, 20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = model(tokens)
        cast_weights(model, "bf16")
        assert torch.equal(model(tokens), before)
    experts = model.experts[0]
    assert (experts.w1.dtype, experts.w2.dtype, experts.router.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
