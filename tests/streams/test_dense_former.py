"""DenseFormer against its equations written as loops, its counts, and what is kept of the depth."""

import pytest
import torch

from models import tiny
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.streams.depth.dense_former import DenseFormerConfig, DenseFormerStream, kept_layers
from widestream.testing.models import random_model, tokens_of


@pytest.mark.parametrize(("dilation", "period"), [(1, 1), (2, 1), (2, 3), (3, 2), (4, 4)])
def test_equations(dilation, period):
    L = 8
    model = random_model({"kind": "dense_former", "dilation": dilation, "period": period}, {"num_layers": L})
    stream = model.stream.double()
    gen = torch.Generator().manual_seed(0)
    embedding, written = torch.randn(1, 3, 32, generator=gen).double(), torch.randn(2 * L, 1, 3, 32, generator=gen)
    state = stream.write_embedding(None, embedding, None)
    X, Y = [embedding], embedding
    for i in range(1, L + 1):
        state = stream.write(2 * i - 1, state, written[2 * i - 2].double())
        state = stream.write(2 * i, state, written[2 * i - 1].double())
        X.append(Y + written[2 * i - 2] + written[2 * i - 1])
        Y = X[i]
        if i % period == 0:
            alpha = stream.get_parameter(f"alpha_{i}")
            Y = sum(alpha[n] * X[j] for n, j in enumerate(j for j in range(i + 1) if (i - j) % dilation == 0))
        torch.testing.assert_close(state.x, Y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dilation", "period", "weights", "kept"), [(1, 1, 90, 12), (4, 4, 9, 3), (4, 5, 5, 2)])
def test_counts_at_the_size_of_gpt2_small(dilation, period, weights, kept):
    stream = {"kind": "dense_former", "dilation": dilation, "period": period}
    config = tiny(stream, num_layers=12, num_heads=12, head_dim=64)
    assert DenseFormerStream.parameter_formula(config) - 25 * 768 == weights
    assert DenseFormerStream.spec(config).history_size == kept * 768


def test_nothing_is_kept_that_no_average_needs():
    assert kept_layers(DenseFormerConfig(dilation=2, period=3), num_layers=8, layer=5) == [0, 2, 4]
    assert kept_layers(DenseFormerConfig(dilation=4, period=4), num_layers=12, layer=3) == [0]
    assert kept_layers(DenseFormerConfig(dilation=1, period=1), num_layers=8, layer=8) == []


def test_without_averages_it_is_the_plain_stream():
    model, plain = build_model(tiny({"kind": "dense_former", "period": 3})), build_model(tiny("vector"))
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(model(tokens_of(2, 20)), plain(tokens_of(2, 20)))


@pytest.mark.parametrize("name", ["dilation", "period"])
def test_bad_settings_are_refused(name):
    with pytest.raises(UserError, match=f"{name} is 0"):
        tiny({"kind": "dense_former", name: 0})
