"""ALiBi, rotary angles, scaling, precision and the KV cache."""

import math

import pytest
import torch

from models import tiny
from widestream.blocks.alibi import alibi_bias, alibi_slopes
from widestream.blocks.attention import BareAttention
from widestream.blocks.context import make_context
from widestream.blocks.rotary import rotary_angles, rotate


def test_alibi_slopes_are_geometric():
    slopes = alibi_slopes(12)
    assert slopes[0] == pytest.approx(2 ** (-8 / 12))
    assert slopes[-1] == pytest.approx(2**-8)
    torch.testing.assert_close(slopes[1:] / slopes[:-1], torch.full((11,), 2 ** (-8 / 12)))


def test_alibi_bias_grows_with_distance():
    bias = alibi_bias(4, torch.tensor([5, 6]), torch.arange(7))
    assert bias.shape == (4, 2, 7)
    assert bias[0, 0, 5] == 0
    assert bias[1, 1, 4] == pytest.approx(-2 * 2**-4)


def test_rotary_depends_on_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 16).unbind()
    config = tiny("vector", positions="rotary", num_heads=1, head_dim=16)
    near, far, near_k, far_k = (rotary_angles(config, torch.tensor([p]), windowed=False) for p in (3, 103, 1, 101))
    torch.testing.assert_close(
        (rotate(q, near) * rotate(k, near_k)).sum(), (rotate(q, far) * rotate(k, far_k)).sum(), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(rotate(q, far).norm(), q.norm())


@pytest.mark.parametrize("layer", [0, 1, 4])
@pytest.mark.parametrize("scaling", [True, False])
def test_attention_against_its_formula(layer, scaling):
    config = tiny("matrix", positions="alibi", inverse_layer_scaling=scaling)
    q, k, v = torch.randn(3, 2, 9, 4, 8).unbind()
    positions = torch.arange(9)
    context = make_context(config, positions)
    out = BareAttention(config, layer)({"q": q, "k": k, "v": v}, context)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(8) / (layer + 1 if scaling else 1)
    logits = logits + alibi_bias(4, positions, positions)
    logits = logits.masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), float("-inf"))
    expected = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_upcasting_keeps_softmax_out_of_bfloat16():
    q, k, v = (3 * torch.randn(3, 1, 16, 4, 8)).unbind()
    results = {}
    for upcast in (True, False):
        config = tiny("matrix", positions="none", upcast_attention=upcast)
        context = make_context(config, torch.arange(16))
        with torch.autocast("cpu", torch.bfloat16):
            results[upcast] = BareAttention(config, 0)({"q": q, "k": k, "v": v}, context).float()
    exact = BareAttention(tiny("matrix", positions="none"), 0)({"q": q, "k": k, "v": v}, context)
    assert (results[True] - exact).abs().max() < 1e-5
    assert (results[False] - exact).abs().max() > 1e-4


def test_an_explicit_mask_is_used_as_it_is():
    config = tiny("matrix", positions="none")
    mask = torch.eye(6, dtype=torch.bool)[None]
    q, k, v = torch.randn(3, 1, 6, 4, 8).unbind()
    out = BareAttention(config, 0)({"q": q, "k": k, "v": v}, make_context(config, torch.arange(6), mask=mask))
    torch.testing.assert_close(out, v)
