"""What stands in the place of compiled kernels in a folder computes the same."""

import torch

from widestream.hub import plain
from widestream.kernels import attention_cpu, gate_cpu, gelu_cpu, grouped, norm_cpu


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_activations():
    x = random(40, 64)
    for form in ("tanh", "none"):
        close(plain.gelu(x, form), gelu_cpu.gelu(x, form))
    for form in ("silu", "gelu_tanh"):
        close(plain.gate(form, x), gate_cpu.gate(form, x))


def test_norms_and_rotation():
    x, gain, angles = random(2, 5, 3, 8), random(3, 8), random(5, 1, 4)
    for axes, own in ((1, random(8)), (2, gain), (1, None)):
        close(plain.rms_norm(x, axes, own, 1e-5), norm_cpu.rms_norm(x, axes, own, 1e-5))
    for eps, own in ((1e-5, random(8)), (None, None)):
        arguments = x, own, eps, angles.cos(), angles.sin(), torch.float32
        close(plain.norm_rotate(*arguments), norm_cpu.norm_rotate(*arguments))
    assert not plain.one_pass(x)


def test_attention():
    q, k, v = random(2, 3, 7, 8), random(2, 3, 7, 8) + 1, random(2, 3, 7, 8) - 1
    for mask in (None, torch.ones(7, 7, dtype=torch.bool).tril(), random(7, 7)):
        close(plain.attention(q, k, v, mask, 0.3), attention_cpu.attention(q, k, v, mask, 0.3))
    assert not plain.suits(q, k, v)


def test_groups_of_rows():
    x, weights, ends = random(9, 8), random(3, 16, 8), torch.tensor([4, 4, 9], dtype=torch.int32)
    close(plain.grouped_linear(x, weights, ends), grouped.grouped_linear(x, weights, ends))
