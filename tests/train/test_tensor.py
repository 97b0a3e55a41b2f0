"""Processes that share the heads and neurons of blocks train as one process does."""

import pytest
import torch
from torch.testing import assert_close

import ranks
from models import tiny
from processes import documents_batch, shared_gradients, stir
from widestream.model.build import build_model
from widestream.model.depth import Eager, Rebuilt, Recomputed, RecomputedBlocks
from widestream.train.shards import Layout

ALIBI, ROTARY, LEARNED = ({"positions": kind} for kind in ("alibi", "rotary", "learned"))
VECTOR, ATTN_RES = {"kind": "vector"}, {"kind": "attn_res"}
EVERYTHING = {
    **ROTARY, "num_kv_heads": 2, "activation": "swiglu", "mlp_bias": True, "attention_bias": "all",
    "qk_norm": {"over": "head"}, "value_residual": "learned", "attention_convolution": "qkv", "norm_place": "both",
    "tied_head": True,
}  # fmt: skip
MODELS = {
    "learned positions": tiny(VECTOR, **LEARNED),
    "alibi, grouped queries": tiny(VECTOR, **ALIBI, num_kv_heads=2),
    "soft cap, window": tiny(VECTOR, **ROTARY, attention_soft_cap=3.0, attention_window=5, full_attention_every=2),
    "biases of attention and MLP": tiny(VECTOR, **ROTARY, attention_bias="all", mlp_bias=True),
    "a gain for each head": tiny(VECTOR, **ROTARY, qk_norm={"over": "head", "gain": "head"}),
    "gated values": tiny(VECTOR, **ROTARY, value_residual="gated", attention_bias="qkv"),
    "shared values": tiny(VECTOR, **ROTARY, value_residual="shared"),
    "norms behind blocks": tiny(VECTOR, **ROTARY, norm_place="after"),
    "everything": tiny(VECTOR, **EVERYTHING),
    "geglu, token before": tiny(ATTN_RES, **ROTARY, activation="geglu", token_before="dense"),
}
WAYS = {
    "replayed": (tiny({"kind": "hyper_connections"}, **EVERYTHING), Rebuilt(anchors=1), "sdpa"),
    "replayed, blocks computed again": (
        tiny({"kind": "mhc"}, **EVERYTHING), Rebuilt(loop=RecomputedBlocks(Eager()), anchors=1), "sdpa"
    ),
    "layers computed again": (tiny(VECTOR, **EVERYTHING), Recomputed((range(1, 3), range(3, 5))), "sdpa"),
    "compiled attention": (tiny(VECTOR, **ALIBI), None, "fused"),
}  # fmt: skip


@pytest.mark.parametrize("layout", [Layout(tensor=2)], ids=str)
def test_gradients_of_shared_blocks_are_those_of_whole_ones(layout, tmp_path):
    """Losses and norms to 1e-6, gradients to 1e-5 of their norms."""
    cases = {name: (config, None, "sdpa") for name, config in MODELS.items()} | WAYS
    path, size = tmp_path / "gradients.pt", layout.replicate * layout.parts
    assert ranks.run(shared_gradients, cases, layout, path, size=size) == [0] * size
    found = torch.load(path)
    for name, (config, depth, attention) in cases.items():
        model = build_model(config, 3, depth=depth, attention=attention)
        stir(model)
        loss = model.loss(*documents_batch(config))
        loss.total.backward()
        losses = torch.stack((loss.total.detach(), loss.cross_entropy, loss.balance))
        assert_close(found[name].pop("loss"), losses, rtol=1e-6, atol=0, msg=name)
        expected = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
        norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        assert_close(found[name].pop("norm"), norm, rtol=1e-6, atol=0, msg=name)
        assert found[name].keys() == expected.keys()
        for key, gradient in expected.items():  # 1e-7 of all: a bias whose gradients cancel is known no better
            assert (found[name][key] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7 * norm, (name, key)
