"""RMT's relatives that write otherwise: against their equations by token, and RMT where they are RMT."""

import math

import pytest
import torch

from matrix_streams import (
    DK,
    DV,
    SHARED,
    R,
    every_token,
    heads,
    make,
    outer_sum,
    random_state,
    same,
    stream_part,
    take_over,
)
from models import tiny
from widestream.errors import UserError
from widestream.model.build import build_model

# Carry


def test_a_free_carry_starts_as_rmt():
    rmt, other = make("matrix"), make("matrix_carry")
    take_over(other, rmt)
    with torch.no_grad():
        for carry in stream_part(other, "carry").values():
            carry.zero_()
    same(other, rmt, SHARED)
    started = build_model(tiny({"kind": "matrix_carry", "key_dim": DK}))
    assert len(stream_part(started, "carry")) == 4
    assert not any(carry.any() for carry in stream_part(started, "carry").values())


@pytest.mark.parametrize(("form", "far"), [("sinkhorn", 60 * torch.eye(4)), ("decay", torch.tensor(60.0))])
def test_other_carries_are_rmt_far_out(form, far):
    rmt, other = make("matrix"), make("matrix_carry", form=form)
    take_over(other, rmt)
    with torch.no_grad():
        for carry in stream_part(other, "carry").values():
            carry.copy_(far.expand_as(carry))
    same(other, rmt, SHARED)


@pytest.mark.parametrize("form", ["static", "sinkhorn", "decay"])
def test_carry_equation(form):
    stream = make("matrix_carry", form=form, eps=0.2, noise=1.0).stream
    weight = stream.carry_3.detach()
    if form == "static":
        carry = torch.eye(DK) + 0.2 * weight
    elif form == "decay":
        carry = torch.diag(1 / (1 + torch.exp(-6 - weight)))
    else:
        blocks = torch.exp(weight + 6 * torch.eye(4))
        for _ in range(20):
            blocks = blocks / blocks.sum(1, keepdim=True)
            blocks = blocks / blocks.sum(2, keepdim=True)
        carry = torch.block_diag(*blocks)
    X, y = random_state(), heads()
    out = stream.write(3, X, y)
    for b, t in every_token(X):
        expected = carry @ X[b, t].T + outer_sum(stream.write_3, y[b, t])
        torch.testing.assert_close(out[b, t].T, expected, rtol=1e-7, atol=1e-9)


def test_carries_that_start_near_the_identity():
    X = torch.eye(DK).expand(1, 1, DK, DK)  # rows e_k, one to a column
    for form, kept in (("sinkhorn", 0.993), ("decay", 0.998)):
        stream = build_model(tiny({"kind": "matrix_carry", "key_dim": DK, "form": form}, head_dim=DK)).stream
        carried = stream.carry(2, X)[0, 0]
        assert carried.diagonal().mean().item() == pytest.approx(kept, abs=5e-4)
        if form == "sinkhorn":
            torch.testing.assert_close(carried.sum(0), torch.ones(DK))
            torch.testing.assert_close(carried.sum(1), torch.ones(DK))


def test_bad_carries_are_refused():
    with pytest.raises(UserError, match="multiple of 4"):
        tiny({"kind": "matrix_carry", "key_dim": 6, "form": "sinkhorn"})
    with pytest.raises(UserError, match=r"eps is 0.*kind: matrix"):
        tiny({"kind": "matrix_carry", "key_dim": 6, "eps": 0})
    with pytest.raises(UserError, match="key_dim is 0"):
        tiny({"kind": "matrix_carry", "key_dim": 0})


# Delta writes


def test_delta_without_erasing_is_rmt_with_keys_of_norm_beta():
    rmt, other = make("matrix"), make("matrix_delta", erase=False)
    take_over(rmt, other)
    with torch.no_grad():
        for site in range(1, 5):
            keys, logits = getattr(other.stream, f"write_{site}"), getattr(other.stream, f"beta_{site}")
            getattr(rmt.stream, f"write_{site}").copy_(2 * torch.sigmoid(logits) * keys / keys.norm(dim=0))
    same(other, rmt, [name for name in SHARED if "read" in name] + ["stream.write_0", "blocks.1.w1"])


def test_delta_is_one_linear_map_and_a_write():
    """(I - K^T diag(beta) K) X + K^T diag(beta) V, with beta of every token its own."""
    stream = make("matrix_delta", beta="token").stream
    X, y = random_state(), heads()
    out = stream.write(1, X, y)
    K = (stream.write_1 / stream.write_1.norm(dim=0)).T
    betas = []
    for b, t in every_token(X):
        rms = (y[b, t].square().mean(1) + 1e-6).sqrt()
        beta = torch.stack(
            [2 / (1 + torch.exp(-stream.beta_1[h] - stream.gate_1[:, h] @ y[b, t, h] / rms[h])) for h in range(R)]
        )
        B = K.T @ torch.diag(beta)
        torch.testing.assert_close(out[b, t].T, (torch.eye(DK) - B @ K) @ X[b, t].T + B @ y[b, t])
        betas.append(beta)
    assert torch.stack(betas).std(0).min() > 1e-2


@pytest.mark.parametrize(("beta", "expected"), [(1.0, "replaced"), (2.0, "reflected")])
def test_a_lone_key_replaces_or_reflects(beta, expected):
    stream = make("matrix_delta", changes={"num_heads": 1}).stream
    with torch.no_grad():
        stream.beta_1.fill_(math.log(beta / (2 - beta)) if beta < 2 else 60.0)
    X, v = random_state(), heads()[:, :, :1]
    key = stream.write_1[:, 0] / stream.write_1.norm()
    retrieved = stream.write(1, X, v) @ key
    if expected == "replaced":
        torch.testing.assert_close(retrieved, v[:, :, 0])
    else:
        torch.testing.assert_close(retrieved, 2 * v[:, :, 0] - X @ key)
        silent = stream.write(1, X, torch.zeros_like(v))
        torch.testing.assert_close(silent.norm(), X.norm())


def test_delta_starts_with_the_norm_of_rmts_keys_unless_that_were_unstable():
    sizes = {"num_heads": 4, "num_layers": 12}
    started = build_model(tiny({"kind": "matrix_delta", "key_dim": 16}, **sizes)).stream
    for site in (1, 2, 24):
        beta = 2 * torch.sigmoid(getattr(started, f"beta_{site}"))
        torch.testing.assert_close(beta, torch.full((4,), math.sqrt(16 / 4 / 24)))  # sqrt(D_k) / sqrt(R) / sqrt(2 L)
    shallow = build_model(tiny({"kind": "matrix_delta", "key_dim": 16}, num_layers=1)).stream
    torch.testing.assert_close(2 * torch.sigmoid(shallow.beta_1), torch.full((4,), 1 / 1.5**2))


# History of factored writes


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_history_with_the_same_keys_for_all_readers_is_rmt(positions):
    rmt = make("matrix", changes={"positions": positions})
    other = make("matrix_history", changes={"positions": positions})
    take_over(other, rmt)
    with torch.no_grad():
        for keys in stream_part(other, "rekey").values():
            keys.zero_()
    same(other, rmt, SHARED)
    started = build_model(tiny({"kind": "matrix_history", "key_dim": DK}))
    assert not any(keys.any() for keys in stream_part(started, "rekey").values())


def test_history_equation():
    stream = make("matrix_history").stream
    token, position = torch.randn(2, 5, DV * R).double(), torch.randn(1, 5, DV * R).double()
    y1, y2 = heads(), torch.randn(2, 5, DV * R).double()
    state = stream.write(2, stream.write(1, stream.write_embedding(None, token, position), y1), y2)
    assert sum(part.numel() for part in state) == (4 * R * DV) * 10  # token, position and two writes
    X, rekey = stream.matrix(2, state), stream.rekey_2
    for b, t in every_token(X):
        vectors = (token[b, t].view(DV, R).T, position[0, t].view(DV, R).T, y1[b, t])
        keys = (stream.write_0, stream.write_position, stream.write_1)
        expected = outer_sum(stream.write_2, y2[b, t].view(DV, R).T)
        for i in range(3):
            expected = expected + outer_sum(keys[i] + rekey[:, i * R : (i + 1) * R], vectors[i])
        torch.testing.assert_close(X[b, t].T, expected)
