"""A stream for branches of others: every kind, against the decoder of our own and against a plain loop."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from widestream import UserError, residual
from widestream.blocks.context import make_context
from widestream.streams import OWN_KINDS, stream_class
from widestream.testing.models import random_model

DIM, HEADS = 32, 4
NAMED = ("mudd", "dca", "matrix_maps")
"""Kinds, in their first form, that must know which branches are attention."""
REFUSED = {"matrix_keys": "takes the place of an MLP's matrices"}
KINDS = [kind for kind in OWN_KINDS if kind not in REFUSED]
CASES = [(kind, fields) for kind in KINDS for fields in stream_class(kind).examples if not fields.get("widen_mlps")]


def name_of(value):
    return value if isinstance(value, str) else "-".join(map(str, value.values()))


class Convolution(nn.Module):
    """A causal convolution over tokens, feature by feature."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv1d(DIM, DIM, 3, groups=DIM)

    def forward(self, x):
        return self.inner(F.pad(x.mT, (2, 0))).mT


class Attention(nn.Module):
    """One head of attention that sees all tokens, fed with one vector, with three, or with heads."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(DIM, DIM)

    def forward(self, x):
        q, k, v = x if isinstance(x, tuple) else (x, x, x)
        if q.ndim == 4:
            return F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v))).transpose(1, 2)
        return self.out(F.scaled_dot_product_attention(q, k, v))


def branches_of(stream, seed=0):
    """Attention where the stream hands over q, k and v; elsewhere this, a convolution and an MLP in turn."""
    torch.manual_seed(seed)
    makers = (Attention, Convolution, lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.GELU()))
    reads = [outline.roles for outline in stream.outlines[:-1]]
    return nn.ModuleList((Attention if len(roles) == 3 else makers[site % 3])() for site, roles in enumerate(reads))


def stream_of(kind, sites=None, **fields):
    named = kind in NAMED and fields.get("form", "dca") == "dca"
    if sites is None:
        sites = ["attention", "mlp"] * 3 if named else 6 if kind == "altup" else 5
    return residual(kind, DIM, sites, heads=HEADS, **fields)


def shaken(stream, seed=0):
    """Away from the start, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in stream.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return stream.double()


def vectors(stream, rows=2, tokens=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, tokens, stream.embedding_dim, generator=generator).to(dtype)


def loop(stream, embedding, branches):
    state, x = stream.start(embedding)
    for site, branch in enumerate(branches, 1):
        state, x = stream.exchange(site, state, branch(x))
    return x


def gradients(out, tensors):
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    return torch.autograd.grad((out * weights).sum(), tensors, allow_unused=True)


@pytest.mark.parametrize(("kind", "fields"), CASES, ids=name_of)
def test_the_stream_is_that_of_our_own_decoder(kind, fields):
    """Our own blocks as branches: what the head reads is what the decoder's head reads."""
    stream = {"kind": kind, **fields}
    model = random_model(stream, {"positions": "none", "norm": "rmsnorm", "norm_eps": 1e-5})
    config, kinds = model.config, [block.kind for block in model.layout]
    sites = len(kinds) if kind == "depth_lstm" else kinds
    ours = residual(
        kind, config.embed_dim, sites, heads=config.num_heads, norm_eps=1e-5, neurons=config.mlp_dim, **fields
    )
    ours.core.load_state_dict(model.stream.state_dict())
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(9)
    context = make_context(config, positions, windows=model.windows)

    def branch(block):
        return lambda x: block(dict(zip("qkv", x, strict=True)) if isinstance(x, tuple) else {"x": x}, context)

    with torch.no_grad():
        embedding, _ = model.embedding(tokens, positions, context)
        got = loop(ours, embedding, [branch(block) for block in model.blocks])
        torch.testing.assert_close(got, model(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_has_the_gradients_of_the_loop(kind):
    stream = shaken(stream_of(kind, **stream_class(kind).examples[0]))
    branches = branches_of(stream).double()
    embedding = vectors(stream).requires_grad_()
    tensors = [embedding, *branches.parameters(), *stream.parameters()]
    wanted_x = loop(stream, embedding, branches)
    wanted = gradients(wanted_x, tensors)
    ways = [{"recompute": True}]
    if stream.spec.undo != "no":
        ways += [{"memory": "writes"}, {"memory": "writes", "recompute": True, "anchors": 2}]
    for way in ways:
        x = stream.run(embedding, branches, **way)
        torch.testing.assert_close(x, wanted_x, rtol=1e-9, atol=1e-9)
        for got, want in zip(gradients(x, tensors), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7, msg=lambda text, way=way: f"{way}: {text}")


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_without_numbers(kind):
    stream = stream_of(kind, **stream_class(kind).examples[0]).to("meta")
    state, x = stream.start(torch.zeros(2, 5, stream.embedding_dim, device="meta"))
    for site, outline in enumerate(stream.outlines[1:], start=1):
        state, x = stream.exchange(site, state, torch.zeros(2, 5, *outline.written, device="meta"))
    assert x.shape == (2, 5, stream.output_dim)
    assert x.is_meta


def starts_plain(kind):
    fields = {"embedding_dim": DIM} if kind == "data_lane" else stream_class(kind).examples[0]
    return stream_of(kind, **fields).spec.starts_plain


@pytest.mark.parametrize(("norm", "scale"), [("rmsnorm", 1.0), ("layernorm", 0.01), (None, 0.01)])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if starts_plain(kind)])
def test_a_plain_start_is_a_plain_residual(kind, scale, norm):
    """x + branch(norm(x)), small numbers too, whoever has the norms."""
    stream = stream_of(kind, norm=norm, **({"embedding_dim": DIM} if kind == "data_lane" else {}))

    def normed(x):
        return F.layer_norm(x, (DIM,), eps=1e-6) if norm == "layernorm" else F.rms_norm(x, (DIM,), eps=1e-6)

    branches = branches_of(stream)
    with torch.no_grad():
        for parameter in branches.parameters():
            parameter.mul_(scale)
    embedding = (scale * vectors(stream, dtype=torch.float32)).requires_grad_()
    x = embedding
    for branch in branches:
        x = x + branch(normed(x))
    own = (
        branches
        if norm
        else [lambda x, b=b: b(tuple(map(normed, x)) if isinstance(x, tuple) else normed(x)) for b in branches]
    )
    got, tensors = loop(stream, embedding, own), [embedding, *branches.parameters()]
    if norm is None:
        got = normed(got)
    x = normed(x)
    assert ((got - x).norm() / x.norm()).item() < 1e-6
    for a, b in zip(gradients(got, tensors), gradients(x, tensors), strict=True):
        assert ((a - b).norm() / b.norm().clamp(min=1e-30)).item() < 1e-5


def refuses(kind, sites, layer_size):
    """Where a design has no place for such branches."""
    if kind == "altup":
        return sites != 4
    if kind == "delta_attn_res":
        return sites == 1
    if isinstance(sites, int):
        return kind in NAMED or (kind == "hier_agg" and sites <= layer_size)
    return kind in ("depth_lstm", "matrix_maps")


@pytest.mark.parametrize(
    ("sites", "layer_size", "norm"),
    [
        (1, 2, "rmsnorm"),
        (4, 2, None),
        (7, 3, "layernorm"),
        (["attention", "mlp", "branch", "attention", "mlp"], 3, None),
    ],
    ids=["one", "norms outside", "three a layer", "named"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_sites_and_branches_a_layer(kind, sites, layer_size, norm):
    """Counted by the closed formulas, and every parameter has a gradient away from the start; or one sentence."""
    fields = stream_class(kind).examples[0]
    if refuses(kind, sites, layer_size):
        with pytest.raises(UserError, match=r"^[^.]*(\. \w[^.]*)?\.$|\.\.\."):
            residual(kind, DIM, sites, layer_size=layer_size, norm=norm, heads=HEADS, **fields)
        return
    if kind == "matrix_maps" and norm is None:
        fields = {**fields, "norms": "state"}
    stream = residual(kind, DIM, sites, layer_size=layer_size, norm=norm, heads=HEADS, **fields)
    count = sum(parameter.numel() for parameter in stream.parameters())
    assert count == type(stream.core).parameter_formula(stream.config)
    branches = branches_of(stream).double()
    out = loop(shaken(stream), vectors(stream), branches)
    assert out.shape == (2, 5, stream.output_dim)
    if count and sites != 1:  # behind a single write some weights of a history have nothing to weigh
        assert all(gradient is not None for gradient in gradients(out, list(stream.parameters())))
