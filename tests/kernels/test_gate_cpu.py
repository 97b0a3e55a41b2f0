"""The compiled gates for CPUs: against torch's operations in float64, and where torch's are used."""

import pytest
import torch
import torch.nn.functional as F

from widestream.kernels import gate_cpu
from widestream.kernels.gate_cpu import gate

BF16 = torch.bfloat16
ACTS = {"silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


@pytest.fixture(autouse=True)
def _compiled(monkeypatch):
    assert gate_cpu.KERNEL.missing is None
    monkeypatch.setattr(gate_cpu, "SMALLEST", 0)


@pytest.fixture(name="form", params=ACTS)
def _form(request):
    return request.param


def torchs(form, x):
    gates, values = x.chunk(2, dim=-1)
    return ACTS[form](gates) * values


def there_and_back(function, form, x, grad):
    x = x.detach().requires_grad_()
    out = function(form, x)
    return out.detach(), torch.autograd.grad(out, x, grad)[0]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(rows, neurons):
    """Gates over a wide range, ordinary values."""
    x = random(rows, 2 * neurons)
    gates = torch.cat([torch.linspace(-13, 13, rows * neurons - 4), torch.tensor([90.0, -90.0, 1e4, -1e4])])
    x[:, :neurons] = gates.view(rows, neurons)
    return x


@pytest.mark.parametrize("neurons", [1, 15, 16, 17, 40, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["float32", "bf16"])
def test_values_and_gradients(form, dtype, neurons):
    x, grad = inputs(7, neurons).to(dtype), random(7, neurons, seed=1).to(dtype)
    tolerance = {"rtol": 3e-6, "atol": 3e-6} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 1e-5}
    exact = there_and_back(torchs, form, x.double(), grad.double())
    for got, expected in zip(there_and_back(gate, form, x, grad), exact, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, **tolerance)


def test_threads(form):
    x, threads, found = random(3, 500, 200), torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(there_and_back(gate, form, x, torch.ones(3, 500, 100)))
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


@pytest.mark.parametrize("shape", [(0, 6), (3, 0)])
def test_nothing(form, shape):
    assert gate(form, torch.zeros(shape)).shape == (shape[0], shape[1] // 2)


def test_what_is_not_a_number_stays_so(form):
    x = torch.tensor([[1.0, torch.nan, 1.0, 2.0, 2.0, torch.nan]])
    assert gate(form, x).isnan().tolist() == [[False, True, True]]


def test_torchs_is_used_for_everything_else(form, monkeypatch):
    monkeypatch.setattr(gate_cpu, "_run", None)  # not to be called
    x = random(4, 6)
    assert torch.equal(gate(form, x.double()), torchs(form, x.double()))
    assert torch.equal(gate(form, x[:, ::2][:, :2]), torchs(form, x[:, ::2][:, :2]))
    compiled = torch.compile(lambda x: gate(form, x), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), torchs(form, x))
    monkeypatch.setattr(gate_cpu, "SMALLEST", x.numel() + 1)
    assert torch.equal(gate(form, x), torchs(form, x))
    monkeypatch.setattr(gate_cpu, "SMALLEST", 0)
    monkeypatch.setattr(gate_cpu.KERNEL, "entry", "There is no compiler.")
    assert torch.equal(gate(form, x), torchs(form, x))


def test_gradients_of_gradients(form):
    x = random(5, 8).requires_grad_()

    def twice(function):
        (first,) = torch.autograd.grad(function(form, x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    torch.testing.assert_close(twice(gate), twice(torchs), rtol=1e-4, atol=1e-5)


def test_operators_pass_torchs_checks(form):
    x = random(3, 14).requires_grad_()
    torch.library.opcheck(torch.ops.widestream.gate.default, (x, form))
    torch.library.opcheck(torch.ops.widestream.gate_gradient.default, (x.detach(), random(7, 3).mT, form))
