"""Hyper-connections, mHC and generalised hyper-connections: their equations lane by lane, counts, and special cases."""

import math

import pytest
import torch
import torch.nn.functional as F

from models import tiny
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model
from widestream.streams.lanes.base import Lanes
from widestream.streams.lanes.mhc import sinkhorn

GPT2_SMALL = {"num_layers": 12, "num_heads": 12, "head_dim": 64, "mlp_dim": 3072}


def stream_of(kind, change=0.3, **fields):
    """A stream for four blocks and width 32 in float64; `change`: how far its parameters are from their start."""
    stream = build_model(tiny({"kind": kind} | fields, norm="rmsnorm"), seed=5).stream.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in stream.parameters():
            parameter.add_(change * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return stream


def toy(width, seed=2):
    """Four branches tanh(x W) and a batch of embeddings [1, 3, width]."""
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(32, 32, generator=generator, dtype=torch.float64) / 4 for _ in range(4)]
    embedding = torch.randn(1, 3, width, generator=generator, dtype=torch.float64)
    return [lambda x, m=m: torch.tanh(x @ m) for m in maps], embedding


def drive(stream, embedding, branches):
    """What every branch and the head got, and the last lanes."""
    state, H = stream.write(0, None, embedding), None
    inputs = [stream.read(0, state)["x"]]
    for site, branch in enumerate(branches, start=1):
        written = branch(inputs[-1])
        H = stream.deposit(state, written)
        state = stream.write(site, state, written)
        inputs.append(stream.read(site, state)["x"])
    return inputs, H


def normed(x, gain):
    return x / torch.sqrt(x.square().mean() + 1e-6) * gain


def through(stream, H, branches, coefficients, read_out):
    """One token through all blocks: lanes as a list, and A [n][m + n] and B [m][n] as functions of them."""
    m, n, inputs = stream.segments, stream.lanes, []
    for k, branch in enumerate(branches):
        A, B = coefficients(k, H)
        u = [sum(A[i][j] * H[i] for i in range(n)) for j in range(m)]
        inputs.append(normed(torch.cat(u), stream.norms[k].gain))
        y = branch(inputs[-1]).view(m, -1)
        H = [sum(A[i][m + j] * H[i] for i in range(n)) + sum(B[s][j] * y[s] for s in range(m)) for j in range(n)]
    return [*inputs, normed(read_out(H), stream.norms[-1].gain)]


def compare(stream, embedding, start, branches, coefficients, read_out):
    ours, _ = drive(stream, embedding, branches)
    for t in range(embedding.shape[1]):
        wanted = through(stream, start(embedding[0, t]), branches, coefficients, read_out)
        for a, b in zip(ours, wanted, strict=True):
            torch.testing.assert_close(a[0, t], b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fields", [{"dynamic": False}, {"lanes": 3}, {"lanes": 2, "tanh": False}, {"lanes": 1}])
def test_equations_of_hyper_connections(fields):
    s = stream_of("hyper_connections", **fields)
    n, bend = s.lanes, torch.tanh if fields.get("tanh", True) else lambda x: x
    branches, embedding = toy(32)

    def coefficients(k, H):
        A, B = [[s.A[k, i, j] for j in range(n + 1)] for i in range(n)], [[s.B[k, i] for i in range(n)]]
        if s.settings.dynamic:
            for i in range(n):
                h = normed(H[i], s.lane_norms[k].gain)
                A[i] = [A[i][j] + s.s_alpha[k] * bend(h @ s.W[k, j]) for j in range(n + 1)]
                B[0][i] = B[0][i] + s.s_beta[k] * bend(h @ s.W[k, n + 1])
        return A, B

    compare(s, embedding, lambda e: [e] * n, branches, coefficients, lambda H: sum(H) / n)


@pytest.mark.parametrize("fields", [{}, {"residual": "identity"}, {"readout": "learned", "eps": 1e-3}])
def test_equations_of_mhc(fields):
    s = stream_of("mhc", lanes=3, **fields)
    eps = fields.get("eps", 0.0)
    n, branches, embedding = 3, *toy(32)

    def coefficients(k, H):
        out = s.phi[k] @ normed(torch.cat(H), 1.0)
        pre = torch.sigmoid(s.alpha[k, 0] * out[:n] + s.b_pre[k]) + eps
        post = 2 * torch.sigmoid(s.alpha[k, 1] * out[n : 2 * n] + s.b_post[k])
        res = torch.eye(n, dtype=torch.float64)
        if s.mixes:
            res = torch.softmax(s.alpha[k, 2] * out[2 * n :].view(n, n) + s.b_res[k], 0) + eps
            res = res / (res.sum(1, keepdim=True) + eps)
            for _ in range(19):
                res = res / (res.sum(0, keepdim=True) + eps)
                res = res / (res.sum(1, keepdim=True) + eps)
        return [[pre[i], *(res[j, i] for j in range(n))] for i in range(n)], [post]

    def read_out(H):
        if not s.learned:
            return sum(H) / n
        weights = torch.sigmoid(s.head_alpha * (s.head_phi @ normed(torch.cat(H), 1.0)) + s.head_b) + eps
        return sum(w * lane for w, lane in zip(weights, H, strict=True))

    compare(s, embedding, lambda e: [e] * n, branches, coefficients, read_out)


@pytest.mark.parametrize(
    "fields",
    [
        {"segments": 2, "slots": 3, "dynamic": False},
        {"segments": 4, "slots": 6, "embedding": "expand"},
        {"segments": 2, "slots": 4, "readout": "plain"},
    ],
)
def test_equations_of_generalized_hyper_connections(fields):
    s = stream_of("generalized_hc", **fields)
    m, n, W = s.segments, s.lanes, s.lane_width
    branches, embedding = toy(32 if s.settings.embedding == "expand" else n * W)

    def coefficients(k, H):
        A, B = s.A[k].clone(), s.B[k].clone()
        for i in range(n if s.settings.dynamic else 0):
            out = torch.tanh(s.W[k] @ normed(H[i], s.slot_norms[k].gain) / math.sqrt(W))
            A[i] += s.S_alpha[k, i] * out[: m + n]
            B[:, i] += s.S_beta[k, :, i] * out[m + n :]
        return A, B

    def read_out(H):
        if s.settings.readout == "plain":
            return torch.cat(H[:m])
        size = math.gcd(m, n)
        groups = [torch.cat(H[i : i + size]) for i in range(0, n, size)]
        return s.readout @ torch.cat([normed(g, gain) for g, gain in zip(groups, s.group_norm.gain, strict=True)])

    def start(e):
        return list((s.expand @ e if s.settings.embedding == "expand" else e).view(n, W))

    compare(s, embedding, start, branches, coefficients, read_out)


@pytest.mark.parametrize(
    ("stream", "extra"),
    [
        ({"kind": "hyper_connections", "dynamic": False}, 576),
        ({"kind": "hyper_connections"}, 111_216 + 24 * 768),  # the gains of its own norms
        ({"kind": "mhc"}, 1_770_120),
        ({"kind": "generalized_hc", "segments": 2, "slots": 3, "readout": "plain"}, 74_736),
        ({"kind": "generalized_hc", "segments": 12, "slots": 32, "readout": "plain"}, 173_568),
    ],
)
def test_parameters_at_gpt2_small(stream, extra):
    plain, laned = (meta_model(tiny(which, **GPT2_SMALL)).stream for which in ("vector", stream))
    assert sum(p.numel() for p in laned.parameters()) - sum(p.numel() for p in plain.parameters()) == extra


def plain_stream(embedding, branches):
    """The lanes of a plain stream, and what its norms would hand on."""
    one, x = torch.ones(32, dtype=torch.float64), embedding
    for branch in branches:
        x = x + branch(F.rms_norm(x, (32,), one, 1e-6))
    return x


@pytest.mark.parametrize("fields", [{"lanes": 4}, {"lanes": 3, "dynamic": False}, {"lanes": 1, "dynamic": False}])
def test_every_lane_of_hyper_connections_starts_as_the_plain_stream(fields):
    branches, embedding = toy(32)
    inputs, H = drive(stream_of("hyper_connections", change=0, **fields), embedding, branches)
    plain = plain_stream(embedding, branches)
    torch.testing.assert_close(H, plain.unsqueeze(-2).expand_as(H))
    torch.testing.assert_close(inputs[-1], F.rms_norm(plain, (32,), eps=1e-6))  # mean of lanes


@pytest.mark.parametrize("phi", ["zero", "random"])
def test_mhc_is_plain_on_equal_lanes_however_they_are_mixed(phi):
    stream = stream_of("mhc", change=0, phi=phi, alpha=0.01 if phi == "zero" else 0.0)
    with torch.no_grad():
        stream.b_res.normal_(0, 2, generator=torch.Generator().manual_seed(0))
    branches, embedding = toy(32)
    _, H = drive(stream, embedding, branches)
    torch.testing.assert_close(H, plain_stream(embedding, branches).unsqueeze(-2).expand_as(H), rtol=1e-5, atol=1e-5)


def test_biases_of_mhc():
    equal = stream_of("mhc", change=0, phi="random")
    torch.testing.assert_close(equal.b_pre, torch.full_like(equal.b_pre, -math.log(3)))
    favoured = stream_of("mhc", change=0).b_pre.sigmoid()
    torch.testing.assert_close(favoured.sum(-1), torch.ones_like(favoured[:, 0]))
    assert favoured.argmax(-1).tolist() == [0, 1, 2, 3]
    assert not equal.b_post.any()
    mixing = sinkhorn(equal.b_res[0])
    assert mixing.diagonal().min() > 0.99


@pytest.mark.parametrize("fields", [{}, {"phi": "random", "alpha": 0.0}, {"residual": "identity"}])
def test_lanes_of_mhc_part_in_training(fields):
    model = build_model(tiny({"kind": "mhc"} | fields))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(tokens, tokens.roll(-1, 1)).total.backward()
        optimizer.step()
    branches, embedding = toy(32)
    _, H = drive(model.stream.double(), embedding, branches)
    assert (H - H.mean(-2, keepdim=True)).abs().max() > 1e-4


@pytest.mark.parametrize(("diagonal", "scale"), [(0.0, 0.5), (0.0, 1.0), (8.0, 0.05)])
def test_sinkhorn_is_doubly_stochastic(diagonal, scale):
    """For logits of size 1, and for those near the start."""
    noise = torch.randn(200, 4, 4, generator=torch.Generator().manual_seed(0))
    mixing = sinkhorn(scale * noise + diagonal * torch.eye(4))
    assert mixing.dtype == torch.float32
    assert mixing.min() >= 0
    torch.testing.assert_close(mixing.sum(-1), torch.ones(200, 4), rtol=0, atol=1e-6)
    torch.testing.assert_close(mixing.sum(-2), torch.ones(200, 4), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("scale", "least", "most"), [(1.0, 1e-3, 5e-3), (2.0, 0.03, 0.04), (4.0, 0.07, 0.09), (8.0, 0.4, 0.5)]
)
def test_columns_of_sinkhorn_are_off_by_what_is_said(scale, least, most):
    logits = scale * torch.randn(120_000, 4, 4, generator=torch.Generator().manual_seed(0))
    off = (sinkhorn(logits).sum(-2) - 1).abs().amax(-1)
    assert least < off.max() < most
    if scale == 8:
        assert off.median() == pytest.approx(0.025, abs=0.002)
        assert off.quantile(0.99) == pytest.approx(0.082, abs=0.005)


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_sinkhorn_of_the_authors_code(scale):
    """Its rounds, one after the other, on the transpose; and how far the equations' are from them."""
    logits = scale * torch.randn(5_000, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = logits.mT.softmax(-1) + 1e-6
    x = x / (x.sum(-2, keepdim=True) + 1e-6)
    for _ in range(19):
        x = x / (x.sum(-1, keepdim=True) + 1e-6)
        x = x / (x.sum(-2, keepdim=True) + 1e-6)
    torch.testing.assert_close(sinkhorn(logits, 1e-6), x.mT, rtol=1e-12, atol=1e-14)
    apart = (sinkhorn(logits) - x.mT).abs().max()
    assert apart < 5e-5 if scale == 1 else apart > 0.5


def test_sinkhorn_bears_logits_far_apart():
    for eps in (0.0, 1e-6):
        logits = torch.tensor([[0.0, -400.0], [300.0, 0.0]]).requires_grad_()
        mixing = sinkhorn(logits, eps)
        assert mixing.isfinite().all()
        mixing[0, 0].backward()
        assert logits.grad.isfinite().all()


def test_unmixed_lanes_are_passed_on():
    stream = stream_of("mhc", residual="identity")
    H = torch.randn(1, 3, 4, 32, dtype=torch.float64)
    assert stream.mix(0, H).carried is H
    assert "b_res" not in dict(stream.named_parameters())


@pytest.mark.parametrize("dynamic", [True, False])
def test_one_slot_is_the_plain_stream(dynamic):
    stream = stream_of("generalized_hc", change=0, segments=1, slots=1, readout="plain", dynamic=dynamic)
    branches, embedding = toy(32)
    inputs, _ = drive(stream, embedding, branches)
    torch.testing.assert_close(inputs[-1], F.rms_norm(plain_stream(embedding, branches), (32,), eps=1e-6))


def test_slots_beyond_the_segments_are_written_but_not_read():
    stream = stream_of("generalized_hc", change=0, segments=4, slots=6)
    branches, embedding = toy(6 * 8)
    other = embedding.clone()
    other[..., 4 * 8 :] += 1
    (inputs, H), (others, other_H) = (drive(stream, e, branches) for e in (embedding, other))
    for a, b in zip(inputs[:-1], others[:-1], strict=True):
        torch.testing.assert_close(a, b)
    assert (H - embedding.unflatten(-1, (6, 8)))[..., 4:, :].abs().min() > 0
    torch.testing.assert_close(other_H - H, (other - embedding).unflatten(-1, (6, 8)))
    assert (inputs[-1] - others[-1]).abs().max() > 0.01


def test_mlp_of_the_residual_matrix_transformer_is_a_static_generalized_hyper_connection():
    """m = R, n = D_k, carry I, A and B its keys: the same read, and with the joint norm's factor the same step."""
    config = tiny({"kind": "matrix", "key_dim": 6, "norm_gain": "none"}, norm="rmsnorm")
    model = build_model(config, seed=1).double()
    rmt, mlp = model.stream, model.blocks[1]
    R, K, V = config.num_heads, 6, config.head_dim
    ghc = stream_of("generalized_hc", change=0, segments=R, slots=K, dynamic=False)
    with torch.no_grad():
        ghc.A[1, :, :R], ghc.B[1] = rmt.read_1.T, rmt.write_2.T
    X = torch.randn(2, 5, V, K, dtype=torch.float64)  # RMT's layout; data vectors [V, R] side by side
    state = ghc.mix(1, X.mT)
    factor = torch.rsqrt(X.square().mean((-2, -1)) + config.norm_eps).unsqueeze(-1)
    u = (factor * state.given).unflatten(-1, (R, V)).mT.flatten(-2)
    torch.testing.assert_close(u, rmt.read(1, X)["x"])
    y = mlp({"x": u}, None)
    H = ghc.deposit(Lanes(*state), y.unflatten(-1, (V, R)).mT.flatten(-2))
    torch.testing.assert_close(H.mT, rmt.write(2, X, y))


def test_decay_spares_static_weights():
    for kind, dynamic in (("hyper_connections", "W"), ("mhc", "phi"), ("generalized_hc", "W")):
        roles = stream_of(kind, segments=2, slots=4) if kind == "generalized_hc" else stream_of(kind)
        decayed = {name for name, role in roles.own_roles.items() if role.decay == "key"}
        assert decayed == {dynamic}


def test_the_bytes_moved_grow_with_the_lanes():
    streams = [{"kind": "hyper_connections", "lanes": n, "dynamic": False} for n in (1, 4)]
    plain, one, four = (meta_model(tiny(stream)).stream.cost().bytes_moved for stream in ("vector", *streams))
    assert four == 4 * one == 4 * plain


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ({"kind": "hyper_connections", "lanes": 0}, "lanes is 0"),
        ({"kind": "mhc", "lanes": 1}, "at least 2"),
        ({"kind": "mhc", "alpha": 0.0}, "neither would ever learn"),
        ({"kind": "mhc", "eps": -1e-6}, "eps is -1e-06; it must be at least 0"),
        ({"kind": "generalized_hc", "segments": 0}, "segments is 0"),
        ({"kind": "generalized_hc", "segments": 4, "slots": 3}, "slots is 3"),
        ({"kind": "generalized_hc", "segments": 5, "slots": 5}, r"segments, 5, must divide the model's width, 32"),
    ],
)
def test_bad_settings_are_refused(stream, message):
    with pytest.raises(UserError, match=message):
        build_model(tiny(stream))
