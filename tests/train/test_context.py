"""Processes that share the tokens of a window train as one process does."""

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import ranks
from as_one import assert_gradients_of_one, assert_same_rows, assert_trains_as_one
from models import tiny
from processes import train_quickly, train_unlike
from ranks import train_on, weights
from tiny_runs import tiny_config
from widestream.errors import UserError
from widestream.model.build import build_model
from widestream.model.depth import Eager, Fused, Rebuilt, Recomputed, RecomputedBlocks
from widestream.recipe.train import ParallelConfig
from widestream.streams import OWN_KINDS, stream_class
from widestream.train.context import join_windows
from widestream.train.layout import Layout, choose_layout
from widestream.train.parallel import World
from widestream.train.plan import make_plan

ALIBI, ROTARY, LEARNED = ({"positions": kind} for kind in ("alibi", "rotary", "learned"))
VECTOR, MATRIX = {"kind": "vector"}, {"kind": "matrix", "key_dim": 6}
EXPERTS = {"moe": {"num_experts": 4, "top_k": 2, "balance": "loss"}}
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
    "balance of experts": tiny(VECTOR, **ROTARY, **EXPERTS),
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
    plain = {name: (config, None, "sdpa") for name, config in (MODELS if group == "models" else KINDS).items()}
    assert_gradients_of_one(Layout(context=size), WAYS if group == "ways" else plain, tmp_path)


@pytest.mark.parametrize(
    ("model", "train", "kind"),
    [
        ({"stream": MATRIX}, {"micro_batch_size": 1, "stream_memory": "writes"}, "adamw"),
        ({"stream": VECTOR, **ROTARY, "tied_head": True, **EXPERTS}, {}, "muon"),
    ],
    ids=["matrix", "experts"],
)
def test_two_processes_train_as_one(data, tmp_path, model, train, kind):
    trains_as_one({"context": 2}, data, tmp_path, model, train, kind)


@pytest.mark.drill
@pytest.mark.parametrize("other", ["replicate", "shard"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_so_do_four(data, tmp_path, other, kind):
    trains_as_one({other: 2, "context": 2}, data, tmp_path, {"stream": MATRIX, **ALIBI}, {"micro_batch_size": 1}, kind)


@pytest.mark.drill
@pytest.mark.parametrize(
    ("model", "train"),
    [
        ({"stream": MATRIX, **ALIBI}, {"stream_memory": "writes"}),
        ({"stream": VECTOR, **ROTARY, "token_before": "dense", "attention_convolution": "kv"}, {}),
    ],
    ids=["matrix", "vector"],
)
def test_compiled_too(data, tmp_path, model, train):
    trains_as_one({"context": 2}, data, tmp_path, model, {"compile": True, **train}, "adamw")


def trains_as_one(parallel, data, tmp_path, model, train, kind):
    sizes = {"context": 32, "num_layers": 2}
    train = {"steps": 6, "eval_every": 3, "eval_windows": 5, **train}
    alone = tiny_config(data, model=sizes | model, train=train, optimizer={"kind": kind, "grad_clip": 0.5})
    assert_trains_as_one(parallel, alone, tmp_path)


def test_a_run_goes_on_with_windows_shared_and_not(data, tmp_path):
    config = tiny_config(data, train={"steps": 6, "save_every": 3, "keep": 5}, model={"context": 32})
    shared = replace(config, train=replace(config.train, parallel=ParallelConfig(context=2)))
    train_on(2, shared, tmp_path / "whole")
    last = "checkpoints/step_00000006"
    for place in ("same", "alone"):
        shutil.copytree(tmp_path / "whole", tmp_path / place)
        shutil.rmtree(tmp_path / place / last)
        (tmp_path / place / "done.json").unlink()
    train_on(2, shared, tmp_path / "same")
    train_quickly(config, tmp_path / "alone")
    for kind in ("model", "optimizer"):
        same, whole = (weights(tmp_path / name, 6, kind) for name in ("same", "whole"))
        assert same.keys() == whole.keys()
        assert all(torch.equal(same[name], value) for name, value in whole.items())
    assert_same_rows(tmp_path / "whole", tmp_path / "alone")


@pytest.mark.parametrize(
    ("changes", "context", "words"),
    [
        ({"data": {"sequence_length": 15}}, 2, r"context is 2, which does not divide the 15 tokens of a window"),
        ({}, 4, r"context is 4, which does not divide model.num_heads=2"),
        ({"train": {"batch_size": 3}}, 2, r"batch_size=3 cannot be split evenly over 2 groups of 2 processes; make it"),
        (
            {"train": {"micro_batch_size": 3}}, 2,
            r"micro_batch_size=3 does not divide the 2 windows .*=4 over 2 groups of 2 processes\)",
        ),
    ],
)  # fmt: skip
def test_windows_that_cannot_be_shared_are_refused(data, changes, context, words):
    parallel = {"parallel": {"context": context}}
    sections = {"train": parallel, **changes}
    sections["train"] = sections["train"] | parallel
    sections["data"] = {"path": str(data), **changes.get("data", {})}
    config = tiny_config(data, **sections)
    with pytest.raises(UserError, match=words):
        make_plan(config, readers=2)


def test_at_least_one_process_has_a_window():
    with pytest.raises(UserError, match=r"train.parallel.context is 0; it must be at least 1"):
        ParallelConfig(context=0)


@pytest.mark.parametrize(
    ("asked", "processes", "room", "layout"),
    [
        ({"context": 4}, 8, 1e9, Layout(2, 1, context=4)),
        ({"context": 4}, 8, 2e6, Layout(1, 2, context=4)),
        ({"context": 2, "shard": 2}, 8, 1e9, Layout(2, 2, context=2)),
        ({"context": 8}, 8, 1.0, Layout(1, 1, context=8)),
    ],
    ids=str,
)
def test_what_a_layout_comes_to(asked, processes, room, layout):
    assert choose_layout(ParallelConfig(**asked), processes, 1_000_000, room, "float32") == layout
    assert layout.replicate * layout.parts == processes


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"context": 3}, r"train\.parallel is context 3, and there are 8 processes"),
        ({"context": 2, "shard": 8}, r"train\.parallel is shard 8 x context 2, and there are 8 processes"),
    ],
)
def test_layouts_of_other_numbers_are_refused(asked, words):
    with pytest.raises(UserError, match=words):
        choose_layout(ParallelConfig(**asked), 8, 1000, 1e9, "float32")


def test_one_process_does_not_share(data, tmp_path):
    config = tiny_config(data, train={"parallel": {"context": 2}})
    with pytest.raises(UserError, match=r"train.parallel.context is 2, and there is 1 process; start a multiple"):
        train_quickly(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_of_another_run_that_give_no_number_are_refused(data, tmp_path):
    """As by one process: each of those that share a window looks at a token."""
    config = tiny_config(data, train={"steps": 2})
    train_quickly(config, tmp_path / "base")
    path = tmp_path / "base/checkpoints/step_00000002"
    huge = {name: value * 1e30 for name, value in load_file(path / "model.safetensors").items()}
    save_file(huge, path / "model.safetensors")
    described = json.loads((path / "complete.json").read_text())
    content = (path / "model.safetensors").read_bytes()
    described["files"]["model.safetensors"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "complete.json").write_text(json.dumps(described))
    train = replace(config.train, init_from=str(tmp_path / "base"), parallel=ParallelConfig(context=2))
    shared = replace(config, train=train)
    assert ranks.run(train_unlike, [shared, shared], tmp_path / "run") == [0, 0]
    for rank in range(2):
        assert "holds weights that are not finite" in (tmp_path / f"refusal-{rank}").read_text()


def test_who_reads_what():
    """Neighbours share windows; without `context` each process has its own, and there is nobody to ask for tokens."""
    cpu = torch.device("cpu")
    worlds = [World(cpu, rank, 8, context=4) for rank in range(8)]
    assert [(world.reader, world.readers) for world in worlds] == [(0, 2)] * 4 + [(1, 2)] * 4
    alone = [World(cpu, rank, 8) for rank in range(8)]
    assert [(world.reader, world.readers) for world in alone] == [(rank, 8) for rank in range(8)]
    assert join_windows(alone[3]) is None
    assert build_model(MODELS["rotary"]).split is None
