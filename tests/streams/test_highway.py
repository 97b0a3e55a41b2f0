"""Highway self-gates against their equations, token by token, and against the plain stream they contain."""

import math
from typing import Any

import pytest
import torch

from models import tiny
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model
from widestream.model.costs import summarize
from widestream.recipe import load_recipe

FORMS = ("sdu_tanh", "sdu_sigmoid", "highway", "gated_attention")


def random_stream(**fields) -> Any:
    """A stream in float64 all of whose parameters are random."""
    stream = build_model(tiny({"kind": "highway", **fields})).stream.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stream.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    return stream


def random_writes(sites=5, width=32):
    return torch.randn(sites, 2, 3, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def reference(stream, form, site, x, y):
    """Equations 1 to 3 for one token and one feature at a time."""
    W_g, W_v = getattr(stream, f"gate_{site}"), getattr(stream, f"value_{site}")
    b_g, b_v = getattr(stream, f"gate_bias_{site}"), getattr(stream, f"value_bias_{site}")
    out = []
    for d in range(len(x)):
        logit, v = W_g[d] @ x + b_g[d], W_v[d] @ x + b_v[d]
        T = math.tanh(logit) if form == "sdu_tanh" else 1 / (1 + math.exp(-logit))
        carried = (1 - T) * x[d] if form == "highway" else x[d]
        added = (1 - T) * y[d] if form == "gated_attention" else y[d]
        out.append(carried + T * v + added)
    return torch.stack(out)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_equations(form):
    stream, writes = random_stream(form=form, bias=True), random_writes()
    x = writes[0]
    for site in range(1, 5):
        expected = torch.stack([
            torch.stack([reference(stream, form, site, x[b, t], writes[site, b, t]) for t in range(3)])
            for b in range(2)
        ])  # fmt: skip
        x = stream.write(site, x, writes[site])
        torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)


def test_the_gate_reads_the_stream_as_it_is():
    """Not normalised: twice the stream is twice v, where a norm would hide the factor."""
    stream = random_stream(form="sdu_sigmoid")
    x, nothing = random_writes()[0], torch.zeros(2, 3, 32, dtype=torch.float64)
    with torch.no_grad():
        stream.gate_1.zero_()  # T = 1/2
        once, twice = stream.write(1, x, nothing) - x, stream.write(1, 2 * x, nothing) - 2 * x
    torch.testing.assert_close(twice, 2 * once)
    torch.testing.assert_close(once, x @ stream.value_1.T / 2)


@torch.no_grad()
def test_blocks_of_later_layers_are_added_plainly():
    stream, writes = random_stream(layers=1), random_writes()
    assert sorted(name for name in dict(stream.named_parameters()) if "norm" not in name) == [
        "gate_1", "gate_2", "value_1", "value_2",
    ]  # fmt: skip
    torch.testing.assert_close(stream.write(3, writes[0], writes[3]), writes[0] + writes[3])
    assert not torch.allclose(stream.write(2, writes[0], writes[2]), writes[0] + writes[2])


@pytest.mark.parametrize(("form", "value", "carried", "added"), [
    ("sdu_tanh", 0, 1, 1), ("highway", 0, 0.5, 1), ("gated_attention", 0, 1, 0.5),
])  # fmt: skip
@torch.no_grad()
def test_what_is_left_with_value_and_gate_at_zero(form, value, carried, added):
    """Why only the first form can start plain."""
    stream, writes = random_stream(form=form), random_writes()
    stream.value_1.fill_(value)
    stream.gate_1.zero_()
    torch.testing.assert_close(stream.write(1, writes[0], writes[1]), carried * writes[0] + added * writes[1])


def test_initial_values():
    scaled = 1 / math.sqrt(4)
    for zero, std in ((True, 0.0), (False, scaled / math.sqrt(32))):
        model = build_model(tiny({"kind": "highway", "zero_value": zero, "bias": True}))
        roles = model.roles()
        assert roles["stream.value_1"].std == pytest.approx(std)
        assert roles["stream.gate_1"].std == pytest.approx(1 / math.sqrt(32))
        assert roles["stream.gate_bias_1"].std == 0
        assert roles["stream.gate_1"].decay == "weight"
        assert roles["stream.gate_bias_1"].decay == "none"


def test_parameters_of_the_paper():
    """191M: all layers, both blocks, no biases; with biases it would be 191M too."""
    config = load_recipe("paper/highway-191m").model
    counts = summarize(config).to_dict()["parameters"]
    assert counts["total_without_norm"] == 190_834_176
    assert counts["by_part"]["stream"] == 48 * 768**2
    with_biases = meta_model(load_recipe("paper/highway-191m", ["model.stream.bias=true"]).model)
    assert sum(p.numel() for p in with_biases.parameters()) == counts["total"] + 48 * 768
    assert load_recipe("paper/highway-191m").train.tokens == 1_640_000_000


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="layers is 0"):
        tiny({"kind": "highway", "layers": 0})
    with pytest.raises(UserError, match="layers is 3, but the model has 2"):
        build_model(tiny({"kind": "highway", "layers": 3}))
