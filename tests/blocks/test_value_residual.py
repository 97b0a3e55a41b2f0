"""Value residual: with any stream the contract still holds, and the forms agree where they should."""

import pytest
import torch
from torch import nn

from models import tiny
from widestream.blocks.attention import BareAttention
from widestream.blocks.context import make_context
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model
from widestream.model.depth import Compiled, Recomputed, sites_of_layers
from widestream.model.record import record_exchanges
from widestream.testing import CHECKS
from widestream.testing.models import random_model, tokens_of

STREAMS = {"vector": {"kind": "vector"}, "matrix": {"kind": "matrix", "key_dim": 6}}


def small(form, stream="vector", **changes):
    return build_model(tiny(stream, value_residual=form, num_layers=3, **changes), seed=1)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("stream", "form"), [("vector", "learned"), ("vector", "shared"), ("matrix", "learned"), ("vector", "gated")]
)
def test_contract(stream, form, check):
    CHECKS[check](STREAMS[stream], {"value_residual": form})


@pytest.mark.parametrize("check", ["shapes", "documents", "decoding", "cost", "activation_checkpointing"])
@pytest.mark.parametrize("stream", STREAMS)
def test_contract_of_fixed_weights(stream, check):
    CHECKS[check](STREAMS[stream], {"value_residual": "fixed"})


@pytest.mark.parametrize("stream", STREAMS)
def test_learned_starts_plain(stream):
    tokens, targets = tokens_of(2, 20), tokens_of(2, 20, seed=1)
    plain, learned = small("none", stream), small("learned", stream)
    for model in (plain, learned):
        model.loss(tokens, targets).total.backward()
    torch.testing.assert_close(learned(tokens), plain(tokens))
    own = dict(learned.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(own.pop(name).grad, parameter.grad)
    assert len(own) == 2
    assert all(weights.shape == (2,) and weights.grad.all() for weights in own.values())


def test_equation():
    """Block 2 attends to lambda_1 V_1 + lambda_2 V_2, and block 3 to V_1 again, not to what block 2 made of it."""
    config, plain = tiny("matrix", value_residual="learned"), tiny("matrix")
    context = make_context(config, torch.arange(7))
    q, k = torch.randn(2, 1, 7, 4, 8).unbind()
    values = torch.randn(3, 1, 7, 4, 8)
    for slot, weights in enumerate([(0.0, 1.0), (0.3, -0.8), (1.5, 0.2)]):
        block = BareAttention(config, 0, slot)
        if slot:
            block.values.weights.data = torch.tensor(weights)
        found = block({"q": q, "k": k, "v": values[slot]}, context)
        mixed = weights[0] * values[0] + weights[1] * values[slot]
        torch.testing.assert_close(found, BareAttention(plain, 0)({"q": q, "k": k, "v": mixed}, context))


class PublishedGate(nn.Module):
    """What the published module does by default: a linear map without a bias, relu, one number a head of values."""

    def __init__(self, weight):
        super().__init__()
        self.alpha = nn.Linear(*weight.T.shape, bias=False, dtype=weight.dtype)
        self.alpha.weight.data = weight.data

    def forward(self, v, v1, hidden):
        return v + torch.relu(self.alpha(hidden)).unsqueeze(-1) * v1


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_gated_values_are_those_of_the_published_module(kv_heads):
    """Block 3 adds V_1, not what block 2 made of it; its gate sees what attention receives."""
    model = small("gated", num_kv_heads=kv_heads).double()
    with record_exchanges(model) as exchanges:
        model(tokens_of(2, 20))
    received = [exchanges[2 * layer].inputs["x"] for layer in range(3)]
    values = [x @ model.blocks[2 * i].qkv[-8 * kv_heads :].T for i, x in enumerate(received)]
    first, *later = (v.unflatten(-1, (kv_heads, 8)) for v in values)
    context = make_context(model.config, torch.arange(20))
    context.shared["values"] = first
    for layer, v in enumerate(later, start=1):
        residual = model.blocks[2 * layer].core.values
        wanted = PublishedGate(residual.gate)(v, first, received[layer])
        torch.testing.assert_close(residual(v, context, received[layer]), wanted, rtol=1e-12, atol=1e-12)
        assert (wanted - v).abs().max() > 0.1


@pytest.mark.parametrize("check", ["gradients", "cached_documents", "cost", "reversible"])
@pytest.mark.parametrize("stream", [{"kind": "mudd"}, {"kind": "mhc"}], ids=str)
def test_contract_of_gates_where_values_have_a_way_of_their_own(stream, check):
    CHECKS[check](stream, {"value_residual": "gated", "num_kv_heads": 2})


def test_gates_learn_at_a_rate_that_falls_with_the_width():
    mup = {"init": {"scheme": "mup"}, "mup": {"base_width": 16}}
    role = meta_model(tiny("vector", value_residual="gated", **mup)).roles()["blocks.2.core.values.gate"]
    assert role.lr_factor == 16 / 32
    assert not role.muon


def test_a_gate_needs_a_vector():
    with pytest.raises(UserError, match=r"gated makes its gate from the vector .* a matrix stream hands it heads"):
        small("gated", "matrix")


@pytest.mark.parametrize(("form", "weights"), [("fixed", (0.5, 0.5)), ("shared", (1.0, 0.0))])
def test_forms_are_learned_weights_at_rest(form, weights):
    own, learned = small(form), small("learned")
    state = learned.state_dict()
    own.load_state_dict({name: state[name][: len(value)] for name, value in own.state_dict().items()})
    for name, parameter in learned.named_parameters():
        if name.endswith("values.weights"):
            parameter.data = torch.tensor(weights)
    torch.testing.assert_close(own(tokens_of(2, 20)), learned(tokens_of(2, 20)))
    assert (own(tokens_of(2, 20)) - small("none")(tokens_of(2, 20))).abs().max() > 1e-3


@pytest.mark.parametrize("stream", STREAMS)
def test_every_weight_matters(stream):
    model = random_model(STREAMS[stream], {"value_residual": "learned"})
    before = model(tokens_of(2, 20))
    for name in (name for name, _ in model.named_parameters() if name.endswith("values.weights")):
        for i in range(2):
            with torch.no_grad():
                model.get_parameter(name)[i] += 0.5
                assert (model(tokens_of(2, 20)) - before).abs().max() > 1e-4, f"{name}[{i}]"
                model.get_parameter(name)[i] -= 0.5


@pytest.mark.parametrize(
    ("form", "extra"), [("fixed", 0), ("learned", 2 * 11), ("shared", -11 * 768**2), ("gated", 11 * 12 * 768)]
)
def test_parameters_at_the_size_of_gpt2_small(form, extra):
    sizes = {"num_layers": 12, "num_heads": 12, "head_dim": 64, "mlp_dim": 3072}
    models = [meta_model(tiny(**sizes, value_residual=value)) for value in ("none", form)]
    plain, own = (sum(parameter.numel() for parameter in model.parameters()) for model in models)
    assert own - plain == extra


def test_shared_values_are_cached_once():
    storages = {form: {v.data_ptr() for v in small(form).new_cache(2, 20).values} for form in ("learned", "shared")}
    assert len(storages["learned"]) == 3
    assert len(storages["shared"]) == 1


def test_values_of_the_stream_cannot_be_taken_away():
    with pytest.raises(UserError, match="use fixed or learned"):
        small("shared", "matrix")(tokens_of(1, 4))


def test_compiled_with_activation_checkpointing():
    model = small("learned")
    recomputed = Recomputed(sites_of_layers(model.layout))
    tokens = tokens_of(2, 20)
    torch._dynamo.reset()
    with model.using(recomputed):
        model.loss(tokens, tokens).total.backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    with model.using(Compiled(recomputed, backend="aot_eager", fullgraph=True)):
        model.loss(tokens, tokens).total.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6)
