"""Convolutions of queries, keys and values over tokens: the equation, the start, the contract, and what is refused."""

import pytest
import torch
import torch.nn.functional as F

from models import tiny
from widestream.blocks.attention import BareAttention
from widestream.blocks.context import make_context
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.testing import CHECKS
from widestream.testing.models import tokens_of

STREAMS = {
    "vector": {"kind": "vector"},
    "matrix": {"kind": "matrix", "key_dim": 6},
    "matrix_dense": {"kind": "matrix_dense", "key_dim": 6},
    "matrix_maps": {"kind": "matrix_maps", "key_dim": 6},
    "mhc": {"kind": "mhc"},
}
MODERN = {
    "norm": "rmsnorm", "positions": "rotary", "qk_norm": {"over": "head"}, "num_kv_heads": 2, "attention_bias": "qkv",
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("stream", ["vector", "matrix"])
def test_contract(stream, check):
    CHECKS[check](STREAMS[stream], {"attention_convolution": "kv"})


@pytest.mark.parametrize("check", ["parameter_count", "gradients", "cached_documents", "cost", "reversible"])
@pytest.mark.parametrize("stream", STREAMS)
def test_contract_on_modern_blocks(stream, check):
    CHECKS[check](STREAMS[stream], MODERN | {"attention_convolution": "qkv", "attention_convolution_taps": 4})


@pytest.mark.parametrize("form", ["kv", "qkv"])
@pytest.mark.parametrize("stream", STREAMS)
def test_it_starts_as_the_model_without(stream, form):
    tokens = tokens_of(2, 20)
    plain, convolved = (build_model(tiny(STREAMS[stream], attention_convolution=c), seed=1) for c in ("none", form))
    torch.testing.assert_close(convolved(tokens), plain(tokens))
    convolved.loss(tokens, tokens_of(2, 20, seed=1)).total.backward()
    taps = {name: p.grad for name, p in convolved.named_parameters() if ".taps_" in name}
    assert len(taps) == len(form) * convolved.config.num_layers
    assert all(grad[1:].abs().sum() > 0 for grad in taps.values())


def test_equation():
    """k'_t = sum_j c_j k_{t-j}, number by number, as torch's grouped convolution has it; v likewise, q as it was."""
    config = tiny("matrix", attention_convolution="kv", attention_convolution_taps=3)
    block, plain = BareAttention(config, 0), BareAttention(tiny("matrix"), 0)
    q, k, v = torch.randn(3, 2, 9, 4, 8).unbind()
    with torch.no_grad():
        for taps in (block.taps_k, block.taps_v):
            taps.normal_()

    def convolved(x, taps):
        weights = taps.flatten(1).T.flip(-1)[:, None]  # [H K, 1, J], the oldest token first
        y = F.conv1d(F.pad(x.flatten(2).mT, (2, 0)), weights, groups=32)
        return y.mT.unflatten(-1, (4, 8))

    context = make_context(config, torch.arange(9))
    ours = block({"q": q, "k": k, "v": v}, context)
    theirs = plain({"q": q, "k": convolved(k, block.taps_k), "v": convolved(v, block.taps_v)}, context)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("taps", [0, 1, 65])
def test_other_numbers_of_taps_are_refused(taps):
    with pytest.raises(UserError, match=rf"attention_convolution_taps is {taps}; it must be 2 to 64"):
        tiny("vector", attention_convolution="kv", attention_convolution_taps=taps)
