"""Sequences side by side: each one's logits are those that it has alone, whoever comes and goes."""

import pytest
import torch

from models import tiny
from widestream.blocks.cache import KVCache
from widestream.generate import Batch, cast_weights
from widestream.generate import batch as room
from widestream.model.build import build_model
from widestream.streams import OWN_KINDS, stream_class

KIND_SETTINGS = [{"kind": kind, **example} for kind in OWN_KINDS for example in stream_class(kind).examples]
BLOCKS = [
    {"positions": "rotary"},
    {"positions": "alibi"},
    {"positions": "none"},
    {"value_residual": "shared", "stream": {"kind": "vector"}},
    {"moe": {"num_experts": 4, "top_k": 2}, "activation": "swiglu"},
    {"attention_window": 5, "positions": "rotary"},
    {"document_mask": False},
    {"num_kv_heads": 2},
    {"attention_convolution": "qkv", "positions": "rotary"},
]


def alone(model, tokens):
    """Logits [T, V] of one sequence."""
    with torch.no_grad():
        return model.logits(model(torch.tensor([tokens])))[0]


def drawn(length, seed):
    return torch.randint(50, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def follow(model):
    """Three sequences of unlike lengths, of which one ends early and one comes late."""
    texts = [drawn(20, 1), drawn(14, 2), drawn(17, 3)]
    starts = [2, 9, 1]
    batch = Batch(model)
    read = [batch.read(text[:start]) for text, start in zip(texts, starts, strict=True)]
    for text, start, (_, hidden) in zip(texts, starts, read, strict=True):
        torch.testing.assert_close(batch.logits(hidden), alone(model, text[:start]), rtol=1e-4, atol=1e-5)
    batch.change([], [read[0][0], read[1][0]])
    running, at = [0, 1], list(starts)
    while running:
        logits = batch.step([texts[i][at[i]] for i in running])
        for i, own in zip(running, logits, strict=True):
            at[i] += 1
            torch.testing.assert_close(own, alone(model, texts[i][: at[i]])[-1], rtol=1e-4, atol=1e-5)
        kept = [place for place, i in enumerate(running) if at[i] < len(texts[i])]
        late = at[0] == 6
        batch.change(kept, [read[2][0]] if late else [])
        running = [running[place] for place in kept] + ([2] if late else [])
    assert len(batch) == 0


@pytest.mark.parametrize("stream", KIND_SETTINGS, ids=str)
def test_every_stream(stream, monkeypatch):
    monkeypatch.setattr(room, "SPARE", 3)  # so that the cache is full at times
    follow(build_model(tiny(stream), seed=1).eval())


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_kinds_of_blocks(blocks, monkeypatch):
    monkeypatch.setattr(room, "SPARE", 3)
    follow(build_model(tiny(**{"stream": "matrix", **blocks}), seed=1).eval())


def test_a_prompt_that_was_read_once_goes_on_in_several_ways():
    model = build_model(tiny("matrix"), seed=1).eval()
    batch = Batch(model)
    cache, _ = batch.read([1, 2, 3])
    batch.change([], [cache] * 3)
    logits = batch.step([4, 5, 6])
    for own, token in zip(logits, (4, 5, 6), strict=True):
        torch.testing.assert_close(own, alone(model, [1, 2, 3, token])[-1], rtol=1e-4, atol=1e-5)


def test_sequences_that_have_left_take_no_memory():
    batch = Batch(build_model(tiny("vector")).eval())
    batch.change([], [batch.read([1] * 20)[0], batch.read([1, 2])[0]])
    batch.change([1])
    assert isinstance(batch._cache, KVCache)
    assert (batch._cache.rows, batch._cache.capacity) == (1, 2 + room.SPARE)
    batch.change([])
    assert batch._cache is None


def test_in_bf16_logits_are_near():
    model = build_model(tiny("matrix"), seed=1).eval()
    expected = alone(model, [1, 2, 3, 4])[-1]
    cast_weights(model, "bf16")
    batch = Batch(model, "bf16")
    batch.change([], [batch.read([1, 2, 3])[0], batch.read([3])[0]])
    assert (batch.step([4, 4])[0] - expected).abs().max() < 0.05 * expected.abs().max()
