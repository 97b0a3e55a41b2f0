"""ShortSWA: attention over the last w tokens at the entry of every layer, with any stream."""

import math

import pytest
import torch
import torch.nn.functional as F

from models import tiny
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model
from widestream.testing import CHECKS

STREAMS = [{"kind": "vector"}, {"kind": "matrix", "key_dim": 6}]


@pytest.mark.parametrize("check", [check for check in CHECKS if check not in ("depth", "round_trip")])
@pytest.mark.parametrize("stream", STREAMS, ids=["dense", "bare"])
def test_contract(stream, check):
    CHECKS[check](stream, {"short_swa": 3})


@pytest.mark.parametrize("positions", ["alibi", "rotary", "none"])
@pytest.mark.parametrize("stream", STREAMS, ids=["dense", "bare"])
def test_contract_with_other_positions(stream, positions):
    for check in ("causality", "documents", "decoding"):
        CHECKS[check](stream, {"short_swa": 3, "positions": positions})


def test_block_equations():
    """S = X + ShortSWA(norm(X); w), A = S + attention(norm(S)), X' = A + MLP(norm(A)), token by token."""
    model = build_model(tiny(num_heads=1, num_layers=1, positions="none", short_swa=3), seed=1)
    model.double()
    for block in model.blocks[:2]:
        block.core.upcast = False  # it would round to float32
    tokens = torch.randint(50, (1, 9))

    def attend(block, x, window):
        q, k, v = F.linear(x, block.qkv).chunk(3, dim=-1)
        out = []
        for t in range(len(x)):
            window_of_t = slice(max(0, t - window + 1), t + 1)
            out.append((q[t] @ k[window_of_t].T / math.sqrt(8)).softmax(-1) @ v[window_of_t])
        return F.linear(torch.stack(out), block.out)

    def norm(x):
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    X = model.embedding.token[tokens[0]]
    S = X + attend(model.blocks[0], norm(X), 3)
    A = S + attend(model.blocks[1], norm(S), 9)
    mlp = model.blocks[2]
    out = A + F.gelu(norm(A) @ mlp.w1.T, approximate="tanh") @ mlp.w2.T
    torch.testing.assert_close(model(tokens)[0], norm(out), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stream", ["vector", "matrix"])
def test_a_window_as_long_as_the_text_is_a_second_full_attention(stream):
    tokens = torch.randint(50, (2, 20))
    short, full = (build_model(tiny(stream, short_swa=w)) for w in (3, 20))
    assert not torch.allclose(short(tokens), full(tokens), atol=1e-3)
    longer = build_model(tiny(stream, short_swa=24))
    torch.testing.assert_close(full(tokens), longer(tokens))


def test_reach_is_one_window_per_layer():
    """With attention over everything silenced, a token reaches w - 1 tokens further per layer."""
    model = build_model(tiny(short_swa=3))
    with torch.no_grad():
        for block, module in zip(model.layout, model.blocks, strict=True):
            if block.kind == "attention" and block.window is None:
                module.out.zero_()
    tokens = torch.randint(1, 50, (1, 20))
    changed = tokens.clone()
    changed[0, 6] = 0
    moved = (model(tokens) - model(changed)).abs().amax(dim=-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [6, 7, 8, 9, 10]


def test_depth_scaling_counts_the_blocks():
    for short_swa, blocks in ((None, 4), (3, 6)):
        dense = meta_model(tiny(short_swa=short_swa)).roles()
        bare = meta_model(tiny("matrix", short_swa=short_swa)).roles()
        assert dense["blocks.0.out"].std == pytest.approx(1 / math.sqrt(32 * blocks))
        assert bare["stream.write_1"].std == pytest.approx(1 / math.sqrt(4 * blocks))


def test_refused():
    with pytest.raises(UserError, match=r"model\.short_swa is 0"):
        tiny(short_swa=0)
