"""Products of groups of rows: against a loop in float64, in every way that computes them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from widestream.kernels import grouped
from widestream.kernels.grouped import grouped_linear

COUNTS = [3, 0, 5, 1, 0]
ENDS = torch.tensor(COUNTS).cumsum(0).to(torch.int32)


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def by_loop(x, weights):
    return torch.cat([rows @ matrix.T for rows, matrix in zip(x.split(COUNTS), weights, strict=True)])


def both_ways(x, weights, target):
    """Values and gradients by the operator, and by a loop in float64."""
    for function, dtype in ((lambda x, w: grouped_linear(x, w, ENDS), x.dtype), (by_loop, torch.float64)):
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (x, weights)]
        out = function(*inputs)
        yield out.detach(), *torch.autograd.grad(out, inputs, target.to(dtype))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_values_and_gradients(dtype, tolerance):
    x, weights, target = (random(*shape).to(dtype) for shape in ((9, 16), (5, 24, 16), (9, 24)))
    for got, wanted in zip(*both_ways(x, weights, target), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


def test_grouped_mm_and_the_loop_agree(monkeypatch):
    inputs = [random(*shape).to(torch.bfloat16) for shape in ((9, 16), (5, 24, 16), (9, 24))]
    assert grouped._suits(inputs[0], inputs[1].mT)
    (by_torch, _) = both_ways(*inputs)
    monkeypatch.setattr(grouped, "_suits", lambda a, b: False)
    (by_loops, _) = both_ways(*inputs)
    for a, b in zip(by_torch, by_loops, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("x", "weights"),
    [
        (random(9, 16, dtype=torch.float32), random(5, 24, 16, dtype=torch.float32)),
        (random(9, 12).bfloat16(), random(5, 24, 12).bfloat16()),
        (random(0, 16).bfloat16(), random(5, 24, 16).bfloat16()),
    ],
    ids=["float32", "rows of 24 bytes", "no rows"],
)
def test_what_grouped_mm_does_not_take(x, weights):
    assert not grouped._suits(x, weights)
    ends = ENDS if len(x) else torch.zeros_like(ENDS)
    assert grouped_linear(x, weights, ends).shape == (len(x), 24)


def test_gradients_of_gradients():
    x, weights = (random(*shape).requires_grad_() for shape in ((9, 3), (5, 2, 3)))
    call = lambda x, weights: grouped_linear(x, weights, ENDS)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, weights))
    assert torch.autograd.gradgradcheck(call, (x, weights))


def test_autocast():
    x, weights = random(9, 16, dtype=torch.float32), random(5, 24, 16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert grouped_linear(x, weights, ENDS).dtype == torch.bfloat16
        assert grouped_linear(x.double(), weights.double(), ENDS).dtype == torch.float64


def test_operators_pass_torchs_checks():
    x, weights = random(9, 16).requires_grad_(), random(5, 24, 16).requires_grad_()
    torch.library.opcheck(torch.ops.widestream.grouped_linear.default, (x, weights, ENDS))
    torch.library.opcheck(torch.ops.widestream.grouped_outer.default, (random(9, 24).requires_grad_(), x, ENDS))


def test_flops():
    x, weights = random(9, 16).requires_grad_(), random(5, 24, 16).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        grouped_linear(x, weights, ENDS).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 9 * 16 * 24
