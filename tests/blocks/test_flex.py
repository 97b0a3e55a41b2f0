"""FlexAttention against SDPA with the same rules as a mask, and where which is chosen. It was not run on a GPU."""

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex

from models import tiny
from widestream.blocks.attention import BareAttention
from widestream.blocks.context import make_context
from widestream.blocks.flex import FlexMask
from widestream.model.build import build_model
from widestream.model.depth import Compiled, Eager, plan_depth


def documents(rows, length, seed=0):
    """Documents of ten tokens or so, other ones in every row."""
    drawn = torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < 0.1
    return drawn.cumsum(1, dtype=torch.int32)


def attend(config, kind, segments=None, length=150, window=None, layer=0):
    torch.manual_seed(3)
    q, k, v = torch.randn(3, 2, length, config.num_heads, config.head_dim).unbind()
    context = make_context(config, torch.arange(length), segments, windows=(window,), attention=kind)
    assert isinstance(context.masks[window], FlexMask) == (kind == "flex")
    with torch.no_grad():
        return BareAttention(config, layer, window=window)({"q": q, "k": k, "v": v}, context)


@pytest.mark.parametrize("length", [256, 150, 7])
@pytest.mark.parametrize(
    ("positions", "window", "masked"),
    [("none", None, True), ("none", 20, True), ("none", 20, False), ("alibi", None, False), ("alibi", 20, True)],
)
def test_documents_windows_and_alibi_are_those_of_the_mask(length, positions, window, masked):
    config = tiny("matrix", positions=positions, context=256)
    segments = documents(2, length) if masked else None
    expected, got = (attend(config, kind, segments, length, window) for kind in ("sdpa", "flex"))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    other = attend(tiny("matrix", context=256), "sdpa", 0 * documents(2, length), length)
    assert length == 7 or (got - other).abs().max() > 1e-2  # the rules matter


def test_the_scale_is_the_layers():
    config = tiny("matrix", positions="none")
    expected, got = (attend(config, kind, documents(2, 40), 40, layer=2) for kind in ("sdpa", "flex"))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert (got - attend(config, "flex", documents(2, 40), 40)).abs().max() > 1e-2


@pytest.mark.parametrize("upcast", [True, False])
def test_precision_under_autocast_is_that_of_sdpa(upcast):
    config = tiny("matrix", positions="none", upcast_attention=upcast)
    segments = documents(2, 40)
    exact = attend(config, "sdpa", segments, 40)
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = (attend(config, kind, segments, 40) for kind in ("sdpa", "flex"))
    assert got.dtype == expected.dtype == (torch.float32 if upcast else torch.bfloat16)
    torch.testing.assert_close(got.float(), exact, rtol=0, atol=1e-5 if upcast else 2e-2)


def test_sdpa_stays_where_flex_has_nothing_to_give():
    config, positions = tiny("matrix"), torch.arange(6)
    assert make_context(config, positions, attention="flex").masks == {None: None}  # causal alone
    without = tiny("matrix", document_mask=False)
    assert make_context(without, positions, documents(2, 6), attention="flex").masks == {None: None}
    pairs = torch.ones(2, 6, 6, dtype=torch.bool)
    context = make_context(config, positions, documents(2, 6), mask=pairs, attention="flex")
    assert isinstance(context.masks[None], torch.Tensor)
    model = build_model(tiny("matrix", positions="alibi"), attention="flex").eval()
    cache, tokens = model.new_cache(1, 6), torch.arange(6)[None]
    with torch.no_grad():
        expected = model(tokens)
        got = torch.cat([model(tokens[:, :4], cache=cache), model(tokens[:, 4:], cache=cache)], dim=1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stream", "way"),
    [("matrix", "eager"), ("vector", "checkpointed"), pytest.param("matrix", "compiled", marks=pytest.mark.slow)],
)
def test_gradients_are_those_of_the_mask(stream, way, monkeypatch):
    # Torch refuses the backward pass on a CPU, where it has no kernel; as torch operations, in which it is done without
    # a kernel, it would work. So the way there and back can be checked here, and the kernel cannot.
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    tokens, segments, grads = torch.randint(50, (2, 30)), documents(2, 30), {}
    for kind in ("sdpa", "flex"):
        config = tiny(stream, positions="alibi", context=30, short_swa=5, num_layers=1)
        depth = plan_depth(
            config, torch.device("cpu"), "states", kernels="reference",
            recompute=way == "checkpointed", compiled=way == "compiled", backend="aot_eager",
        )  # fmt: skip
        model = build_model(config, depth=depth, attention=kind)
        model.loss(tokens, tokens, segments).total.backward()
        grads[kind] = dict(model.named_parameters())
    for name, parameter in grads["sdpa"].items():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(grads["flex"][name].grad, parameter.grad, rtol=0, atol=1e-5 * scale, msg=name)


def test_compiled_blocks_keep_their_form_when_documents_change():
    tokens, forms = torch.randint(50, (2, 30)), []

    def backend(graph, _):
        forms.append(graph)
        return graph.forward

    torch._dynamo.reset()
    depth = Compiled(Eager(), backend=backend)
    model = build_model(tiny("matrix", context=30), depth=depth, attention="flex").eval()
    with torch.no_grad():
        outputs = [model(tokens, documents(2, 30, seed)) for seed in range(3)]
    assert len(forms) == 1
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
