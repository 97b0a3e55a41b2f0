"""Doubly stochastic matrices: what they must be, against what the papers define, and mHC with each of them."""

import math

import pytest
import torch

from models import tiny
from widestream.errors import UserError
from widestream.streams.lanes.birkhoff import circulant, newton, transport
from widestream.streams.lanes.mhc import MHCStream, sinkhorn
from widestream.testing import CHECKS

WAYS = {"newton": newton, "transport": transport, "circulant": lambda logits: circulant(logits, 0.3)}
CONTRACT = ["parameter_count", "gradients", "cached_documents", "cost", "plain_start", "saved", "reversible"]


def logits_of(way, n, scale, count=500):
    shape = {"newton": (n, n), "transport": (n - 1, n - 1), "circulant": (n,)}[way]
    return scale * torch.randn(count, *shape, generator=torch.Generator().manual_seed(n)).double()


@pytest.mark.parametrize("check", CONTRACT)
@pytest.mark.parametrize("way", WAYS)
def test_contract(way, check):
    CHECKS[check]({"kind": "mhc", "projection": way}, {})


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("n", [2, 3, 4, 8])
@pytest.mark.parametrize("way", WAYS)
def test_rows_and_columns_sum_to_one_and_nothing_is_negative(way, n, scale):
    P = WAYS[way](logits_of(way, n, scale))
    assert P.shape == (500, n, n)
    torch.testing.assert_close(P.sum(-1), torch.ones(500, n).double(), rtol=0, atol=1e-12)
    slow = way == "newton" and scale == 4  # where logits lie far apart its last rounds but halve what is missing
    torch.testing.assert_close(P.sum(-2), torch.ones(500, n).double(), rtol=0, atol=3e-8 if slow else 1e-12)
    assert P.min() > -1e-15


def test_where_twenty_rounds_do_not_suffice_twenty_steps_do():
    A = logits_of("newton", 4, 8, count=5000)
    rounds, steps = ((P.sum(-2) - 1).abs().amax(-1) for P in (sinkhorn(A), newton(A)))
    assert rounds.max() > 0.1
    assert steps.max() < 1e-5
    assert steps.quantile(0.99) < 1e-12


def test_newton_finds_what_sinkhorns_rounds_go_to():
    A = logits_of("newton", 4, 1)
    P = A.exp()
    for _ in range(2000):
        P = P / P.sum(-2, keepdim=True)
        P = P / P.sum(-1, keepdim=True)
    torch.testing.assert_close(newton(A), P, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_small_differences(way):
    assert torch.autograd.gradcheck(WAYS[way], logits_of(way, 4, 1.5, count=3).requires_grad_())


def test_gradients_of_a_permutation_are_finite_and_nothing():
    A = (60.0 * torch.eye(4)).requires_grad_()
    P = newton(A)
    torch.testing.assert_close(P, torch.eye(4))
    (P * torch.randn(4, 4)).sum().backward()
    assert A.grad.abs().max() < 1e-6


def by_the_paper(t):
    """Entry after entry, as the published function: r and c are what rows and columns have left."""
    n = len(t) + 1
    X, r, c = torch.zeros(n, n).double(), torch.ones(n).double(), torch.ones(n).double()
    for i in range(n - 1):
        for j in range(n - 1):
            least = max(0.0, (r[i] - c[j + 1 :].sum()).item(), (c[j] - r[i + 1 :].sum()).item())
            X[i, j] = least + (min(r[i], c[j]) - least) / (1 + math.exp(-t[i, j]))
            r[i], c[j] = r[i] - X[i, j], c[j] - X[i, j]
        X[i, -1], c[-1] = r[i], c[-1] - r[i]
        r[i] = 0
    X[-1] = c
    return X


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_transport_is_the_published_construction(n):
    for t in logits_of("transport", n, 3, count=20):
        torch.testing.assert_close(transport(t), by_the_paper(t), rtol=1e-12, atol=1e-12)


def test_transport_reaches_any_matrix():
    """Found for the matrix of a few random permutations' mean by least squares."""
    gen = torch.Generator().manual_seed(0)
    wanted = sum(torch.eye(4)[torch.randperm(4, generator=gen)] for _ in range(9)).double() / 9
    wanted = 0.9 * wanted + 0.1 / 4
    t = torch.zeros(3, 3).double().requires_grad_()
    optimizer = torch.optim.LBFGS([t], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        error = (transport(t) - wanted).square().sum()
        error.backward()
        return error

    optimizer.step(loss)
    torch.testing.assert_close(transport(t), wanted, rtol=0, atol=1e-5)


def test_circulant_is_a_sum_of_cyclic_shifts():
    z = logits_of("circulant", 4, 2, count=1)[0]
    c = 0.3 * z.softmax(0) + torch.tensor([0.7, 0, 0, 0], dtype=torch.float64)
    shift = torch.eye(4).double().roll(1, dims=1)
    wanted = sum(c[k] * torch.linalg.matrix_power(shift, k) for k in range(4))
    torch.testing.assert_close(circulant(z, 0.3), wanted, rtol=1e-12, atol=1e-12)


def test_circulant_mixing_keeps_lanes_apart_at_any_depth():
    """sigma_min of the product is at least e^(-beta - beta^2 / L), L blocks, gamma = beta / (2 L) (theorem 3)."""
    blocks, beta = 96, 4.0
    product = torch.eye(4).double()
    for z in logits_of("circulant", 4, 3, count=blocks):
        product = circulant(z, beta / (2 * blocks)) @ product
    assert torch.linalg.svdvals(product).min() >= math.exp(-beta - beta**2 / blocks)


@pytest.mark.parametrize(("projection", "mixing"), [("newton", 16), ("transport", 9), ("circulant", 4)])
def test_counts_at_the_size_of_gpt2_small(projection, mixing):
    config = tiny({"kind": "mhc", "projection": projection}, num_layers=12, num_heads=12, head_dim=64)
    outputs = mixing + 8
    assert MHCStream.parameter_formula(config) == 24 * (4 * 768 * outputs + outputs + 3) + 25 * 768


def test_nothing_to_make_is_refused():
    with pytest.raises(UserError, match="projection: newton has no H_res to make with residual: identity"):
        tiny({"kind": "mhc", "residual": "identity", "projection": "newton"})
