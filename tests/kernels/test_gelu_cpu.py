"""The compiled GELU for CPUs: against torch's in float64, and where torch's is used."""

import pytest
import torch
import torch.nn.functional as F

from widestream.kernels import gelu_cpu
from widestream.kernels.gelu_cpu import gelu

VALUES = torch.cat([torch.linspace(-13, 13, 40_007), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 90.0, -90.0, 1e4, -1e4])])
BF16 = torch.bfloat16


@pytest.fixture(name="compiled", autouse=True)
def compiled_library(monkeypatch):
    assert gelu_cpu.KERNEL.missing is None
    monkeypatch.setattr(gelu_cpu, "SMALLEST", 0)


def there_and_back(function, x, grad):
    x = x.detach().requires_grad_()
    out = function(x)
    return out.detach(), torch.autograd.grad(out, x, grad)[0]


def torchs(x):
    return F.gelu(x, approximate="tanh")


def ours(x):
    return gelu(x, "tanh")


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["float32", "bf16"])
def test_values_and_gradients(dtype):
    x, grad = VALUES.to(dtype), torch.randn(len(VALUES), generator=torch.Generator().manual_seed(0)).to(dtype)
    tolerance = {"rtol": 2e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-5}
    exact = there_and_back(torchs, x.double(), grad.double())
    for got, expected in zip(there_and_back(ours, x, grad), exact, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, **tolerance)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 16384, 16385, 40000])
def test_sizes_and_threads(size):
    x, threads = VALUES[:size].clone(), torch.get_num_threads()
    try:
        found = []
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(there_and_back(ours, x, torch.ones(size)))
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)
    torch.testing.assert_close(found[0][0], torchs(x), rtol=1e-5, atol=1e-6)


def test_what_is_not_a_number_stays_so():
    x = torch.tensor([1.0, torch.nan, -2.0])
    out, grad = there_and_back(ours, x, torch.ones(3))
    assert out.isnan().tolist() == grad.isnan().tolist() == [False, True, False]
    assert there_and_back(ours, torch.ones(2), torch.tensor([torch.nan, 1.0]))[1].isnan().tolist() == [True, False]


def test_torchs_is_used_for_everything_else(monkeypatch):
    monkeypatch.setattr(gelu_cpu, "_run", None)  # not to be called
    x = torch.randn(4, 6)
    assert torch.equal(gelu(x, "none"), F.gelu(x))
    assert torch.equal(gelu(x.double(), "tanh"), torchs(x.double()))
    assert torch.equal(gelu(x.mT, "tanh"), torchs(x.mT))
    assert torch.equal(torch.compile(ours, backend="eager", fullgraph=True)(x), torchs(x))
    monkeypatch.setattr(gelu_cpu, "SMALLEST", x.numel() + 1)
    assert torch.equal(ours(x), torchs(x))
    monkeypatch.setattr(gelu_cpu, "SMALLEST", 0)
    monkeypatch.setattr(gelu_cpu.KERNEL, "entry", "There is no compiler.")
    assert torch.equal(ours(x), torchs(x))


def test_gradients_of_gradients():
    x = torch.randn(5, dtype=torch.float32, requires_grad=True)

    def twice(function):
        (first,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    torch.testing.assert_close(twice(ours), twice(torchs), rtol=1e-4, atol=1e-5)


def test_operators_pass_torchs_checks():
    x = torch.randn(3, 7, requires_grad=True)
    torch.library.opcheck(torch.ops.widestream.gelu.default, (x,))
    torch.library.opcheck(torch.ops.widestream.gelu_gradient.default, (x.detach(), torch.randn(7, 3).mT))


def test_gradients_that_are_one_number_repeated():
    x = torch.randn(3, 40, requires_grad=True)
    ours(x).sum().backward()  # the gradient has strides of zero
    torch.testing.assert_close(x.grad, there_and_back(torchs, x, torch.ones(3, 40))[1], rtol=1e-5, atol=1e-6)
