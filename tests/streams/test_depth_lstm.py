"""The depth-wise LSTM against its equations, token by token, and what its forget gate is for."""

import math
from typing import Any

import pytest
import torch

from models import tiny
from widestream.model.build import build_model
from widestream.model.costs import summarize
from widestream.recipe import load_recipe
from widestream.testing import CHECKS

D, NEURONS = 32, 40


def random_stream(**fields) -> Any:
    """A stream in float64 all of whose parameters are random."""
    changes = fields.pop("changes", {})
    stream = build_model(tiny({"kind": "depth_lstm", **fields}, **changes)).stream.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stream.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    return stream


def random_writes(sites=3):
    return torch.randn(sites, 2, 3, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def norm(vector, gain, kind):
    mean = sum(vector) / len(vector) if kind == "layernorm" else 0.0
    scale = math.sqrt(sum((value - mean) ** 2 for value in vector) / len(vector) + 1e-6)
    return [(value - mean) / scale * g for value, g in zip(vector, gain.tolist(), strict=True)]


def reference(stream, site, h, c, a, forget_bias, kind):
    """Equations 1 to 4 for one token, one number at a time; h, c, a are lists."""
    z = torch.tensor(a + h, dtype=torch.float64)

    def product(name, vector):
        return [float(row @ vector) for row in getattr(stream, f"{name}_{site}")]

    gates = {}
    for gate, bias in (("i", 0.0), ("f", forget_bias), ("o", 0.0)):
        logits = norm(product(f"gate_{gate}", z), stream.gate_norms[site - 1][gate].gain, kind)
        gates[gate] = [sigmoid(value + bias) for value in logits]
    hidden = norm(product("w1", z), stream.candidate_norms[site - 1].gain, kind)
    g = product("w2", torch.tensor([gelu(value) for value in hidden], dtype=torch.float64))
    c = [gates["f"][d] * c[d] + gates["i"][d] * g[d] for d in range(D)]
    return [gates["o"][d] * c[d] for d in range(D)], c


@pytest.mark.parametrize(("forget_bias", "learned", "kind"), [(1.0, False, "layernorm"), (0.0, True, "rmsnorm")])
@torch.no_grad()
def test_equations(forget_bias, learned, kind):
    stream = random_stream(forget_bias=forget_bias, learned_cell=learned, changes={"norm": kind})
    writes = random_writes()
    state = stream.write_embedding(None, writes[0], None)
    expected = {
        (b, t): (writes[0, b, t].tolist(), (stream.cell_0 if learned else writes[0, b, t]).tolist())
        for b in range(2) for t in range(3)
    }  # fmt: skip
    for site in (1, 2):
        state = stream.write(site, state, writes[site])
        for (b, t), (h, c) in expected.items():
            expected[b, t] = reference(stream, site, h, c, writes[site, b, t].tolist(), forget_bias, kind)
            for ours, wanted in zip(state, expected[b, t], strict=True):
                wanted = torch.tensor(wanted, dtype=torch.float64)
                torch.testing.assert_close(ours[b, t], wanted, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_what_the_blocks_read():
    """h through a norm, or as it is; the head's norm stays."""
    model = build_model(tiny({"kind": "depth_lstm"}))
    bare = build_model(tiny({"kind": "depth_lstm", "attention_norm": False}))
    x = random_writes()[0].float()
    for stream, normed in ((model.stream, (True, True, True)), (bare.stream, (False, False, True))):
        state = stream.write_embedding(None, x, None)
        for site, expected in enumerate(normed):
            wanted = torch.nn.functional.layer_norm(x, (D,), eps=1e-6) if expected else x
            torch.testing.assert_close(stream.read(site, state)["x"], wanted)


def test_blocks_are_attention_alone():
    model = build_model(tiny({"kind": "depth_lstm"}))
    assert [type(block).__name__ for block in model.blocks] == ["DenseAttention"] * 2
    parts = summarize(model.config).to_dict()
    assert "mlp" not in parts["parameters"]["by_part"]
    assert parts["flops_per_token"]["by_part"]["mlp matrices"] == 0
    assert parts["parameters"]["by_part"]["stream"] == 2 * (6 * D * D + 3 * D * NEURONS)
    assert parts["flops_per_token"]["by_part"]["stream"] == 2 * parts["parameters"]["by_part"]["stream"]


@torch.no_grad()
def test_open_gates_keep_the_cell_and_closed_ones_drop_it():
    """forget_bias is inside the gate: +-40 make f 1 or 0, so that c is the embedding plus i * g, or i * g alone."""
    writes = random_writes()
    cells = []
    for bias in (40.0, -40.0):
        stream = random_stream(forget_bias=bias)
        state = stream.write(1, stream.write_embedding(None, writes[0], None), writes[1])
        cells.append(state.c)
    torch.testing.assert_close(cells[0] - cells[1], writes[0], rtol=1e-9, atol=1e-9)


def test_a_learned_cell_starts_at_zero_and_is_one_vector():
    model = build_model(tiny({"kind": "depth_lstm", "learned_cell": True}))
    state = model.stream.write_embedding(None, torch.ones(2, 3, D), None)
    assert state.c.shape == (2, 3, D)
    assert not state.c.any()
    assert model.roles()["stream.cell_0"].decay == "none"


@pytest.mark.parametrize("check", sorted(set(CHECKS) - {"depth", "compiling"}))
def test_contract_of_the_published_cell(check):
    """Without forget bias all holds, save that gradients grow with depth."""
    CHECKS[check]({"kind": "depth_lstm", "forget_bias": 0.0}, {})


def test_parameters_of_the_paper():
    counts = summarize(load_recipe("paper/lstm-233m").model).to_dict()["parameters"]
    assert counts["total_without_norm"] == 233_301_504
    assert counts["by_part"]["stream"] == 12 * 18 * 768**2
    assert load_recipe("paper/lstm-233m").train.tokens == 1_640_000_000
