"""Hierarchical aggregation against its tree, token by token, and the forms whose totals round to the paper's."""

import math
from typing import Any

import pytest
import torch

from models import tiny
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model
from widestream.model.costs import summarize
from widestream.recipe import load_recipe
from widestream.testing import CHECKS

D = 32


def random_stream(num_layers=6, **fields) -> Any:
    """A stream in float64 all of whose parameters are random."""
    stream = build_model(tiny({"kind": "hier_agg", **fields}, num_layers=num_layers)).stream.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stream.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    return stream


def random_writes(sites):
    return torch.randn(sites, 2, 3, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def node(W_a, W_b, gain, inputs):
    """Equation 1, or 3 without gain, for one token: W_a is cut into one block per input."""
    hidden = [
        1 / (1 + math.exp(-sum(float(row[m * D : (m + 1) * D] @ x) for m, x in enumerate(inputs)))) for row in W_a
    ]
    added = W_b @ torch.tensor(hidden, dtype=torch.float64)
    if gain is None:
        return inputs[1] + added
    total = added + sum(inputs)
    centred = total - total.mean()
    return centred / torch.sqrt(centred.square().mean() + 1e-6) * gain


@pytest.mark.parametrize("fields", [{"hidden": 5}, {"share": True, "hidden": 7}, {"identity": True, "hidden": 5}])
@pytest.mark.parametrize("num_layers", [6, 7])
@torch.no_grad()
def test_equations(fields, num_layers):
    """One layer is two writes; a node replaces the stream behind layers 2, 4, 6, and a 7th stands alone."""
    stream, writes = random_stream(num_layers, **fields), random_writes(2 * num_layers + 1)
    state = stream.write_embedding(None, writes[0], None)
    states = [state.x]
    for site in range(1, 2 * num_layers + 1):
        state = stream.write(site, state, writes[site])
        states.append(state.x)
    for b in range(2):
        for t in range(3):
            x, first, nodes = writes[0, b, t], None, []
            for layer in range(num_layers):
                x = x + writes[2 * layer + 1, b, t]
                torch.testing.assert_close(states[2 * layer + 1][b, t], x, rtol=1e-10, atol=1e-10)
                x = x + writes[2 * layer + 2, b, t]
                if layer % 2 == 1:
                    index = 0 if stream.settings.share else layer // 2
                    gain = None if stream.settings.identity else stream.node_norms[index].gain
                    W_a, W_b = getattr(stream, f"in_{index}"), getattr(stream, f"out_{index}")
                    x = node(W_a, W_b, gain, [first, x, *nodes[-1:]])
                    nodes.append(x)
                first = x
                torch.testing.assert_close(states[2 * layer + 2][b, t], x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_layers", [4, 5])
@pytest.mark.parametrize("fields", [{}, {"share": True}, {"identity": True}])
@pytest.mark.parametrize("check", ["gradients", "causality", "decoding", "cost", "plain_start",
                                   "every_parameter_matters", "activation_checkpointing"])  # fmt: skip
def test_contract_with_two_nodes(check, fields, num_layers):
    CHECKS[check]({"kind": "hier_agg", "hidden": 16, **fields}, {"num_layers": num_layers})


def test_a_node_cuts_the_path_from_the_embedding():
    """Behind a node the stream has unit variance, whatever came in; with `identity` it has not."""
    sizes = {}
    for identity in (False, True):
        stream = build_model(tiny({"kind": "hier_agg", "identity": identity})).stream
        state = stream.write_embedding(None, 100 * random_writes(1)[0].float(), None)
        for site in range(1, 5):
            state = stream.write(site, state, torch.zeros(2, 3, D))
        sizes[identity] = state.x.square().mean().sqrt().item()
    assert sizes[False] == pytest.approx(1, rel=1e-3)
    assert sizes[True] == pytest.approx(100, rel=0.2)


@pytest.mark.parametrize(("overrides", "total"), [
    (["model.stream={kind: hier_agg}"], 164_783_616),  # h = 128 without being told
    (["model.stream.share=true", "model.stream.hidden=768"], 164_881_920),
    (["model.stream.share=true", "model.stream.hidden=null"], 164_881_920),  # the width
    (["model.stream.hidden=3072"], 216_786_432),  # the original ratio: not the paper's 165M
    (["model.stream.hidden=768"], 176_088_576),
])  # fmt: skip
def test_parameters_of_the_paper(overrides, total):
    model = meta_model(load_recipe("paper/hieragg-165m", overrides).model)
    roles = model.roles()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if roles[name].part != "norm"}
    assert sum(sizes.values()) == total
    assert sum(size for name, size in sizes.items() if roles[name].part == "stream") == total - 162_522_624


def test_summary_of_the_papers_recipe():
    recipe = load_recipe("paper/hieragg-165m")
    assert recipe.train.tokens == 1_640_000_000
    summary = summarize(recipe.model).to_dict()
    assert summary["parameters"]["total_without_norm"] == 164_783_616
    assert summary["parameters"]["by_part"]["stream"] == 23 * 768 * 128
    assert summary["flops_per_token"]["by_part"]["stream"] == 2 * 23 * 768 * 128


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="hidden is 0"):
        tiny({"kind": "hier_agg", "hidden": 0})
    with pytest.raises(UserError, match="num_layers must be at least 2"):
        build_model(tiny({"kind": "hier_agg"}, num_layers=1))
