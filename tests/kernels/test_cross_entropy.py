"""The chunked head and cross-entropy against torch's, in value and gradient, however it is cut."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from widestream.kernels import cross_entropy
from widestream.kernels.cross_entropy import linear_cross_entropy


def problem(tokens=37, width=16, vocab=101):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator, requires_grad=True)
    head = torch.randn(vocab, width, generator=generator, requires_grad=True)
    return (
        hidden,
        head,
        torch.randint(vocab, (tokens,), generator=generator),
        torch.rand(tokens, generator=generator).round(),
    )


def reference(hidden, head, targets, weights, z_loss):
    logits = hidden @ head.T
    weights = weights / weights.sum()
    ce = (weights * F.cross_entropy(logits, targets, reduction="none")).sum()
    z = (weights * logits.logsumexp(-1).square()).sum()
    return ce + z_loss * z, ce, z


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("product", "softmax"), [(2**26, 2**20), (101 * 5, 101 * 2), (1, 1)])
def test_equals_torch(monkeypatch, z_loss, weighted, product, softmax):
    monkeypatch.setattr(cross_entropy, "PRODUCT_ELEMENTS", product)
    monkeypatch.setattr(cross_entropy, "SOFTMAX_ELEMENTS", softmax)
    hidden, head, targets, weights = problem()
    expected = reference(hidden, head, targets, weights if weighted else torch.ones(37), z_loss)
    wanted = torch.autograd.grad(3 * expected[0], (hidden, head))
    found = linear_cross_entropy(hidden, head, targets, weights if weighted else None, z_loss)
    grads = torch.autograd.grad(3 * found[0], (hidden, head))
    for ours, theirs in zip((*found, *grads), (*expected, *wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)
    assert not found[1].requires_grad


def test_tokens_of_weight_zero_leave_no_gradient():
    hidden, head, targets, weights = problem()
    linear_cross_entropy(hidden, head, targets, weights, 1e-2)[0].backward()
    assert hidden.grad[weights == 0].abs().max() == 0
    assert hidden.grad[weights == 1].abs().min() > 0


def test_without_gradients_none_are_computed():
    hidden, head, targets, _ = problem()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        total, ce, _ = linear_cross_entropy(hidden, head, targets)
    assert counter.get_total_flops() == 2 * hidden.numel() * head.shape[0]  # the logits, and no product more
    torch.testing.assert_close(total, F.cross_entropy(hidden @ head.T, targets).detach())
    assert not ce.requires_grad


def test_a_second_backward_pass_is_refused():
    """It would scale the prepared gradients again."""
    hidden, head, targets, _ = problem()
    total = 3 * linear_cross_entropy(hidden, head, targets)[0]
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_bf16_products_float32_sums():
    hidden, head, targets, _ = problem(tokens=200)
    exact = F.cross_entropy(hidden @ head.T, targets)
    with torch.autocast("cpu", torch.bfloat16):
        total, ce, _ = linear_cross_entropy(hidden, head, targets)
    assert ce.dtype == torch.float32
    torch.testing.assert_close(ce, exact.detach(), rtol=1e-2, atol=1e-2)
    wanted = torch.autograd.grad(exact, (hidden, head))
    for ours, theirs in zip(torch.autograd.grad(total, (hidden, head)), wanted, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() / theirs.norm() < 1e-2


def test_full_logits_never_exist(monkeypatch):
    monkeypatch.setattr(cross_entropy, "PRODUCT_ELEMENTS", 101 * 4)
    largest = 0
    original = torch.log_softmax

    def spy(x, **kwargs):
        nonlocal largest
        largest = max(largest, x.numel())
        return original(x, **kwargs)

    monkeypatch.setattr(torch, "log_softmax", spy)
    hidden, head, targets, _ = problem()
    linear_cross_entropy(hidden, head, targets)[0].backward()
    assert 0 < largest <= 101 * 4


def test_extreme_logits_stay_finite():
    hidden, head, targets, _ = problem()
    total, ce, _ = linear_cross_entropy(hidden * 1e4, head, targets, z_loss=1e-4)
    total.backward()
    assert torch.isfinite(ce)
    assert torch.isfinite(hidden.grad).all()
