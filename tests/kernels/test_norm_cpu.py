"""RMSNorm and rotation for CPUs, compiled and not: against torch's operations in float64, and what is kept."""

import pytest
import torch
import torch.nn.functional as F

from widestream.kernels import norm_cpu
from widestream.kernels.norm_cpu import norm_rotate, rms_norm, turn

BF16 = torch.bfloat16
EPS = 1e-6
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, BF16: 2**-7}
# Shape, how many axes are normalised jointly, shape of the gain.
NORMS = [
    ((2, 70, 48), 1, (48,)),
    ((3, 5, 7), 1, None),
    ((300, 17), 1, (17,)),
    ((2, 9, 4, 16), 1, (4, 16)),  # a gain for every head
    ((2, 9, 4, 16), 1, (16,)),
    ((2, 9, 8, 6), 2, (8, 6)),
    ((2, 9, 8, 6), 2, (8, 1)),
    ((2, 9, 8, 6), 2, (6,)),
    ((40,), 1, (40,)),
]
LAYOUTS = {
    "contiguous": lambda x: x,
    "part of wider rows": lambda x: F.pad(x, (3, 5))[..., 3:-5],
    "last axes swapped": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    "expanded": lambda x: x[:1].expand(x.shape),
}


@pytest.fixture(name="compiled", params=[True, False], ids=["compiled", "torch"], autouse=True)
def _compiled(request, monkeypatch):
    if request.param:
        assert norm_cpu.KERNEL.missing is None
    else:
        monkeypatch.setattr(norm_cpu.KERNEL, "entry", "There is no compiler.")


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def there_and_back(function, grad, *inputs):
    """What a function returns, and the gradients of those of its inputs that are there."""
    inputs = [x if x is None else x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    return out.detach(), *torch.autograd.grad(out, [x for x in inputs if x is not None], grad.to(out.dtype))


def assert_close(found, exact, dtype):
    for got, expected in zip(found, exact, strict=True):
        error = (got.double() - expected).abs().max() / expected.abs().max()
        assert error < TOLERANCES[dtype]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("shape", "axes", "gain_shape"), NORMS, ids=str)
def test_norm_and_gradients(shape, axes, gain_shape, dtype, layout):
    x = LAYOUTS[layout](random(*shape, dtype=dtype))
    wide = torch.promote_types(dtype, torch.float32)
    gain = None if gain_shape is None else random(*gain_shape, seed=1, dtype=wide)
    grad = LAYOUTS[layout](random(*shape, seed=2))

    def exactly(x, gain):
        normed = F.rms_norm(x, x.shape[x.dim() - axes :], eps=EPS)
        return normed if gain is None else normed * gain

    found = there_and_back(lambda x, gain: rms_norm(x, axes, gain, EPS), grad, x, gain)
    assert [y.dtype for y in found] == [wide, dtype, *([] if gain is None else [wide])]
    assert_close(found, there_and_back(exactly, grad, x.double(), None if gain is None else gain.double()), dtype)


@pytest.mark.parametrize("out", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("turned", [2, 16, 40, 64])
@pytest.mark.parametrize("gain_shape", [None, (64,), (3, 64), "no norm"], ids=str)
@pytest.mark.parametrize("own_positions", [False, True])
def test_norm_and_rotation(dtype, out, turned, gain_shape, own_positions):
    x = random(2, 21, 5 * 64, dtype=dtype)[..., : 3 * 64].unflatten(-1, (3, 64))
    angles = random(*((2,) if own_positions else ()), 21, 1, turned // 2, seed=1)
    cos, sin = angles.cos(), angles.sin()
    normed = gain_shape != "no norm"
    gain = random(*gain_shape, seed=2, dtype=torch.float32) if normed and gain_shape else None
    grad = random(2, 3, 21, 64, seed=3).transpose(1, 2)  # as attention hands it back

    def exactly(x, gain):
        x = F.rms_norm(x, (64,), eps=EPS) if normed else x
        return turn(x if gain is None else x * gain, cos, sin)

    def found(x, gain):
        return norm_rotate(x, gain, EPS if normed else None, cos.float(), sin.float(), out)

    got = there_and_back(found, grad, x, gain)
    assert [y.dtype for y in got[:2]] == [out, dtype]
    exact = there_and_back(exactly, grad, x.double(), None if gain is None else gain.double())
    assert_close(got, exact, BF16 if BF16 in (dtype, out) else torch.float32)


def test_turning_keeps_lengths_and_what_does_not_turn():
    x, angles = random(1, 4, 2, 10, dtype=torch.float32), random(4, 1, 3, seed=1, dtype=torch.float32)
    turned = norm_rotate(x, None, None, angles.cos(), angles.sin(), torch.float32)
    assert torch.equal(turned[..., 6:], x[..., 6:])
    assert not torch.allclose(turned[..., :6], x[..., :6])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("eps", [EPS, None], ids=["norm", "rotation alone"])
@pytest.mark.parametrize("dtype", [torch.float32, BF16, torch.float64], ids=str)
def test_what_is_kept(dtype, eps):
    x, kept = random(2, 8, 3, 16, dtype=dtype).requires_grad_(), {}
    wide = torch.promote_types(dtype, torch.float32)
    angles = random(8, 1, 8, seed=1, dtype=wide)

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm_rotate(x, None, eps, angles, angles, wide)
    rows = 2 * 8 * 3 * wide.itemsize + x.nbytes if eps else 0
    assert sum(kept.values()) == rows + angles.nbytes


@pytest.mark.parametrize("compiled", [True], indirect=True)
def test_threads(compiled):
    x, gain, threads, found = random(3, 500, 64, dtype=torch.float32), torch.ones(64), torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(there_and_back(lambda x, gain: rms_norm(x, 1, gain, EPS), random(3, 500, 64, seed=1), x, gain))
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


@pytest.mark.parametrize("shape", [(0, 6), (3, 0, 6)])
def test_nothing(shape):
    x = torch.zeros(shape, requires_grad=True)
    out = rms_norm(x, 1, torch.ones(6), EPS)
    out.sum().backward()
    assert out.shape == shape
    assert x.grad is not None


def test_what_is_not_a_number_stays_in_its_row():
    x = torch.ones(3, 20)
    x[1, 17] = torch.nan
    assert rms_norm(x, 1, None, EPS).isnan().all(dim=-1).tolist() == [False, True, False]


def test_compiled_models_keep_torchs(monkeypatch):
    x, gain = random(4, 6, dtype=torch.float32), random(6, seed=1, dtype=torch.float32)
    expected = rms_norm(x, 1, gain, EPS)
    monkeypatch.setattr(norm_cpu, "_norm_rotate", None)  # not to be called
    compiled = torch.compile(lambda x: rms_norm(x, 1, gain, EPS), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


def test_gradients_of_gradients():
    def twice(function):
        x, gain = random(5, 8).requires_grad_(), random(8, seed=1).requires_grad_()
        first = torch.autograd.grad(function(x, gain).square().sum(), (x, gain), create_graph=True)
        return torch.autograd.grad(sum(one.square().sum() for one in first), (x, gain))

    ours = twice(lambda x, gain: rms_norm(x.float(), 1, gain.float(), EPS))
    for got, expected in zip(ours, twice(lambda x, gain: F.rms_norm(x, (8,), gain, EPS)), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gain_shape", [None, (16,), (3, 16)], ids=str)
def test_operators_pass_torchs_checks(gain_shape):
    x = random(2, 4, 3, 16, dtype=torch.float32)
    gain = None if gain_shape is None else random(*gain_shape, seed=1, dtype=torch.float32)
    angles = random(4, 1, 8, seed=2, dtype=torch.float32)
    operators = torch.ops.widestream
    torch.library.opcheck(operators.norm_rotate.default, (x.requires_grad_(), gain, angles, angles, 1, EPS, BF16))
    x, scales = x.detach(), torch.ones(2, 4, 3)
    arguments = (x.mT.contiguous().mT.to(BF16), x, scales, gain, angles, angles, 1, torch.float32)
    torch.library.opcheck(operators.norm_rotate_gradients.default, arguments)
