"""The compiled backward pass of attention for CPUs: against SDPA in float64, over sizes, types, layouts and masks."""

import pytest
import torch
import torch.nn.functional as F

from models import tiny
from widestream.blocks.context import make_context
from widestream.kernels import attention_cpu
from widestream.model.build import build_model
from widestream.model.depth import plan_depth

BF16 = torch.bfloat16
# B, H, T, K: one block of keys and several, whole vectors and rests of every size.
SIZES = [(2, 3, 64, 16), (1, 2, 130, 64), (2, 1, 77, 24), (1, 1, 200, 5), (3, 2, 2, 1), (1, 5, 63, 130)]

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.fixture(name="compiled")
def compiled_library():
    assert attention_cpu.available() is None


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def lay(x, layout):
    """[B, H, T, K] with rows of heads side by side, as attention gets it, head after head, or as part of wider rows."""
    if layout == "tokens":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "parts":
        return torch.cat([x.transpose(1, 2)] * 3, dim=-1).chunk(3, dim=-1)[1].transpose(1, 2)
    return x.contiguous()


def make_mask(kind, B, H, T):
    """Pairs of a document, or a bias with pairs left out; some blocks of it allow nothing."""
    if kind is None:
        return None
    documents = (draw(B, T, seed=7) > 1.5).cumsum(1)
    allowed = ((documents[:, :, None] == documents[:, None, :]) & torch.ones(T, T, dtype=torch.bool).tril())[:, None]
    if kind == "documents":
        return allowed
    return draw(1, H, T, T, seed=8).float().masked_fill(~allowed, float("-inf"))


def gradients(attend, q, k, v, grad):
    leaves = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in (q, k, v)]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def both_ways(sizes, dtype, layout, kind, scale=0.3):
    """Output and gradients: ours, SDPA's in the same precision, SDPA's in float64."""
    q, k, v, grad = (lay(draw(*sizes, seed=seed).to(dtype), layout) for seed in range(4))
    mask = make_mask(kind, *sizes[:3])

    def sdpa(q, k, v):
        fitting = mask.to(q.dtype) if kind == "bias" else mask
        return F.scaled_dot_product_attention(q, k, v, attn_mask=fitting, is_causal=mask is None, scale=scale)

    ours = gradients(lambda q, k, v: attention_cpu.attention(q, k, v, mask, scale), q, k, v, grad)
    exact = gradients(sdpa, *(x.double() for x in (q, k, v, grad)))
    return ours, gradients(sdpa, q, k, v, grad), exact


def distance(x, exact):
    return ((x.double() - exact).norm() / exact.norm().clamp_min(1e-12)).item()


@pytest.mark.parametrize("kind", [None, "documents", "bias"])
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_in_float32(sizes, kind):
    ours, theirs, exact = both_ways(sizes, torch.float32, "tokens", kind)
    assert torch.equal(ours[0], theirs[0])  # the same forward pass
    for x, y in zip(ours, exact, strict=True):
        assert distance(x, y) < 2e-6


@pytest.mark.parametrize("kind", [None, "documents", "bias"])
@pytest.mark.parametrize("sizes", SIZES[:3])
def test_gradients_in_bfloat16_are_no_worse_than_torchs(sizes, kind):
    for ours, theirs, exact in zip(*both_ways(sizes, BF16, "tokens", kind), strict=True):
        assert ours.dtype == BF16
        assert distance(ours, exact) < 1.05 * distance(theirs, exact) + 1e-4


@pytest.mark.parametrize("layout", ["heads", "parts"])
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["float32", "bf16"])
def test_layouts_change_nothing(dtype, layout):
    plain, _, _ = both_ways((2, 3, 70, 24), dtype, "tokens", "documents")
    other, _, _ = both_ways((2, 3, 70, 24), dtype, layout, "documents")
    assert all(torch.equal(x, y) for x, y in zip(plain, other, strict=True))


def test_large_logits():
    ours, _, exact = both_ways((1, 2, 90, 32), torch.float32, "tokens", None, scale=20.0)
    for x, y in zip(ours, exact, strict=True):
        assert distance(x, y) < 1e-4  # a logit of 500 is known to 3e-5


def test_results_do_not_depend_on_the_number_of_threads():
    threads, found = torch.get_num_threads(), {}
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found[number] = both_ways((3, 5, 130, 32), torch.float32, "tokens", None)[0]
    finally:
        torch.set_num_threads(threads)
    for number in (2, 3):
        assert all(torch.equal(x, y) for x, y in zip(found[1], found[number], strict=True))


def test_what_is_not_a_number_stays_visible():
    q, k, v = (lay(draw(1, 2, 70, 16, seed=seed).float(), "tokens") for seed in range(3))
    q[0, 1, 3, 5] = torch.nan
    _, *grads = gradients(lambda q, k, v: attention_cpu.attention(q, k, v, None, 0.2), q, k, v, torch.ones_like(q))
    for grad in grads:
        assert grad[0, 0].isfinite().all()
        assert grad[0, 1].isnan().any()


def test_operators_pass_torchs_checks():
    q, k, v = (lay(draw(1, 2, 9, 4, seed=seed).float(), "tokens").requires_grad_() for seed in range(3))
    bias = make_mask("bias", 1, 2, 9)
    for given in (None, bias):
        torch.library.opcheck(torch.ops.widestream.attention.default, (q, k, v, given, 0.5))


def depth_of(config, way):
    """The plain loop, recomputed or compiled."""
    kernels = {"memory": "states", "kernels": "reference"}
    return plan_depth(
        config,
        torch.device("cpu"),
        **kernels,
        recompute=way == "checkpointed",
        compiled=way == "compiled",
        backend="aot_eager",
    )


def model_gradients(attention, mask, autocast, way="eager", **changes):
    torch.manual_seed(0)
    torch._dynamo.reset()
    config = tiny("matrix", context=40, **changes)
    model = build_model(config, depth=depth_of(config, way), attention=attention)
    tokens = torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(1))
    segments = (tokens < 5).cumsum(1, dtype=torch.int32) if mask else None
    with torch.autocast("cpu", BF16, enabled=autocast):
        loss = model.loss(tokens, tokens, segments).total
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("way", ["eager", "checkpointed", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("mask", "changes"),
    [(False, {}), (True, {}), (True, {"positions": "alibi"}), (False, {"short_swa": 5, "positions": "rotary"})],
    ids=["causal", "documents", "alibi", "windows"],
)
def test_a_model_trains_as_with_sdpa(mask, changes, way):
    (loss, expected), (own, got) = (model_gradients(kind, mask, False, way, **changes) for kind in ("sdpa", "fused"))
    assert own == pytest.approx(loss, rel=1e-6)
    for name, grad in expected.items():
        scale = grad.abs().max().item()
        torch.testing.assert_close(got[name], grad, rtol=0, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("upcast", [True, False])
def test_precision_under_autocast_is_that_of_sdpa(upcast, monkeypatch):
    calls, attend = [], attention_cpu._attention
    monkeypatch.setattr(attention_cpu, "_attention", lambda *args: (calls.append(args[0].dtype), attend(*args))[1])
    (loss, expected), (own, got) = (
        model_gradients(kind, False, True, upcast_attention=upcast) for kind in ("sdpa", "fused")
    )
    assert set(calls) == {torch.float32 if upcast else BF16}
    assert own == loss
    for name, grad in expected.items():
        torch.testing.assert_close(got[name], grad, rtol=0, atol=2e-2 * grad.abs().max().item(), msg=name)


def test_sdpa_takes_what_does_not_suit(monkeypatch):
    monkeypatch.setattr(attention_cpu, "_attention", None)  # not to be called
    tokens, config = torch.arange(8)[None], tiny("matrix", upcast_attention=False)
    model = build_model(config, attention="fused").double()
    model.loss(tokens, tokens).total.backward()
    assert make_context(config, tokens[0], attention="fused").fused
    assert not make_context(config, tokens[0], cache=model.new_cache(1, 9), attention="fused").fused


def test_flops_are_counted():
    q = torch.zeros(2, 3, 8, 4, requires_grad=True)
    counts = []
    for attend in (
        lambda: attention_cpu.attention(q, q, q, None, 1.0),
        lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=1.0),
    ):
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            attend().sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 2 * 2 * 3 * 8 * 8 * 4
