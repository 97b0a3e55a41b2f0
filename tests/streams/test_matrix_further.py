"""RMT's relatives: each against its equation, written out token by token, and against RMT where it is RMT."""

import math

import pytest
import torch

from models import tiny
from widestream.blocks.context import make_context
from widestream.errors import UserError
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


def own_part(model, *prefixes):
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


# Carry


def test_a_free_carry_starts_as_rmt():
    rmt, other = make("matrix"), make("matrix_carry")
    take_over(other, rmt)
    with torch.no_grad():
        for carry in own_part(other, "carry").values():
            carry.zero_()
    same(other, rmt, SHARED)
    started = build_model(tiny({"kind": "matrix_carry", "key_dim": DK}))
    assert len(own_part(started, "carry")) == 4
    assert not any(carry.any() for carry in own_part(started, "carry").values())


@pytest.mark.parametrize(("form", "far"), [("sinkhorn", 60 * torch.eye(4)), ("decay", torch.tensor(60.0))])
def test_other_carries_are_rmt_far_out(form, far):
    rmt, other = make("matrix"), make("matrix_carry", form=form)
    take_over(other, rmt)
    with torch.no_grad():
        for carry in own_part(other, "carry").values():
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


# Dynamic keys


@pytest.mark.parametrize("zero", ["map", "scale"])
def test_dynamic_keys_switched_off_are_rmt(zero):
    rmt, other = make("matrix"), make("matrix_dynamic")
    take_over(other, rmt)
    with torch.no_grad():
        for parameter in own_part(other, zero).values():
            parameter.zero_()
    same(other, rmt, SHARED)


def test_dynamic_keys_start():
    started = build_model(tiny({"kind": "matrix_dynamic", "key_dim": DK}))
    assert not any(w.any() for w in own_part(started, "map").values())
    scales = own_part(started, "scale")
    assert len(scales) == 9  # five reads, four writes
    assert all(scale.item() == pytest.approx(0.01) for scale in scales.values())


def test_dynamic_equation():
    stream = make("matrix_dynamic").stream
    token = torch.randn(2, 5, DV * R, dtype=torch.float64)
    state = stream.write_embedding(None, token, None)
    torch.testing.assert_close(state.normed, stream.norms[0](state.X))
    q, y = stream.read(0, state)["q"], heads()
    after = stream.write(1, state, y)
    for b, t in every_token(y):
        rows = state.normed[b, t].T  # [Dk, Dv]
        for h in range(R):
            part = torch.stack([torch.tanh(rows[k] @ stream.map_read_0[h]) for k in range(DK)])
            key = stream.read_0[h] + stream.scale_read_0 * part
            torch.testing.assert_close(q[b, t, h], key @ rows)
        keys = torch.stack(
            [stream.write_1[:, h] + stream.scale_write_1 * torch.tanh(rows @ stream.map_write_1[h]) for h in range(R)],
            dim=1,
        )
        torch.testing.assert_close(after.X[b, t].T, state.X[b, t].T + outer_sum(keys, y[b, t]))
    torch.testing.assert_close(after.normed, stream.norms[1](after.X))


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


# Row softmax


def test_row_softmax_without_queries_is_rmt():
    for form in ("added", "pure"):
        rmt, other = make("matrix"), make("matrix_softmax", form=form)
        take_over(other, rmt)
        with torch.no_grad():
            for query in own_part(other, "query").values():
                query.zero_()
            if form == "pure":
                for keys in own_part(rmt, "read").values():
                    keys.fill_(1 / DK)
        same(other, rmt, [name for name in SHARED if form == "added" or "write" in name])


def test_row_softmax_starts():
    added = build_model(tiny({"kind": "matrix_softmax", "key_dim": DK, "form": "added"}))
    pure = build_model(tiny({"kind": "matrix_softmax", "key_dim": DK}))
    assert not any(query.any() for query in own_part(added, "query").values())
    assert all(query.any() for query in own_part(pure, "query").values())
    assert not own_part(pure, "read")
    with pytest.raises(UserError, match=r"init\.query_zero"):
        build_model(tiny({"kind": "matrix_softmax", "key_dim": DK}, init={"query_zero": True}))


@pytest.mark.parametrize("form", ["pure", "added"])
def test_row_softmax_equation(form):
    stream = make("matrix_softmax", form=form).stream
    X = random_state()
    normed, v = stream.norms[2](X), stream.read(2, X)["v"]
    for b, t in every_token(X):
        rows = normed[b, t].T
        for h in range(R):
            query = stream.query_2[2 * R + h]
            scores = torch.stack([query @ row / (row.square().mean() + 1e-6).sqrt() for row in rows])
            address = scores.exp() / scores.exp().sum()
            if form == "added":
                address = stream.read_2[2 * R + h] + address - 1 / DK
            torch.testing.assert_close(v[b, t, h], sum(address[k] * rows[k] for k in range(DK)))


# History of factored writes


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_history_with_the_same_keys_for_all_readers_is_rmt(positions):
    rmt = make("matrix", changes={"positions": positions})
    other = make("matrix_history", changes={"positions": positions})
    take_over(other, rmt)
    with torch.no_grad():
        for keys in own_part(other, "rekey").values():
            keys.zero_()
    same(other, rmt, SHARED)
    started = build_model(tiny({"kind": "matrix_history", "key_dim": DK}))
    assert not any(keys.any() for keys in own_part(started, "rekey").values())


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


# Dense attention


def identity_projections(model):
    """W_Q = W_K = W_V = W_O = I, for vectors side by side as [V, R] and heads as [R, V]."""
    swap = torch.eye(R * DV).view(DV, R, R * DV).transpose(0, 1).reshape(R * DV, R * DV)
    with torch.no_grad():
        for site in (0, 2):
            model.blocks[site].qkv.copy_(swap.repeat(3, 1))
            model.blocks[site].out.copy_(swap.T)


@pytest.mark.parametrize("reads", ["qkv", "shared"])
def test_dense_attention_with_identities_is_rmt(reads):
    rmt, other = make("matrix"), make("matrix_dense", reads=reads)
    attention = {"stream.read_0", "stream.read_2"}
    take_over(other, rmt, skip=attention if reads == "shared" else ())
    identity_projections(other)
    if reads == "shared":
        with torch.no_grad():
            for site in (0, 2):
                getattr(rmt.stream, f"read_{site}").copy_(getattr(other.stream, f"read_{site}").repeat(3, 1))
    same(other, rmt, [name for name in SHARED if reads == "qkv" or name not in attention])


def test_depth_scaling_acts_once_on_dense_attention():
    dense = build_model(tiny({"kind": "matrix_dense", "key_dim": DK})).roles()
    assert dense["stream.write_1"].std == pytest.approx(1 / math.sqrt(R))
    assert dense["blocks.0.out"].std == pytest.approx(1 / math.sqrt(R * DV) / 2)
    assert dense["stream.write_2"].std == pytest.approx(1 / math.sqrt(R) / 2)  # the MLP's as in RMT


# Key-only MLP


@pytest.mark.parametrize("rank", [R, 3 * R])
def test_a_key_only_mlp_is_rmts_with_kronecker_matrices(rank):
    """W_1 = A (x) I and W_2 = B (x) I retrieve with A r and store with w B."""
    rmt, other = make("matrix", changes={"mlp_dim": rank * DV}), make("matrix_keys", mlp_rank=rank)
    mlp_keys = {f"stream.{name}" for name in ("read_1", "write_2", "read_3", "write_4")}
    take_over(other, rmt, skip=mlp_keys)
    A, B, eye = torch.eye(R).double(), torch.eye(R).double(), torch.eye(DV).double()
    if rank > R:
        A, B = torch.randn(rank, R).double(), torch.randn(R, rank).double() / rank
    with torch.no_grad():
        for site in (1, 3):
            rmt.blocks[site].w1.copy_(torch.kron(eye, A))
            rmt.blocks[site].w2.copy_(torch.kron(eye, B))
            getattr(other.stream, f"read_{site}").copy_(A @ getattr(rmt.stream, f"read_{site}"))
            getattr(other.stream, f"write_{site + 1}").copy_(getattr(rmt.stream, f"write_{site + 1}") @ B)
    same(other, rmt, [name for name in SHARED if name not in mlp_keys])


def test_a_key_only_mlp_has_as_many_units_as_neurons():
    model = build_model(tiny({"kind": "matrix_keys", "key_dim": DK}, mlp_dim=33))  # 33 neurons, vectors of 8
    assert model.stream.read_1.shape == (5, DK)
    assert not any("blocks" in name for name, _ in model.named_parameters())
    out = model.blocks[1]({"x": torch.ones(1, 1, 40)}, make_context(model.config, torch.arange(1)))
    torch.testing.assert_close(out, torch.nn.functional.gelu(torch.ones(1, 1, 40), approximate="tanh"))
    with pytest.raises(UserError, match=r"no W_2.*w_FF"):
        tiny({"kind": "matrix_keys", "key_dim": DK, "depth_scale_site": "W2"})
    with pytest.raises(UserError, match="mlp_rank is 0"):
        tiny({"kind": "matrix_keys", "key_dim": DK, "mlp_rank": 0})


# Data lane


@pytest.mark.parametrize("head", ["all", "first", "last"])
def test_a_lane_of_all_rows_is_rmt(head):
    rmt, other = make("matrix"), make("matrix_lane", lane=DK, head=head, positions="lane")
    take_over(other, rmt)
    same(other, rmt, SHARED)


@pytest.mark.parametrize("head", ["all", "first", "last"])
@pytest.mark.parametrize("positions", ["all", "lane"])
def test_a_lane_is_rmt_with_keys_that_are_zero_elsewhere(head, positions):
    rmt, other = make("matrix"), make("matrix_lane", lane=3, head=head, positions=positions)
    with torch.no_grad():
        for name, keys in own_part(other, "write", "read").items():
            full = torch.zeros_like(getattr(rmt.stream, name))
            if keys.shape == full.shape:
                full.copy_(keys)
            elif name == "read_4":
                full[:, slice(3) if head == "first" else slice(-3, None)] = keys
            else:
                full[:3] = keys
            getattr(rmt.stream, name).copy_(full)
    assert other.stream.write_0.shape == (3, R)
    assert other.stream.write_position.shape == (3 if positions == "lane" else DK, R)
    assert other.stream.read_4.shape == (R, DK if head == "all" else 3)
    other.load_state_dict({n: v for n, v in rmt.state_dict().items() if ".norms." in n}, strict=False)
    same(other, rmt, ["stream.read_1", "stream.write_2", "embedding.token"])


def test_bad_lanes_are_refused():
    for lane in (0, 9):
        with pytest.raises(UserError, match=f"lane is {lane}; it must be from 1 to key_dim, 8"):
            tiny({"kind": "matrix_lane", "key_dim": 8, "lane": lane})


def test_learning_rates_follow_the_sizes_of_lane_and_slots():
    """At twice the base key axis a head that reads half of it learns at half the rate; so do twice as many slots."""
    init, mup = {"scheme": "mup", "std": 1.0}, {"base_key_dim": 4, "base_mlp_dim": 32, "base_head_dim": 8}
    sizes = {"mlp_dim": 64, "init": init, "mup": mup}
    lane = build_model(tiny({"kind": "matrix_lane", "key_dim": 8, "lane": 4, "head": "first"}, **sizes)).roles()
    assert lane["stream.read_4"].lr_factor == lane["stream.read_1"].lr_factor == 0.5
    keys = build_model(tiny({"kind": "matrix_keys", "key_dim": 8}, **sizes)).roles()
    assert keys["stream.write_2"].lr_factor == 0.5
    assert keys["stream.write_1"].lr_factor == 1.0  # as many heads as at the base
