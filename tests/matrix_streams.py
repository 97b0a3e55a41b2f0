"""Small models with RMT's relatives, and RMT to compare them with."""

import torch

from models import tiny
from widestream.model.build import build_model

R, DV, DK = 4, 8, 8
TOKENS = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(1))


def make(kind, seed=1, noise=0.3, changes=None, **fields):
    """A float64 model of two layers whose stream is away from its start by `noise`."""
    stream = {"kind": kind, "key_dim": DK, **fields}
    model = build_model(tiny(stream, upcast_attention=False, **(changes or {})), seed=seed).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.stream.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def stream_part(model, *prefixes):
    """The stream's parameters whose names begin so."""
    return {name: p for name, p in model.stream.named_parameters() if name.startswith(prefixes)}


def take_over(other, rmt, skip=()):
    """Give `other` all of RMT's weights that it has under the same name and shape, except `skip`."""
    old, taken = other.state_dict(), rmt.state_dict()
    other.load_state_dict(old | {n: v for n, v in taken.items() if n in old and n not in skip}, strict=True)


def same(other, rmt, gradients=()):
    """Logits, and the gradients of these parameters, are the same."""
    a, b = (m.logits(m(TOKENS)) for m in (other, rmt))
    assert b.std() > 1e-2
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    for model in (other, rmt):
        model.zero_grad()
        model.loss(TOKENS, TARGETS).total.backward()
    for name in gradients:
        wanted = rmt.get_parameter(name).grad
        assert wanted.norm() > 0
        torch.testing.assert_close(other.get_parameter(name).grad, wanted, rtol=1e-7, atol=1e-9)


SHARED = [f"stream.{end}_{site}" for end, sites in (("write", range(5)), ("read", range(5))) for site in sites]
"""RMT's keys."""


def random_state(seed=3):
    return torch.randn(2, 5, DV, DK, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def heads(seed=4):
    """What attention puts out [B, T, R, V]."""
    return torch.randn(2, 5, R, DV, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outer_sum(keys, vectors):
    """sum_h w^(h) (x) y^(h) as [Dk, Dv], from keys [Dk, R] and vectors [R, Dv]."""
    return sum(torch.outer(keys[:, h], vectors[h]) for h in range(keys.shape[1]))


def every_token(state):
    return [(b, t) for b in range(state.shape[0]) for t in range(state.shape[1])]
