"""RMT against its equations, written out head by head, and against the dense transformer it is a special case of."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from models import tiny
from widestream.blocks.context import make_context
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.model.costs import summarize


def norm(x, gain, kind):
    """Joint norm over both axes of X [Dk, Dv] with a gain per cell."""
    if kind == "layernorm":
        x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-6)
    else:
        x = x / torch.sqrt(x.square().mean() + 1e-6)
    return x * gain


def reference_logits(model, tokens):
    """Equations 12 to 27 of the paper for one sequence, with loops over tokens and heads and X as [Dk, Dv]."""
    c, s = model.config, model.stream
    R, Dv, Dk = c.num_heads, c.head_dim, c.stream.key_dim

    def vectors(flat):  # [Dv * R] -> R vectors of width Dv
        return [flat.view(Dv, R)[:, h] for h in range(R)]

    def gain(site):  # as [Dk, Dv]
        return s.norms[site].gain.T

    def write(X, keys, data):  # eq. 12: keys [Dk, R]
        return X + sum(torch.outer(keys[:, h], data[h]) for h in range(R))

    def read(X, keys):  # eq. 15: keys [R, Dk]
        return [keys[h] @ X for h in range(R)]

    X = []
    for t, token in enumerate(tokens):
        x = write(torch.zeros(Dk, Dv), s.write_0, vectors(model.embedding.token[token]))
        X.append(write(x, s.write_position, vectors(model.embedding.position[t])))
    for layer in range(c.num_layers):
        a, m = 2 * layer, 2 * layer + 1
        keys = getattr(s, f"read_{a}").view(3, R, Dk)
        normed = [norm(x, gain(a), c.norm) for x in X]
        q, k, v = ([read(x, keys[i]) for x in normed] for i in range(3))
        for t in range(len(tokens)):
            heads = []
            for h in range(R):
                scores = torch.stack([q[t][h] @ k[u][h] for u in range(t + 1)]) / math.sqrt(Dv)
                if c.inverse_layer_scaling:
                    scores = scores / (layer + 1)
                p = scores.softmax(0)
                heads.append(sum(p[u] * v[u][h] for u in range(t + 1)))
            X[t] = write(X[t], getattr(s, f"write_{a + 1}"), heads)
        block = model.blocks[m]
        for t in range(len(tokens)):
            u = read(norm(X[t], gain(m), c.norm), getattr(s, f"read_{m}"))
            y = block.w2 @ F.gelu(block.w1 @ torch.stack(u, dim=1).flatten(), approximate="tanh")
            X[t] = write(X[t], getattr(s, f"write_{m + 1}"), vectors(y))
    last = 2 * c.num_layers
    out = [torch.stack(read(norm(x, gain(last), c.norm), getattr(s, f"read_{last}")), dim=1).flatten() for x in X]
    return torch.stack(out) @ model.unembedding.T


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("scaling", [True, False])
def test_equations(kind, scaling):
    model = build_model(tiny("matrix", norm=kind, inverse_layer_scaling=scaling), seed=3).double()
    with torch.no_grad():
        for parameter in model.stream.norms.parameters():
            parameter.mul_(torch.rand_like(parameter) + 0.5)
    tokens = torch.randint(50, (7,), generator=torch.Generator().manual_seed(0))
    torch.set_default_dtype(torch.float64)
    try:
        expected = reference_logits(model, tokens.tolist())
        model.blocks[0].upcast = model.blocks[2].upcast = False  # it would round to float32
        ours = model.logits(model(tokens[None]))[0]
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_rmt_is_a_dense_transformer_with_kronecker_weights():
    """vec(X) is a plain stream of width Dk * Dv whose projections are keys (x) I: reads are r (x) I, writes w (x) I."""
    model = build_model(tiny("matrix"), seed=1).double()
    s, c = model.stream, model.config
    R, Dv, Dk = c.num_heads, c.head_dim, c.stream.key_dim
    eye = torch.eye(Dv, dtype=torch.float64)
    x = torch.randn(2, 5, Dv, Dk, dtype=torch.float64)
    flat = x.flatten(2)  # (v, k) order
    dense_read = torch.kron(eye, s.read_1)  # [Dv * R, Dv * Dk]
    dense_write = torch.kron(eye, s.write_2)  # [Dv * Dk, Dv * R]
    mlp = model.blocks[1]
    w1, w2 = mlp.w1 @ dense_read, dense_write @ mlp.w2
    normed = F.layer_norm(flat, (Dv * Dk,), eps=c.norm_eps)
    expected = flat + F.gelu(normed @ w1.T, approximate="tanh") @ w2.T
    written = mlp(s.read(1, x), None)
    torch.testing.assert_close(s.write(2, x, written).flatten(2), expected)
    assert (R, Dk) == s.read_1.shape


def dense_weights(rmt):
    """The parameters of a plain transformer of width Dv * Dk that computes what `rmt` does."""
    s, c = rmt.stream, rmt.config
    eye = torch.eye(c.head_dim, dtype=torch.float64)

    def kron(keys):  # [out, in] keys -> on vectors side by side, (v, k) order
        return torch.kron(eye, keys)

    def by_head(projection):  # rows (v, h) -> (h, v)
        return projection.unflatten(0, (c.head_dim, c.num_heads)).transpose(0, 1).flatten(0, 1)

    weights = {
        "embedding.token": rmt.embedding.token @ kron(s.write_0).T,
        "embedding.position": rmt.embedding.position @ kron(s.write_position).T,
        "unembedding": rmt.unembedding @ kron(getattr(s, f"read_{2 * c.num_layers}")),
    }
    for site, norm in enumerate(s.norms):
        weights[f"stream.norms.{site}.gain"] = norm.gain.flatten()
    for site in range(0, 2 * c.num_layers, 2):
        reads = getattr(s, f"read_{site}").chunk(3)
        weights[f"blocks.{site}.qkv"] = torch.cat([by_head(kron(keys)) for keys in reads])
        weights[f"blocks.{site}.out"] = by_head(kron(getattr(s, f"write_{site + 1}")).T).T
        mlp = rmt.blocks[site + 1]
        weights[f"blocks.{site + 1}.w1"] = mlp.w1 @ kron(getattr(s, f"read_{site + 1}"))
        weights[f"blocks.{site + 1}.w2"] = kron(getattr(s, f"write_{site + 2}")) @ mlp.w2
    return weights


def test_rmts_attention_is_dense_attention_with_kronecker_weights():
    """W_Q^(h) = r_Q (x) I and W_O^(h) = w_O (x) I; the read, the heads and the write together."""
    rmt = build_model(tiny("matrix", upcast_attention=False), seed=1).double()
    plain = build_model(tiny("vector", width=48, upcast_attention=False)).double()
    x = torch.randn(2, 5, 8, 6, dtype=torch.float64)
    context = make_context(rmt.config, torch.arange(5))
    for site in (0, 2):
        block, weights = plain.blocks[site], dense_weights(rmt)
        block_weights = {name: weights[f"blocks.{site}.{name}"] for name in ("qkv", "out")}
        normed = F.layer_norm(x.flatten(2), (48,), eps=1e-6)
        expected = x.flatten(2) + functional_call(block, block_weights, ({"x": normed}, context))
        written = rmt.blocks[site](rmt.stream.read(site, x), context)
        torch.testing.assert_close(rmt.stream.write(site + 1, x, written).flatten(2), expected)


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_the_whole_rmt_is_a_wider_transformer_with_kronecker_weights(kind):
    """Same logits, and the same gradients of RMT's parameters through the wide transformer's weights."""
    rmt = build_model(tiny("matrix", norm=kind, upcast_attention=False), seed=1).double()
    plain = build_model(tiny("vector", norm=kind, width=48, upcast_attention=False)).double()
    with torch.no_grad():
        for parameter in rmt.stream.norms.parameters():
            parameter.mul_(torch.rand_like(parameter) + 0.5)
    tokens = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(0))
    weights = dense_weights(rmt)
    assert {name: w.shape for name, w in weights.items()} == {n: p.shape for n, p in plain.named_parameters()}
    ours = rmt.logits(rmt(tokens))
    theirs = functional_call(plain, weights, (tokens,)) @ weights["unembedding"].T
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    parameters = dict(rmt.named_parameters())
    gradients, expected = (torch.autograd.grad(out.sin().sum(), list(parameters.values())) for out in (ours, theirs))
    for name, a, b in zip(parameters, gradients, expected, strict=True):
        assert b.norm() > 0
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize(("gain", "shape"), [("full", (8, 6)), ("row", (6,)), ("none", None)])
def test_norm_gains(gain, shape):
    model = build_model(tiny({"kind": "matrix", "key_dim": 6, "norm_gain": gain}))
    assert (None if model.stream.norms[0].gain is None else model.stream.norms[0].gain.shape) == shape
    plain = build_model(tiny("matrix"))
    tokens = torch.arange(10)[None]
    torch.testing.assert_close(model(tokens), plain(tokens))  # gains start at one


def test_depth_scaling_site():
    scaled = 1 / math.sqrt(4)
    at_keys = build_model(tiny({"kind": "matrix", "key_dim": 6, "depth_scale_site": "w_FF"})).roles()
    at_matrix = build_model(tiny({"kind": "matrix", "key_dim": 6, "depth_scale_site": "W2"})).roles()
    assert at_keys["stream.write_2"].std == pytest.approx(scaled / math.sqrt(4))
    assert at_keys["blocks.1.w2"].std == pytest.approx(1 / math.sqrt(40))
    assert at_matrix["stream.write_2"].std == pytest.approx(1 / math.sqrt(4))
    assert at_matrix["blocks.1.w2"].std == pytest.approx(scaled / math.sqrt(40))
    for roles in (at_keys, at_matrix):  # w_O always, the embedding's keys never
        assert roles["stream.write_1"].std == pytest.approx(scaled / math.sqrt(4))
        assert roles["stream.write_0"].std == pytest.approx(1 / math.sqrt(4))


def test_a_wider_stream_adds_keys_and_gains_only():
    small, large = (build_model(tiny({"kind": "matrix", "key_dim": k})).state_dict() for k in (6, 60))
    differing = {name for name in small if small[name].shape != large[name].shape}
    assert differing == {name for name in small if name.startswith("stream.")}


def test_parameters_saved_at_the_size_of_gpt2_small():
    """28.30M (D_k = 12) to 28.25M (64) fewer than the plain model, norms left out."""
    sizes = {
        "vocab_size": 50257, "context": 1024, "num_layers": 12, "num_heads": 12, "head_dim": 64, "mlp_dim": 3072,
    }  # fmt: skip

    def count(stream):
        parts = summarize(tiny(stream, **sizes)).parts
        return sum(parts.values()) - parts["norm"]

    plain = count("vector")
    for key_dim, saved in ((12, 28_300_752), (64, 28_253_952)):
        assert plain - count({"kind": "matrix", "key_dim": key_dim}) == saved
        assert saved == 12 * 4 * 768**2 - 12 * key_dim * (6 * 12 + 3)


def test_bad_sizes_are_refused():
    with pytest.raises(UserError, match="key_dim is 0"):
        tiny({"kind": "matrix", "key_dim": 0})
    with pytest.raises(UserError, match=r"leave model\.width out"):
        build_model(tiny("matrix", width=64))
