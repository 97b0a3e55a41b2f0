"""ELC-BERT's four variants against their equations written as loops, and its counts."""

import math

import pytest
import torch
import torch.nn.functional as F

from models import tiny
from widestream.model.build import build_model
from widestream.streams.depth.elc_bert import ElcBertStream
from widestream.testing.models import random_model, tokens_of

VARIANTS = ("base", "zero", "normalised", "weighted_output")


def mixture(a, sources):
    weights = [math.exp(x) for x in a.tolist()]
    return sum(weight / sum(weights) * h for weight, h in zip(weights, sources, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_equations(variant):
    L = 5
    stream = random_model({"kind": "elc_bert", "variant": variant}, {"num_layers": L}).stream.double()
    gen = torch.Generator().manual_seed(0)
    embedding, written = torch.randn(1, 3, 32, generator=gen).double(), torch.randn(2 * L, 1, 3, 32, generator=gen)

    def source(h):
        return F.layer_norm(h, (32,), eps=1e-6) if variant == "normalised" else h

    state = stream.write_embedding(None, embedding, None)
    h = [source(embedding)]
    for layer in range(1, L + 1):
        x = h[0] if layer == 1 else mixture(stream.get_parameter(f"a_{layer}"), h)
        torch.testing.assert_close(state.x, x, rtol=1e-10, atol=1e-10)
        attention, mlp = written[2 * layer - 2].double(), written[2 * layer - 1].double()
        state = stream.write(2 * layer - 1, state, attention)
        reads = attention if variant == "base" else x + attention
        torch.testing.assert_close(state.x, reads, rtol=1e-10, atol=1e-10)
        state = stream.write(2 * layer, state, mlp)
        h.append(source(attention + mlp))
    out = mixture(stream.get_parameter(f"a_{L + 1}"), h) if variant == "weighted_output" else h[L]
    torch.testing.assert_close(state.x, out, rtol=1e-10, atol=1e-10)
    assert state.past == ()


@pytest.mark.parametrize("variant", VARIANTS)
def test_counts_at_the_size_of_gpt2_small(variant):
    """78 weights are usually counted; the one over a single source is inert and does not exist here."""
    config = tiny({"kind": "elc_bert", "variant": variant}, num_layers=12, num_heads=12, head_dim=64)
    weights = 78 - 1 + (13 if variant == "weighted_output" else 0)
    assert ElcBertStream.parameter_formula(config) - 25 * 768 == weights


def test_start_of_the_weights():
    base, zero = (build_model(tiny({"kind": "elc_bert", "variant": v}, num_layers=3)).stream for v in ("base", "zero"))
    assert base.a_3.tolist() == [0, 0, 1]
    assert zero.a_3.tolist() == [0, 0, 0]


def test_bfloat16_outputs_are_kept_in_float32():
    stream = build_model(tiny({"kind": "elc_bert"})).stream
    state = stream.write_embedding(None, torch.randn(1, 3, 32), None)
    state = stream.write(1, state, torch.randn(1, 3, 32).bfloat16())
    assert state.x.dtype == torch.float32


def test_base_drops_what_attention_has_read():
    """The embedding reaches the output of a single layer through attention alone."""
    model = build_model(tiny({"kind": "elc_bert"}, num_layers=1))
    with torch.no_grad():
        model.blocks[0].out.zero_()
    assert not model(tokens_of(2, 20)).any()
