"""Review residuals against the equation and against the published module's form, and their counts."""

import pytest
import torch
from torch import nn

from models import tiny
from widestream.model.build import build_model
from widestream.streams.vector.review import ReviewStream
from widestream.testing.models import random_model


def rms(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("bias", [False, True])
def test_the_published_gate(bias):
    """The code's gate is a linear map of both vectors side by side; with its eps, 1e-5."""
    stream = random_model({"kind": "review", "bias": bias}, {"norm_eps": 1e-5}).stream.double()
    h, *written = torch.randn(7, 1, 5, 32, generator=torch.Generator().manual_seed(0)).double()
    state = stream.write_embedding(None, h, None)
    for site, u in enumerate(written, start=1):
        gate = nn.Linear(64, 32, bias=bias, dtype=torch.float64)
        gate.weight.data = stream.get_parameter(f"gate_{site}").data
        if bias:
            gate.bias.data = stream.get_parameter(f"bias_{site}").data
        h = h + torch.sigmoid(gate(torch.cat([rms(h), rms(u)], -1))) * u
        state = stream.write(site, state, u)
        torch.testing.assert_close(state, h, rtol=1e-10, atol=1e-10)


def test_at_the_start_every_block_has_half_its_say():
    stream = build_model(tiny({"kind": "review"})).stream
    h, u = torch.randn(2, 1, 5, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(stream.write(1, h, u), h + u / 2)


def test_bfloat16_outputs_are_added_in_float32():
    stream = build_model(tiny({"kind": "review"})).stream
    u = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(stream.write(1, torch.zeros(1, 3, 32), u), u.float() / 2)


@pytest.mark.parametrize(("bias", "extra"), [(False, 0), (True, 24 * 768)])
def test_counts_at_the_size_of_gpt2_small(bias, extra):
    config = tiny({"kind": "review", "bias": bias}, num_layers=12, num_heads=12, head_dim=64)
    assert ReviewStream.parameter_formula(config) == 24 * 2 * 768**2 + extra + 25 * 768
