"""RMT's relatives with other keys, reads or blocks: against their equations by token, and RMT where they are RMT."""

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
from widestream.blocks.context import make_context
from widestream.errors import UserError
from widestream.model.build import build_model

# Dynamic keys


@pytest.mark.parametrize("zero", ["map", "scale"])
def test_dynamic_keys_switched_off_are_rmt(zero):
    rmt, other = make("matrix"), make("matrix_dynamic")
    take_over(other, rmt)
    with torch.no_grad():
        for parameter in stream_part(other, zero).values():
            parameter.zero_()
    same(other, rmt, SHARED)


def test_dynamic_keys_start():
    started = build_model(tiny({"kind": "matrix_dynamic", "key_dim": DK}))
    assert not any(w.any() for w in stream_part(started, "map").values())
    scales = stream_part(started, "scale")
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


# Row softmax


def test_row_softmax_without_queries_is_rmt():
    for form in ("added", "pure"):
        rmt, other = make("matrix"), make("matrix_softmax", form=form)
        take_over(other, rmt)
        with torch.no_grad():
            for query in stream_part(other, "query").values():
                query.zero_()
            if form == "pure":
                for keys in stream_part(rmt, "read").values():
                    keys.fill_(1 / DK)
        same(other, rmt, [name for name in SHARED if form == "added" or "write" in name])


def test_row_softmax_starts():
    added = build_model(tiny({"kind": "matrix_softmax", "key_dim": DK, "form": "added"}))
    pure = build_model(tiny({"kind": "matrix_softmax", "key_dim": DK}))
    assert not any(query.any() for query in stream_part(added, "query").values())
    assert all(query.any() for query in stream_part(pure, "query").values())
    assert not stream_part(pure, "read")
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
        for name, keys in stream_part(other, "write", "read").items():
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


# Maps within D_v


def test_without_maps_and_the_token_before_it_is_rmt():
    plain = make("matrix")
    maps = make("matrix_maps", maps=0, previous=False, norms="state", noise=0.0)
    maps.load_state_dict(plain.state_dict(), strict=True)
    same(maps, plain, gradients=SHARED)


def test_heads_are_sums_of_mapped_reads():
    stream = make("matrix_maps", maps=2, norms="state", changes={"num_kv_heads": 2}).stream
    X = random_state()
    read, normed = stream.read(0, X), stream.norms[0](X)
    order = [*(("q", h) for h in range(R)), *((role, h) for role in "kv" for h in range(2))]
    for place, (role, head) in enumerate(order):
        vectors = [normed @ stream.read_0[2 * place + i] for i in range(2)]
        expected = sum(vectors[i] @ stream.map_read_0[place, i].T for i in range(2))
        torch.testing.assert_close(read[role][:, :, head], expected)


def test_heads_are_stored_through_their_maps():
    stream = make("matrix_maps", maps=2).stream
    X, written = random_state(), heads()
    expected = X.clone()
    for head in range(R):
        for i in range(2):
            vector = written[:, :, head] @ stream.map_write_1[head, i].T
            expected = expected + vector[..., None] * stream.write_1[:, 2 * head + i]
    torch.testing.assert_close(stream.write(1, X, written), expected)


def test_the_token_before_is_of_the_same_document():
    model = make("matrix_maps", changes={"positions": "none"})
    tokens, segments = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[0, 0, 1, 1]])
    context = make_context(model.config, torch.arange(4), segments)
    token = model.embedding.token[tokens]
    none = torch.zeros_like(token[:, 0])
    before = torch.stack([none, token[:, 0], none, token[:, 2]], dim=1)
    stream = model.stream
    expected = stream.store(stream.write_0, stream.data(token)) + stream.store(
        stream.write_previous, stream.data(before)
    )
    torch.testing.assert_close(stream.write_embedding(context, token, None), expected)


@pytest.mark.parametrize(
    ("settings", "said"), [({"maps": -1}, r"stream\.maps is -1"), ({"norm_gain": "row"}, r"norm_gain is row")]
)
def test_maps_refuse(settings, said):
    with pytest.raises(UserError, match=said):
        tiny({"kind": "matrix_maps", "key_dim": DK, **settings})
