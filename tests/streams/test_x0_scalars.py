"""The scalars in front of layers, against their equation written as a loop."""

import torch

from models import tiny
from widestream.streams.vector.x0_scalars import X0ScalarsStream
from widestream.testing.models import random_model


def test_equation():
    stream = random_model({"kind": "x0_scalars"}, {}).stream.double()
    gen = torch.Generator().manual_seed(0)
    x0 = torch.randn(1, 3, 32, generator=gen).double()
    state, x = stream.write_embedding(None, x0, None), x0
    for layer in range(3):
        x = stream.lambdas[layer] * x + stream.mus[layer] * x0
        torch.testing.assert_close(state.x, x, rtol=1e-10, atol=1e-10)
        for site in (2 * layer + 1, 2 * layer + 2):
            written = torch.randn(1, 3, 32, generator=gen).double()
            state, x = stream.write(site, state, written), x + written
    torch.testing.assert_close(state.x, x, rtol=1e-10, atol=1e-10)


def test_counts_at_the_size_of_gpt2_small():
    config = tiny({"kind": "x0_scalars"}, num_layers=12, num_heads=12, head_dim=64)
    assert X0ScalarsStream.parameter_formula(config) == 24 + 25 * 768
    assert X0ScalarsStream.spec(config).history_size == 768
