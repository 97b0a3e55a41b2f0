"""Processes that share the tokens of a window train as one process does."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import ranks
from models import tiny
from processes import documents_batch, gradients_of_shared_windows, stir, train_quickly
from ranks import rows, train_on
from tiny_runs import tiny_config
from widestream.model.build import build_model
from widestream.model.depth import Eager, Fused, Rebuilt, Recomputed, RecomputedBlocks
from widestream.recipe.train import ParallelConfig
from widestream.streams import OWN_KINDS, stream_class

ALIBI, ROTARY, LEARNED = ({"positions": kind} for kind in ("alibi", "rotary", "learned"))
VECTOR, MATRIX = {"kind": "vector"}, {"kind": "matrix", "key_dim": 6}
MODELS = {
    "learned": tiny(VECTOR, **LEARNED),
    "rotary": tiny(VECTOR, **ROTARY),
    "rotary, not every layer": tiny(VECTOR, **ROTARY, rotary_skip_every=2),
    "alibi": tiny(VECTOR, **ALIBI),
    "matrix, alibi": tiny(MATRIX, **ALIBI),
    "no documents": tiny(VECTOR, **ROTARY, document_mask=False),
    "alibi, no documents": tiny(VECTOR, **ALIBI, document_mask=False),
    "window within a part": tiny(VECTOR, **ROTARY, attention_window=5),
    "window beyond a part": tiny(MATRIX, **ALIBI, attention_window=17, full_attention_every=2),
    "grouped queries": tiny(VECTOR, **ROTARY, num_kv_heads=2),
    "one head of keys": tiny(VECTOR, **ROTARY, num_kv_heads=1),
    "norms of queries and keys": tiny(VECTOR, **ROTARY, qk_norm={"over": "head"}),
    "soft cap": tiny(VECTOR, **ROTARY, attention_soft_cap=3.0),
    "upcast": tiny(VECTOR, **LEARNED, upcast_attention=True),
    "tied head": tiny(VECTOR, **ROTARY, tied_head=True),
    "value residual": tiny(MATRIX, **ROTARY, value_residual="learned"),
    "convolution of heads": tiny(VECTOR, **ROTARY, attention_convolution="qkv", attention_convolution_taps=4),
    "token before": tiny(VECTOR, **ROTARY, token_before="dense"),
    "smear": tiny(MATRIX, **ROTARY, token_before="smear"),
    "balance of experts": tiny(VECTOR, **ROTARY, moe={"num_experts": 4, "top_k": 2, "balance": "loss"}),
    "short windows": tiny(MATRIX, short_swa=4),
}
WAYS = {
    "fused": (tiny(MATRIX), Fused("any"), "sdpa"),
    "rebuilt": (tiny(MATRIX), Rebuilt(anchors=1), "sdpa"),
    "replayed": (tiny({"kind": "hyper_connections"}), Rebuilt(anchors=1), "sdpa"),
    "undone, with kernels over tokens": (
        tiny({"kind": "deep_delta", "compressor": "token", "expand_embedding": True}), Rebuilt(anchors=1), "sdpa"
    ),
    "layers computed again": (tiny(MATRIX, **ROTARY), Recomputed((range(1, 3), range(3, 5))), "sdpa"),
    "blocks computed again": (tiny(MATRIX, **ROTARY), Rebuilt(loop=RecomputedBlocks(Eager())), "sdpa"),
    "compiled attention": (tiny(VECTOR, **ALIBI), None, "fused"),
}  # fmt: skip
KINDS = {
    f"{kind} {number}": tiny({"kind": kind, **changes})
    for kind in OWN_KINDS
    for number, changes in enumerate(stream_class(kind).examples)
}


@pytest.mark.parametrize("group", ["models", "ways", pytest.param("kinds", marks=pytest.mark.drill)])
def test_gradients_of_shared_windows_are_those_of_whole_ones(group, tmp_path):
    check_gradients(2, group, tmp_path)


@pytest.mark.drill
@pytest.mark.parametrize("group", ["models", "ways"])
def test_so_are_those_of_four(group, tmp_path):
    """Parts are six tokens long, and two processes need the same heads of keys."""
    check_gradients(4, group, tmp_path)


def check_gradients(size, group, tmp_path):
    """Losses to 1e-6, gradients to 1e-5 of their norms, of all models of a group."""
    plain = {name: (config, None, "sdpa") for name, config in (MODELS if group == "models" else KINDS).items()}
    cases = WAYS if group == "ways" else plain
    path = tmp_path / "gradients.pt"
    assert ranks.run(gradients_of_shared_windows, cases, path, size=size) == [0] * size
    found = torch.load(path)
    for name, (config, depth, attention) in cases.items():
        model = build_model(config, 3, depth=depth, attention=attention)
        stir(model)
        loss = model.loss(*documents_batch(config))
        loss.total.backward()
        losses = torch.stack((loss.total.detach(), loss.cross_entropy, loss.balance))
        assert_close(found[name].pop("loss"), losses, rtol=1e-6, atol=0, msg=name)
        # 1e-7 of all of them: a bias whose gradients cancel is known no better.
        expected = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
        assert found[name].keys() == expected.keys()
        least = 1e-7 * torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        for key, gradient in expected.items():
            assert (found[name][key] - gradient).norm() <= 1e-5 * gradient.norm() + least, (name, key)
