"""Streams that weigh their history by content: Attention Residuals, MUDDFormer, DeepCrossAttention."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models import tiny
from widestream.blocks.context import make_context
from widestream.blocks.roles import Roles
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model
from widestream.recipe import build
from widestream.recipe.model import ModelConfig
from widestream.streams import stream_class
from widestream.testing import CHECKS
from widestream.testing.models import tokens_of

D, L = 32, 3


def drive(settings, **changes):
    """A float64 stream with random parameters, what is written, and what its readers got: [(inputs, written)]."""
    config = tiny(settings, num_layers=L, **changes)
    stream: Any = stream_class(config.stream.kind)(config, Roles(config)).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stream.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    written = torch.randn(2 * L + 1, 1, 2, D, generator=generator, dtype=torch.float64)
    state, inputs = stream.exchange(0, stream.empty(make_context(config, torch.arange(2))), (written[0], None))
    reads = [inputs]
    for site in range(1, 2 * L + 1):
        state, inputs = stream.exchange(site, state, written[site])
        reads.append(inputs)
    return stream, written, reads


def normed(norm, x):
    return F.layer_norm(x, (D,), norm.gain, None, norm.eps)


def rms(x):
    return x / math.sqrt((x @ x).item() / D + 1e-6)


def assert_same(result, expected):
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def stream_parameters(stream):
    """Numbers under the stream's own heading, norms left out, at the size of GPT-2 small."""
    sizes = {"vocab_size": 50257, "context": 1024, "num_layers": 12, "num_heads": 12, "head_dim": 64, "mlp_dim": 3072}
    model = meta_model(build(ModelConfig, sizes | {"stream": stream}, "model"))
    roles = model.roles()
    return {name: p.shape for name, p in model.named_parameters() if roles[name].part == "stream"}


def numbers(shapes):
    return sum(shape.numel() for shape in shapes.values())


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6, 1000])
def test_attention_residuals_token_by_token(size):
    """Eqs. 1 and 2, with groups made by counting; group size 1 is the full form, 6 = 2 L is one group."""
    stream, written, reads = drive({"kind": "attn_res", "group_size": size})
    for reader in range(2 * L + 1):
        groups = [written[0]]
        for start in range(1, reader + 1, size):
            groups.append(written[start : min(start + size, reader + 1)].sum(0))
        if size == 1:
            assert len(groups) == reader + 1
        for t in range(2):
            sources = [group[0, t] for group in groups]
            scores = [stream.queries[reader] @ (stream.key_gains[reader] * rms(f)) for f in sources]
            total = sum(math.exp(score) for score in scores)
            h = len(sources) * sum(math.exp(score) / total * f for score, f in zip(scores, sources, strict=True))
            assert_same(reads[reader]["x"][0, t], normed(stream.norms[reader], h))


def test_one_group_is_the_plain_stream_with_the_embedding_apart():
    """N = 1: the readers of the middle see alpha f_0 + (1 - alpha) (sum of all outputs), twice, alpha from content."""
    stream, written, reads = drive({"kind": "attn_res", "group_size": 2 * L})
    outputs = written[1:].sum(0)
    key = stream.queries[-1] * stream.key_gains[-1]
    alpha = torch.sigmoid(torch.stack([key @ (rms(written[0][0, t]) - rms(outputs[0, t])) for t in range(2)]))[:, None]
    assert_same(reads[-1]["x"][0], normed(stream.norms[-1], 2 * (alpha * written[0][0] + (1 - alpha) * outputs[0])))


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_zero_queries_are_the_plain_function_and_gradients(size, norm):
    """[EQ-10..12] Reads are sums of all sources, and these the plain stream's."""
    CHECKS["plain_start"]({"kind": "attn_res", "group_size": size}, {"norm": norm})
    stream, written, _ = drive({"kind": "attn_res", "group_size": size}, norm=norm)
    with torch.no_grad():
        stream.queries.zero_()
        for norm_ in stream.norms:
            norm_.gain.fill_(1.0)
    state = stream.write(0, None, written[0])
    for site in range(1, 2 * L + 1):
        state = stream.write(site, state, written[site])
        plain = written[: site + 1].sum(0)
        assert_same(sum(state.sources), plain)
        assert_same(stream.read(site, state)["x"], stream.norms[site](plain))


def test_mudd_token_by_token():
    """Eqs. 1 to 3 for every token, way and source."""
    stream, written, reads = drive({"kind": "mudd"})
    for t in range(2):
        past = [written[0][0, t]]
        ways = past * 4
        for layer in range(L):
            norms = (stream.norms[2 * layer], stream.key_norms[layer], stream.value_norms[layer])
            for role, norm, x in zip("qkv", norms, ways[:3], strict=True):
                assert_same(reads[2 * layer][role][0, t], normed(norm, x))
            h = ways[3] + written[2 * layer + 1][0, t]
            assert_same(reads[2 * layer + 1]["x"][0, t], normed(stream.norms[2 * layer + 1], h))
            past.append(h + written[2 * layer + 2][0, t])
            w1, w2, b = (stream.get_parameter(f"{name}_{layer}") for name in ("w1", "w2", "b"))
            u = w1 @ rms(past[-1])
            A = (w2 @ (u * 0.5 * (1 + torch.erf(u / math.sqrt(2))))).reshape(-1, layer + 2) + b
            ways = [sum(A[c, j] * past[j] for j in range(layer + 2)) for c in range(4 if layer < L - 1 else 1)]
        assert_same(reads[-1]["x"][0, t], normed(stream.norms[-1], ways[0]))


def test_static_mudd_does_not_look_at_content():
    """W_2 = 0 leaves b: reads are linear in what was written."""
    for static in (True, False):
        stream, written, _ = drive({"kind": "mudd"})
        with torch.no_grad():
            for layer in range(L):
                stream.get_parameter(f"w2_{layer}").mul_(not static)
        ends = []
        for sign in (1, -1, 0):
            y = written.clone()
            y[2] = sign * y[2]
            state = stream.write(0, None, y[0])
            for site in range(1, 2 * L + 1):
                state = stream.write(site, state, y[site])
            ends.append(state.ways[0])
        assert torch.allclose(ends[0] + ends[1], 2 * ends[2], rtol=1e-8) == static


def test_mudd_mlps_grow_with_depth_at_equal_size():
    config = tiny({"kind": "mudd", "widen_mlps": True}, num_layers=5)
    widths = [b.num_neurons for b in stream_class("mudd").blocks(config) if b.kind == "mlp"]
    assert widths == [20, 30, 40, 50, 60]  # 40 (l/4 + 1/2)
    one = tiny({"kind": "mudd", "widen_mlps": True}, num_layers=1)
    assert [b.num_neurons for b in stream_class("mudd").blocks(one)] == [None, None]
    CHECKS["plain_start"]({"kind": "mudd", "widen_mlps": True}, {"num_layers": 1})


@pytest.mark.parametrize("form", ["dca", "v3", "v2", "v1"])
@pytest.mark.parametrize("recent", [None, 1, 2, 5])
def test_dca_token_by_token(form, recent):
    """Eqs. 1 to 5; k-DCA adds up the middle of the history."""
    stream, written, reads = drive({"kind": "dca", "form": form, "recent": recent})

    def sums(layer, history):
        if recent is not None and len(history) > recent + 2:
            middle = history[1 : len(history) - recent]
            history = [history[0], sum(middle), *history[-recent:]]
        b = stream.get_parameter(f"b_{layer}")
        gate = [[0.0] * len(history)] * len(b)
        if form in ("v3", "dca"):
            gate = [[max(0.0, (w @ f).item()) for f in history] for w in stream.get_parameter(f"w_{layer}")]
        return [sum((b[c, j] + gate[c][j]) * f for j, f in enumerate(history)) for c in range(len(b))]

    for t in range(2):
        history = [written[0][0, t]]
        for layer in range(L):
            ways, site = sums(layer, history), 2 * layer
            assert len(ways) == (4 if form == "dca" else 1)
            if form == "dca":
                norms = (stream.norms[site], stream.key_norms[layer], stream.value_norms[layer])
                for role, norm, x in zip("qkv", norms, ways[:3], strict=True):
                    assert_same(reads[site][role][0, t], normed(norm, x))
            else:
                assert_same(reads[site]["x"][0, t], normed(stream.norms[site], ways[0]))
            attended, computed = written[site + 1][0, t], written[site + 2][0, t]
            assert_same(reads[site + 1]["x"][0, t], normed(stream.norms[site + 1], ways[-1] + attended))
            history.append(attended + computed)
        assert_same(reads[-1]["x"][0, t], normed(stream.norms[-1], sums(L, history)[0]))


def test_gates_leave_zero():
    """ReLU's usual gradient at 0 would hold w there for ever."""
    model = build_model(tiny({"kind": "dca", "form": "v3"}))
    model.loss(tokens_of(2, 20), tokens_of(2, 20, seed=1)).total.backward()
    for layer in (1, 2):
        gradient = model.stream.get_parameter(f"w_{layer}").grad
        assert gradient is not None
        assert gradient.norm() > 1e-5


def test_parameters_at_the_size_of_gpt2_small():
    """The table's counts, norms left out."""
    assert numbers(stream_parameters({"kind": "attn_res"})) == 38_400
    assert numbers(stream_parameters({"kind": "attn_res", "group_size": 3})) == 38_400
    assert numbers(stream_parameters({"kind": "mudd"})) == 287_861
    assert numbers(stream_parameters({"kind": "mudd", "round_hidden": True})) == 610_689
    # A full DCA: four sums of kind v3 in front of every layer, one in front of the head.
    full = stream_parameters({"kind": "dca"})
    assert numbers(full) == 768 * (sum(4 * (n + 1) for n in range(1, 13)) + 14) == 287_232
    # The literature's estimate: three sums behind every layer, the last one too, none in front of the first.
    v3 = stream_parameters({"kind": "dca", "form": "v3"})
    behind = {name: shape for name, shape in v3.items() if not name.endswith("_0")}
    assert 3 * numbers(behind) == 235_008
    assert numbers(stream_parameters({"kind": "dca", "form": "v1"})) == sum(range(1, 14))


def test_history_is_as_long_as_declared():
    """Beside the newest source, at the end of the depth."""
    for settings, sources in (
        ({"kind": "attn_res"}, 7), ({"kind": "attn_res", "group_size": 4}, 3), ({"kind": "mudd"}, 4),
        ({"kind": "dca"}, 4), ({"kind": "dca", "recent": 1}, 3),
    ):  # fmt: skip
        stream, written, _ = drive(settings)
        state = stream.write(0, None, written[0])
        for site in range(1, 2 * L + 1):
            state = stream.write(site, state, written[site])
        assert len(state[0]) == sources
        assert stream.spec(tiny(settings, num_layers=L)).history_size == (sources - 1) * D


@pytest.mark.parametrize("stream", [{"kind": "attn_res", "group_size": 0}, {"kind": "dca", "recent": 0}])
def test_settings_out_of_range(stream):
    with pytest.raises(UserError, match="at least 1"):
        tiny(stream)
