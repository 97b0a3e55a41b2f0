"""The exchange as one operation: against autograd in float64, at all shapes of use."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.kernels.exchange import ReferenceExchange, Site

CASES = list(itertools.product(("layernorm", "rmsnorm"), ("full", "row", None), (True, False), (False, True)))


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "gain_shape", "writes", "by_heads"), CASES)
def test_reference_is_autograd_of_write_norm_read(
    kind: str, gain_shape: str | None, writes: bool, by_heads: bool
) -> None:
    N, V, K, R, Q = 5, 6, 10, 3, 9
    before, grad_after, grad_out = draw(N, V, K, seed=0), draw(N, V, K, seed=1), draw(N, V, Q, seed=2)
    data = draw(N, R, V, seed=3).mT if by_heads else draw(N, V, R, seed=3)
    w, r = draw(K, R, seed=4).requires_grad_(), draw(Q, K, seed=5).requires_grad_()
    gain = {"full": draw(V, K, seed=6), "row": draw(K, seed=6), None: None}[gain_shape]
    leaves = [before.clone().requires_grad_(), data.clone().requires_grad_()]
    after = leaves[0] + leaves[1] @ w.mT if writes else leaves[0] * 1
    if gain is not None:
        gain.requires_grad_()
    normed = F.layer_norm(after, (V, K), eps=1e-6) if kind == "layernorm" else F.rms_norm(after, (V, K), eps=1e-6)
    read = (normed if gain is None else normed * gain) @ r.mT
    torch.autograd.backward([after, read], [grad_after, grad_out])

    exchange, state = ReferenceExchange(), before.clone()
    out = torch.empty(N, Q, V, dtype=torch.float64).mT if by_heads else torch.empty(N, V, Q, dtype=torch.float64)
    site = Site(w if writes else None, r, gain, kind, 1e-6)
    exchange.forward_(state, data if writes else None, site, out)
    torch.testing.assert_close(state, after)
    torch.testing.assert_close(out, read)
    grad_state, grad_data = grad_after.clone(), torch.empty_like(data) if writes else None
    found = exchange.backward_(state, grad_state, data if writes else None, site, grad_out, grad_data)
    torch.testing.assert_close(state, before)
    torch.testing.assert_close(grad_state, leaves[0].grad)
    torch.testing.assert_close(found.read_keys, r.grad)
    if gain is not None:
        torch.testing.assert_close(found.gain, gain.grad)
    if writes:
        torch.testing.assert_close(grad_data, leaves[1].grad)
        torch.testing.assert_close(found.write_keys, w.grad)
    else:
        assert found.write_keys is None
