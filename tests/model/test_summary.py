"""Counts to the unit, FLOPs against torch's counter on the real model, activation bytes against what autograd keeps."""

import gc
import json
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import STREAMS, tiny
from widestream.cli import main
from widestream.model import kept
from widestream.model.build import build_model
from widestream.model.costs import summarize
from widestream.recipe import load_recipe
from widestream.recipe.model import MOST_LAYERS
from widestream.streams import stream_class

# Totals without norm gains: paper Table 8 recomputed, and Table 9 with the rows of 206M and 305M corrected.
TOTALS = {
    "transformer-49m": 49_410_816, "transformer-160m": 162_522_624, "transformer-260m": 263_927_552,
    "transformer-405m": 405_440_512, "rmt-46m": 45_886_848, "rmt-134m": 134_239_872, "rmt-206m": 206_199_392,
    "rmt-305m": 304_927_744,
}  # fmt: skip
STATES = {"rmt-46m": (32, 32), "rmt-134m": (32, 64), "rmt-206m": (48, 64), "rmt-305m": (64, 64)}


EXPERTS = {"num_experts": 8, "top_k": 2, "expert_dim": 32, "every": 2}


def rmt_formula(V, N, L, R, Dk, Dv, F):
    return 2 * V * R * Dv + N * R * Dv + R * Dk * (6 * L + 3) + 2 * L * R * Dv * F


def transformer_formula(V, N, L, D, H, Dh, F):
    return 2 * V * D + N * D + L * (4 * D * H * Dh + 2 * D * F)


@pytest.mark.parametrize("name", TOTALS)
def test_parameters_of_the_paper(name):
    config = load_recipe(f"paper/{name}").model
    summary = summarize(config)
    counts = summary.to_dict()["parameters"]
    assert counts["total_without_norm"] == counts["total"] - counts["norm"] == TOTALS[name]
    sizes = config.vocab_size, config.context, config.num_layers
    if name in STATES:
        assert summary.stream_shape == STATES[name]
        assert summary.stream_size == STATES[name][0] * STATES[name][1]
        R, (Dk, Dv) = config.num_heads, STATES[name]
        assert counts["norm"] == (2 * config.num_layers + 1) * Dk * Dv
        assert TOTALS[name] == rmt_formula(*sizes, R, Dk, Dv, config.mlp_dim)
    else:
        D = config.embed_dim
        assert counts["norm"] == (2 * config.num_layers + 1) * D
        assert TOTALS[name] == transformer_formula(*sizes, D, config.num_heads, config.head_dim, config.mlp_dim)
    embeddings = (2 * config.vocab_size + config.context) * config.embed_dim
    assert counts["non_embedding"] == counts["total"] - embeddings


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_of_the_real_model(stream, tied):
    config = tiny(stream, tied_head=tied)
    assert summarize(config).total_parameters == sum(p.numel() for p in build_model(config).parameters())


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "alibi"},
        {"positions": "rotary", "document_mask": False},
        {"activation": "swiglu", "mlp_bias": True},
        {"activation": "geglu", "moe": EXPERTS},
    ],
)
def test_flops_of_the_real_model(stream, changes):
    config = tiny(stream, vocab_size=300, mlp_dim=128, **changes)
    summary = summarize(config)
    model = build_model(config)
    tokens, segments = torch.randint(300, (16, config.context)), torch.zeros(16, config.context, dtype=torch.int32)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model.logits(model(tokens, segments))
    with FlopCounterMode(display=False) as train:
        model.loss(tokens, tokens, segments, z_loss=1e-4).total.backward()
    assert forward.get_total_flops() / tokens.numel() == pytest.approx(summary.forward_flops, rel=0.01)
    assert train.get_total_flops() / tokens.numel() == pytest.approx(summary.train_flops, rel=0.01)


@pytest.mark.parametrize("stream", STREAMS)
def test_parameters_that_a_token_goes_through(stream):
    assert summarize(tiny(stream)).active_parameters == summarize(tiny(stream)).total_parameters
    summary = summarize(tiny(stream, activation="swiglu", mlp_bias=True, moe=EXPERTS))
    one = 3 * 32 * 32 + 2 * 32 + 32  # matrices and biases
    assert summary.total_parameters - summary.active_parameters == 6 * one
    assert summary.parts["router"] == 8 * 32
    assert summary.parts["mlp"] == 3 * 32 * 40 + 2 * 40 + 32 + 8 * one
    assert summary.to_dict()["parameters"]["active"] == summary.active_parameters


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("changes", [{}, {"activation": "swiglu", "moe": EXPERTS}])
def test_decode_flops_of_the_real_model(stream, changes):
    config = tiny(stream, vocab_size=300, mlp_dim=128, **changes)
    model = build_model(config).eval()
    cache = model.new_cache(1, config.context)
    with torch.no_grad():
        model(torch.randint(300, (1, config.context - 1)), cache=cache)
        with FlopCounterMode(display=False) as decode:
            model.logits(model(torch.randint(300, (1, 1)), cache=cache))
    assert decode.get_total_flops() == pytest.approx(summarize(config).to_dict()["flops_per_token"]["decode"], rel=0.01)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("changes", [{}, {"activation": "swiglu", "moe": EXPERTS}])
def test_activation_bytes_of_the_real_model(stream, changes):
    config = tiny(stream, **changes)
    model = build_model(config)
    kept = []
    for windows in (1, 2):
        seen = {}

        def pack(tensor, seen=seen):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        tokens = torch.zeros(windows, config.context, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = model(tokens, tokens)
        kept.append(sum(seen.values()))
        del hidden
        gc.collect()
    assert summarize(config).activation_bytes["float32"] == pytest.approx(
        (kept[1] - kept[0]) / config.context, rel=0.02
    )


def test_json_of_the_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["widestream", "summary", "paper/rmt-134m", "--json"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code
    values = json.loads(capsys.readouterr().out)
    assert values["parameters"]["total"] - values["parameters"]["norm"] == 134_239_872
    assert values["stream_size"] == 2048
    flops = values["flops_per_token"]
    assert flops["forward"] - flops["forward_without_logits"] == 2 * 50257 * 768
    assert flops["train"] == 3 * flops["forward"]
    assert set(flops) >= {"forward", "forward_without_logits", "train", "decode"}


def test_table_of_the_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["widestream", "summary", "paper/rmt-305m", "model.stream.key_dim=128"])
    with pytest.raises(SystemExit):
        main()
    out = capsys.readouterr().out
    assert "128 x 64 = 8,192 cells" in out
    assert "keys" in out


@pytest.mark.parametrize(
    "stream",
    [{"kind": "vector"}, {"kind": "dense_former", "dilation": 2}, {"kind": "depth_lstm"}, {"kind": "depth_attention"}],
    ids=str,
)
def test_what_a_deep_model_keeps_is_told_from_shallow_ones_and_exactly_where_it_says_so(stream, monkeypatch):
    config = tiny(stream, num_layers=9, context=8)
    measured = summarize(config).activation_bytes
    monkeypatch.setattr(kept, "MEASURED", 0)
    told = summarize(config)
    exact = [way for way in measured if way not in told.about]
    replayed = stream_class(config.stream.kind).spec(config).undo == "replay"
    assert set(told.about) == ({"float32, writes", "bf16, writes"} if replayed else set())
    assert {way: told.activation_bytes[way] for way in exact} == {way: measured[way] for way in exact}
    assert told.activation_bytes == pytest.approx(measured, rel=0.25)


def test_a_window_that_shallow_models_do_not_reach_makes_the_figure_one_of_about(monkeypatch):
    monkeypatch.setattr(kept, "MEASURED", 0)
    summary = summarize(tiny({"kind": "dense_former", "dilation": 20}, num_layers=30))
    assert set(summary.about) == set(summary.activation_bytes)


def test_the_deepest_model_is_not_measured_itself(monkeypatch):
    layers = []
    monkeypatch.setattr(kept, "_measure", lambda config, *_: layers.append(config.num_layers) or config.num_layers)
    kept.kept_bytes(tiny("vector", num_layers=MOST_LAYERS), "float32")
    assert sum(layers) < 30


@pytest.mark.parametrize("recipe", ["demo/transformer", "demo/rmt"])
@pytest.mark.parametrize("keys", ["false", "true"])
def test_what_muon_updates_is_counted(recipe, keys, monkeypatch, capsys):
    changes = ["optimizer.kind=muon", f"optimizer.muon.keys={keys}"]
    monkeypatch.setattr("sys.argv", ["widestream", "summary", recipe, *changes, "--json"])
    with pytest.raises(SystemExit):
        main()
    values = json.loads(capsys.readouterr().out)
    parts = values["parameters"]["by_part"]
    matrices = parts["mlp"] + parts.get("attention", 0) + (parts.get("keys", 0) if keys == "true" else 0)
    rest = values["parameters"]["total"] - matrices
    assert values["parameters_by_optimizer"] == {"muon": matrices, "adamw": rest}
    monkeypatch.setattr("sys.argv", ["widestream", "summary", recipe, *changes])
    with pytest.raises(SystemExit):
        main()
    assert re.search(rf"updated by muon +{matrices:,}\n", capsys.readouterr().out)


def test_without_muon_adamw_updates_all(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["widestream", "summary", "demo/rmt", "--json"])
    with pytest.raises(SystemExit):
        main()
    values = json.loads(capsys.readouterr().out)
    assert values["parameters_by_optimizer"] == {"adamw": values["parameters"]["total"]}
