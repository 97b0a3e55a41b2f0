"""LAuReL against its equation written as loops, its counts, and its plain settings."""

import pytest
import torch

from models import tiny
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.model.costs import summarize
from widestream.streams.vector.laurel import LaurelStream
from widestream.testing.models import random_model, tokens_of


@pytest.mark.parametrize(
    ("weights", "low_rank", "previous"),
    [
        ("free", False, 0), ("softmax", False, 0), ("none", True, 0), ("none", False, 2), ("none", True, 3),
        ("free", True, 0), ("softmax", False, 2), ("free", True, 9),
    ],
)  # fmt: skip
def test_equation(weights, low_rank, previous):
    settings = {"weights": weights, "low_rank": low_rank, "previous": previous, "rank": 3}
    stream = random_model({"kind": "laurel", **settings}, {"num_layers": 3}).stream.double()
    gen = torch.Generator().manual_seed(0)
    x = [torch.randn(1, 3, 32, generator=gen).double()]
    state = stream.write_embedding(None, x[0], None)
    for i in range(6):
        f = torch.randn(1, 3, 32, generator=gen).double()
        state = stream.write(i + 1, state, f)
        alpha, beta = 1.0, 1.0
        if weights != "none":
            alpha, beta = stream.alpha[i], stream.beta[i]
        if weights == "softmax":
            alpha, beta = 2 * torch.sigmoid(alpha - beta), 2 * torch.sigmoid(beta - alpha)
        new = alpha * f + beta * x[i]
        source = x[i] * low_rank + sum(
            stream.get_parameter(f"gamma_{i + 1}")[j - 1] * x[i - j] for j in range(1, previous + 1) if i - j >= 0
        )
        if low_rank or (previous and i):
            A, B = stream.get_parameter(f"A_{i + 1}"), stream.get_parameter(f"B_{i + 1}")
            new = new + torch.einsum("dr,re,bte->btd", B, A, source)
        x.append(new)
        torch.testing.assert_close(state.x, new, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("settings", "extra"),
    [
        ({"low_rank": False}, 48),
        ({"low_rank": False, "weights": "softmax"}, 48),
        ({"weights": "none"}, 24 * 2 * 32 * 768),  # 1.18M
        ({"weights": "none", "low_rank": False, "previous": 4}, 23 * 2 * 32 * 768 + 20 * 4 + 3 + 2 + 1),
    ],
)
def test_counts_at_the_size_of_gpt2_small(settings, extra):
    config = tiny({"kind": "laurel", **settings}, num_layers=12, num_heads=12, head_dim=64)
    assert LaurelStream.parameter_formula(config) - 25 * 768 == extra


def test_without_its_map_and_weights_it_is_the_plain_stream():
    model, plain = random_model({"kind": "laurel", "previous": 2}, {}), random_model({"kind": "vector"}, {})
    for name, parameter in model.stream.named_parameters():
        if name.startswith("B_"):
            parameter.data.zero_()
        elif name in ("alpha", "beta"):
            parameter.data.fill_(1)
    shared = {name: value for name, value in model.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict(shared)
    torch.testing.assert_close(model(tokens_of(2, 20)), plain(tokens_of(2, 20)))


def test_bfloat16_outputs_are_weighted_in_float32():
    stream = build_model(tiny({"kind": "laurel", "low_rank": False})).stream
    stream.alpha.data.fill_(1 / 3)
    f = torch.randn(1, 3, 32).bfloat16()
    state = stream.write(1, stream.write_embedding(None, torch.zeros(1, 3, 32), None), f)
    torch.testing.assert_close(state.x, f.float() / 3, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"previous": -1}, "previous is -1"),
        ({"weights": "none", "low_rank": False}, "use kind: vector"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        tiny({"kind": "laurel", **settings})


def test_more_previous_states_than_there_are_cost_nothing():
    costs = [summarize(tiny({"kind": "laurel", "previous": previous})) for previous in (3, 10**9)]
    assert costs[0] == costs[1]
