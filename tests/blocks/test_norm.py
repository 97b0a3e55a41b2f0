"""Norms of a model, in the forms that families have: what they compute, and what they keep for the backward pass."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models import tiny
from widestream.blocks.attention import BareAttention
from widestream.blocks.context import make_context
from widestream.blocks.norm import Norm
from widestream.blocks.roles import Roles

BF16 = torch.bfloat16
SHAPES = {"a vector": ((32,), (32,)), "a matrix": ((8, 6), (8, 6)), "a gain of one axis": ((8, 6), (8, 1))}


def make(shape, gain_shape=None, has_gain=True, **changes):
    config = tiny(norm="rmsnorm", **changes)
    norm = Norm(config, Roles(config), shape, gain_shape, has_gain=has_gain)
    return filled(norm)


def filled(module):
    """With gains about 1, all different."""
    for number, parameter in enumerate(module.parameters()):
        parameter.data = 1 + random(*parameter.shape, seed=number) / 4
    return module


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bytes_kept(function, x):
    """What a function's graph holds of tensors, parameters left out."""
    kept = {}

    def keep(tensor: Tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = function(x)
    del out
    return sum(kept.values())


@pytest.mark.parametrize("has_gain", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("case", SHAPES)
def test_rmsnorm_keeps_its_input_and_a_number_for_each_row(case, dtype, has_gain):
    shape, gain_shape = SHAPES[case]
    x = random(3, 5, *shape).to(dtype).requires_grad_()
    assert bytes_kept(make(shape, gain_shape, has_gain), x) == x.nbytes + 3 * 5 * 4


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("case", SHAPES)
def test_rmsnorm_against_its_formula(case, offset):
    shape, gain_shape = SHAPES[case]
    norm, x = make(shape, gain_shape, norm_offset=offset), random(3, 5, *shape)
    axes = tuple(range(-len(shape), 0))
    expected = x / (x.square().mean(axes, keepdim=True) + norm.eps).sqrt() * (norm.gain + offset)
    torch.testing.assert_close(norm(x), expected)
    compiled = torch.compile(norm, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


def test_checkpointed_rmsnorm_has_the_same_gradients():
    norm, x = make((32,)), random(3, 32).requires_grad_()
    wanted = torch.autograd.grad(norm(x).square().sum(), (x, *norm.parameters()))
    again = checkpoint(norm, x, use_reentrant=False)
    for got, expected in zip(torch.autograd.grad(again.square().sum(), (x, *norm.parameters())), wanted, strict=True):
        assert torch.equal(got, expected)


HEADS = {
    "turned only": {"over": "none"},
    "each normed, then turned": {"over": "head"},
    "each with a gain of its own": {"over": "head", "gain": "head"},
    "without a gain": {"over": "head", "gain": "none"},
    "turned, then normed": {"over": "head", "gain": "none", "place": "after"},
    "all normed jointly, then turned": {"over": "full"},
}


@pytest.mark.parametrize("pairs", ["halves", "neighbours"])
@pytest.mark.parametrize("heads", HEADS)
def test_heads_are_normed_and_turned_as_in_compiled_blocks(heads, pairs):
    config = tiny("matrix", norm="rmsnorm", positions="rotary", rotary_pairs=pairs, qk_norm=HEADS[heads])
    block, context = filled(BareAttention(config, 0)), make_context(config, torch.arange(9))
    inputs = {role: random(2, 9, 4, 8, seed=seed) for seed, role in enumerate("qkv", start=5)}
    compiled = torch.compile(block, backend="eager")
    torch.testing.assert_close(block(inputs, context), compiled(inputs, context), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", HEADS)
def test_turned_heads_are_rounded_once(heads):
    """Under autocast queries and keys that are turned last are rounded then, without a float32 copy on the way."""
    config = tiny("matrix", norm="rmsnorm", positions="rotary", qk_norm=HEADS[heads], upcast_attention=False)
    block, context = filled(BareAttention(config, 0)), make_context(config, torch.arange(9))
    q, k = random(2, 9, 4, 8), random(2, 9, 4, 8, seed=1)
    with torch.autocast("cpu", BF16):
        turned = block.place(q, k, context)
    for got, exact in zip(turned, block.place(q, k, context), strict=True):
        assert exact.dtype == torch.float32
        assert torch.equal(got, exact if block.norm_after else exact.to(BF16))
