"""Exchanges as operators, with states saved, against exchanges as the streams have them: in every way of training."""

import pytest
import torch
from torch import Tensor

from models import tiny
from widestream.model.build import build_model
from widestream.model.depth import Compiled, Eager, Fused, Recomputed, sites_of_layers
from widestream.streams import OWN_KINDS, stream_class
from widestream.testing.models import copy_of

MATRIX = {"kind": "matrix", "key_dim": 6}
EXAMPLES = [
    {"kind": kind, **fields}
    for kind in OWN_KINDS
    for fields in stream_class(kind).examples
    if stream_class(kind).spec(tiny({"kind": kind, **fields})).undo == "kernel"
]


def tokens_of(*shape, seed=0):
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))


def pair(stream, dtype=torch.float64, depth=None, **changes):
    """The same model twice: its exchanges are written out, or operators. In float64 rounding hides nothing."""
    upcast = {} if dtype == torch.float32 else {"upcast_attention": False}
    plain = build_model(tiny(stream, **upcast, **changes)).to(dtype)
    return plain, copy_of(plain, depth or Fused("any"), dtype)


def layers_of(config):
    """Activation checkpointing for a model of this configuration."""
    return Recomputed(sites_of_layers(stream_class(config.stream.kind).blocks(config)))


def backward(model, bf16=False, **options):
    """Returns the loss."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model.loss(tokens_of(2, 20), tokens_of(2, 20, seed=1), **options).total
    loss.backward()
    return loss.item()


def error(plain, fused):
    """The largest relative error of a gradient."""
    pairs = zip(plain.parameters(), fused.parameters(), strict=True)
    return max(((a.grad - b.grad).norm() / a.grad.norm()).item() for a, b in pairs)


def test_the_nearest_relatives_of_rmt_have_the_form():
    assert {stream["kind"] for stream in EXAMPLES} == {
        "matrix",
        "matrix_dense",
        "matrix_keys",
        "matrix_lane",
        "matrix_maps",
    }


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-5), (True, 1e-2)], ids=["float32", "bf16"])
@pytest.mark.parametrize("stream", EXAMPLES, ids=str)
def test_loss_and_gradients(stream, bf16, tolerance):
    models = pair(stream, torch.float32, upcast_attention=False) if bf16 else pair(stream, torch.float32)
    losses = [backward(model, bf16) for model in models]
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    assert error(*models) < tolerance


@pytest.mark.parametrize("positions", ["learned", "alibi", "rotary", "none"])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_other_positions_and_norms(positions, norm):
    models = pair(MATRIX, positions=positions, norm=norm)
    for model in models:
        backward(model, segments=torch.tensor([[0] * 9 + [1] * 11] * 2), z_loss=1e-3)
    assert error(*models) < 1e-9


@pytest.mark.parametrize("changes", [{"short_swa": 3}, {"tied_head": True}, {"value_residual": "learned"}], ids=str)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_other_models_and_activation_checkpointing(changes, checkpointing):
    loop = layers_of(tiny(MATRIX, **changes)) if checkpointing else Eager()
    models = pair(MATRIX, depth=Fused("any", loop), **changes)
    for model in models:
        backward(model)
    assert error(*models) < 1e-9


def test_accumulation_and_a_second_backward_pass():
    """Two forward passes alive at once, and one gone back through twice: saved states stay as they are."""
    models = pair(MATRIX)
    for model in models:
        first = model(tokens_of(2, 20)).square().sum()
        second = model.loss(tokens_of(2, 20, seed=2), tokens_of(2, 20, seed=3)).total
        first.backward(retain_graph=True)
        second.backward()
        first.backward()
    assert error(*models) < 1e-9


def test_parameters_that_are_held_fixed():
    models = pair(MATRIX)
    for model in models:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("embedding" not in name and not name.endswith("_1"))
        backward(model)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_it_is_one_graph_of_operators(checkpointing):
    torch._dynamo.reset()
    calls = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]):
        modules = [module for module in graph.modules() if isinstance(module, torch.fx.GraphModule)]
        calls.append(sum(str(node.target).startswith("widestream.exchange") for m in modules for node in m.graph.nodes))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    loop = layers_of(tiny(MATRIX)) if checkpointing else Eager()
    plain, fused = pair(MATRIX, depth=Compiled(Fused("any", loop), backend=backend, fullgraph=True))
    for model in (plain, fused):
        backward(model)
    assert calls == [5]  # the embedding's exchange and those behind four blocks
    assert error(plain, fused) < 1e-9


@pytest.mark.slow
def test_compiled_to_machine_code():
    torch._dynamo.reset()
    plain, fused = pair(MATRIX, torch.float32, Compiled(Fused("any"), fullgraph=True))
    for model in (plain, fused):
        backward(model, bf16=True)
    assert error(plain, fused) < 1e-2


def test_sampling_and_evaluation():
    plain, fused = pair(MATRIX)
    tokens = tokens_of(2, 20)
    with torch.no_grad():
        expected = plain(tokens)
        torch.testing.assert_close(fused(tokens), expected)
        cache = fused.new_cache(2, 20)
        pieces = [fused(tokens[:, a:b], cache=cache) for a, b in ((0, 9), (9, 10), (10, 20))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_gradients_are_refused():
    _, model = pair(MATRIX)
    hidden = model(tokens_of(2, 20)).square().sum()
    (grad,) = torch.autograd.grad(hidden, model.embedding.token, create_graph=True)
    with pytest.raises(RuntimeError, match="exchange_gradients"):
        grad.square().sum().backward()
