"""MLPs of every activation, with biases and without, against their formulas in float64."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from models import tiny
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.model.decoder import Decoder
from widestream.recipe.model import GATED

FORMULAS = {
    "gelu": lambda z: z * (1 + torch.erf(z / 2**0.5)) / 2,
    "gelu_tanh": lambda z: z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))) / 2,
    "squared_relu": lambda z: z.clamp(min=0) ** 2,
    "swiglu": lambda z: z / (1 + torch.exp(-z)),
    "geglu": lambda z: z * (1 + torch.erf(z / 2**0.5)) / 2,
    "geglu_tanh": lambda z: z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))) / 2,
}


def mlp_of(**changes):
    """The second MLP of a small model, with biases that have left zero."""
    block = build_model(tiny(**changes)).blocks[3].double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in block.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return block


def by_formula(kind, block, x):
    w1, b1, w2, b2 = block.w1, block.b1, block.w2, block.b2
    zero = torch.zeros((), dtype=x.dtype)
    b1, b2 = (zero if b is None else b for b in (b1, b2))
    if kind not in GATED:
        return FORMULAS[kind](x @ w1.T + b1) @ w2.T + b2
    neurons = w2.shape[1]
    gate, values = (part + (b1[rows] if b1.ndim else b1) for part, rows in (
        (x @ w1[:neurons].T, slice(neurons)), (x @ w1[neurons:].T, slice(neurons, None))))  # fmt: skip
    return (FORMULAS[kind](gate) * values) @ w2.T + b2


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", FORMULAS)
def test_formula_and_gradients(kind, bias):
    block = mlp_of(activation=kind, mlp_bias=bias)
    x = torch.randn(2, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = [x, *block.parameters()]
    assert len(weights) == (5 if bias else 3)
    out, wanted = block({"x": x}, None), by_formula(kind, block, x)
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-12)
    target = torch.randn_like(out)
    pairs = (torch.autograd.grad((y * target).sum(), weights) for y in (out, wanted))
    for got, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", FORMULAS)
def test_shapes_and_roles(kind):
    model = build_model(tiny(activation=kind, mlp_bias=True))
    block, roles = model.blocks[1], model.roles()
    rows = 80 if kind in GATED else 40
    assert [tuple(p.shape) for p in (block.w1, block.b1, block.w2, block.b2)] == [(rows, 32), (rows,), (32, 40), (32,)]
    w1, w2, b1 = (roles[f"blocks.1.{name}"] for name in ("w1", "w2", "b1"))
    assert w1.splits == ((40, 40) if kind in GATED else ())
    assert w1.muon
    assert w1.std == pytest.approx(32**-0.5)
    assert w2.std == pytest.approx(40**-0.5 / 2)  # two layers, four blocks
    assert (b1.std, b1.decay, b1.muon) == (0.0, "none", False)
    assert not block.b1.any()


@pytest.mark.parametrize("scheme", ["lecun", "xavier", "normal"])
def test_a_gate_starts_as_a_matrix_of_its_own_would(scheme):
    plain, gated = (
        build_model(tiny(activation=kind, init={"scheme": scheme, "std": 0.02})).roles()["blocks.1.w1"]
        for kind in ("gelu", "swiglu")
    )
    assert dataclasses.replace(gated, splits=()) == plain


@pytest.mark.parametrize("stream", [{"kind": "matrix_keys", "key_dim": 6}, {"kind": "depth_lstm"}])
@pytest.mark.parametrize(
    ("changes", "name"),
    [({"mlp_bias": True}, "mlp_bias"), ({"moe": {"num_experts": 4, "top_k": 2}}, "moe.num_experts")],
)
def test_streams_that_take_the_matrices_away_refuse_what_acts_on_them(stream, changes, name):
    with pytest.raises(UserError, match=f"{stream['kind']} stream .* model.{name} has nothing to act on"):
        Decoder(tiny(stream, **changes))


def test_keys_alone_with_a_gate():
    model = build_model(tiny({"kind": "matrix_keys", "key_dim": 6, "mlp_rank": 3}, activation="swiglu"))
    X = torch.randn(2, 5, 8, 6, generator=torch.Generator().manual_seed(1))
    stream = model.stream
    gates, values = (stream.norms[1](X) @ stream.read_1.T).chunk(2, dim=-1)  # [B, T, V, M] each
    written = model.blocks[1](stream.read(1, X), None)
    torch.testing.assert_close(stream.data(written), F.silu(gates) * values)
