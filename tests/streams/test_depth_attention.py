"""Attention over the depth: its equations, and its duality with attention over the last tokens."""

import math

import pytest
import torch
import torch.nn.functional as F

from models import tiny
from widestream.blocks.context import make_context
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model
from widestream.streams.depth.depth_attention import attend_back
from widestream.testing.models import random_model

KIND = "depth_attention"


def normed(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def reference(model, tokens, window, entries):
    """The equations, block by block and token by token; `entries` are the blocks (from 0) with a read in front."""
    s, window = model.stream, window or 1000
    states = [[] for _ in tokens[0]]  # n^i of every token
    x = (model.embedding.token[tokens] + model.embedding.position[: tokens.shape[1]])[0]
    context = make_context(
        model.config, torch.arange(tokens.shape[1]), tokens * 0, windows=[None, model.config.short_swa]
    )
    for site, block in enumerate([*model.blocks, None]):
        h = x.clone()
        if site in entries:
            for t, past in enumerate(states):
                past.append(normed(h[t]))
                if len(past) == 1:
                    continue
                W_Q, W_K, W_V = (getattr(s, f"W_{name}_{site}") for name in "QKV")
                q = W_Q @ past[-1]
                logits = torch.stack([q @ (W_K @ n) / math.sqrt(len(q)) for n in past[-window:]])
                x[t] = h[t] + sum(a * (W_V @ n) for a, n in zip(logits.softmax(0), past[-window:], strict=True))
        u = normed(x) * s.norms[site].gain
        if block is None:
            return u
        x = x + block({"x": u[None]}, context)[0]
    raise AssertionError


@pytest.mark.parametrize("short_swa", [None, 2])
@pytest.mark.parametrize(
    "stream",
    [
        {"kind": KIND},
        {"kind": KIND, "window": 2},
        {"kind": KIND, "window": 3, "key_dim": 5},
        {"kind": KIND, "every": "layer"},
        {"kind": KIND, "every": "layer", "window": 2},
        {"kind": "vertical_attention"},
    ],
    ids=lambda stream: "-".join(str(value) for value in stream.values()),
)
def test_equations(stream, short_swa):
    model = random_model(stream, {"short_swa": short_swa, "upcast_attention": False}).double()
    per_layer = model.config.blocks_per_layer
    every = stream.get("every", "layer" if stream["kind"] == "vertical_attention" else "sublayer")
    entries = range(0, 3 * per_layer, per_layer if every == "layer" else 1)
    tokens = torch.randint(50, (1, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference(model, tokens, stream.get("window"), entries)
        torch.testing.assert_close(model(tokens)[0], expected, rtol=1e-9, atol=1e-9)


D, WINDOW = 16, 3


@pytest.fixture
def short_swa():
    """The ShortSWA block of a model: one head as wide as the stream, no positions, W_O the identity."""
    sizes = {"num_heads": 1, "head_dim": D, "positions": "none", "inverse_layer_scaling": False, "short_swa": WINDOW}
    block = build_model(tiny(**sizes), seed=1).double().blocks[0]
    block.core.upcast = False  # it would round to float32
    with torch.no_grad():
        block.out.copy_(torch.eye(D))

    def attend(x):
        """[N, T, D] -> [N, T, D]."""
        config = tiny(**sizes)
        return block({"x": x}, make_context(config, torch.arange(x.shape[1]), windows=[WINDOW]))

    return attend, block.qkv.detach().chunk(3)


@pytest.mark.parametrize("axis", [1, 2], ids=["sequence", "depth"])
def test_duality(short_swa, axis):
    """One function along the tokens and along the depth, and along either it is the model's ShortSWA."""
    attend, (W_Q, W_K, W_V) = short_swa
    h = torch.randn(2, 9, 6, D, dtype=torch.float64)  # batch, tokens, depth, width
    query = F.linear(F.linear(h, W_Q), W_K.T)
    read = F.linear(attend_back(query, h, axis, WINDOW, 1 / math.sqrt(D)), W_V)
    rows = h.movedim(axis, 2)  # the ordered axis last but one, as a block has it
    expected = attend(rows.flatten(0, 1)).view(rows.shape).movedim(2, axis)
    torch.testing.assert_close(read, expected, rtol=1e-10, atol=1e-10)


def test_duality_of_stream_and_block(short_swa):
    """The stream's reads at depth 1, 2, ... of one token are what the block puts out at tokens 1, 2, ..."""
    attend, weights = short_swa
    config = tiny({"kind": KIND, "window": WINDOW, "key_dim": D}, num_heads=1, head_dim=D, num_layers=4)
    stream = build_model(config).stream.double()
    with torch.no_grad():
        for name, parameter in stream.named_parameters(recurse=False):
            parameter.copy_(weights["QKV".index(name[2])])
    trajectory = torch.randn(2, 5, 8, D, dtype=torch.float64)  # h^l of every token: batch, tokens, depth, width
    state, reads = None, []
    for site, h in enumerate(trajectory.unbind(2)):
        state = stream.write(site, state, h if state is None else h - state.x)
        reads.append(state.x - h)
    expected = attend(normed(trajectory).flatten(0, 1)).view(trajectory.shape)
    torch.testing.assert_close(torch.stack(reads[1:], dim=2), expected[:, :, 1:], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("window", "kept"), [(None, 6), (4, 4)])
def test_history(window, kept):
    """The state never keeps more sources than the spec says."""
    config = tiny({"kind": KIND, "window": window}, num_layers=3)
    stream = build_model(config).stream
    state, longest = None, 0
    for site in range(7):
        state = stream.write(site, state, torch.randn(1, 2, 32))
        longest = max(longest, len(state.past))
    assert longest == kept
    assert type(stream).spec(config).history_size == kept * 32


def test_mup():
    """Keys have a base size of their own: logits are scaled by 1/sqrt(d_k) there, and by 1/d_k beyond."""
    mup = {"init": {"scheme": "mup"}, "mup": {"base_key_dim": 4, "base_width": 8}}
    model = meta_model(tiny({"kind": KIND, "key_dim": 16}, **mup))
    assert model.stream.scale == pytest.approx(2 / 16)
    assert model.roles()["stream.W_Q_1"].lr_factor == model.roles()["stream.W_V_1"].lr_factor == 8 / 32


def test_counts_at_the_size_of_gpt2():
    """L = 12, D = 768, d_k = 64: 11 reads per layer or 23 per block, of D^2 + 2 D d_k weights each."""
    sizes = {"num_layers": 12, "num_heads": 12, "head_dim": 64, "mlp_dim": 3072}
    plain = sum(p.numel() for p in meta_model(tiny(**sizes)).stream.parameters())
    for stream, reads in (("vertical_attention", 11), (KIND, 23)):
        model = meta_model(tiny({"kind": stream}, **sizes))
        assert sum(p.numel() for p in model.stream.parameters()) - plain == reads * 688_128


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kind": KIND, "window": 1}, "window is 1; it must be at least 2"),
        ({"kind": KIND, "key_dim": 0}, "key_dim is 0; it must be at least 1"),
        ({"kind": "vertical_attention", "key_dim": 0}, "key_dim is 0; it must be at least 1"),
    ],
)
def test_refused(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny(fields)
