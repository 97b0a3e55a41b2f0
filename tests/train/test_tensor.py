"""Processes that share the heads and neurons of blocks train as one process does."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch.testing._internal.distributed.fake_pg import FakeStore

import ranks
from as_one import MUON_LOSSES, assert_gradients_of_one, assert_same_rows, assert_trains_as_one
from models import tiny
from processes import initial_weights, train_quickly, train_unlike
from ranks import rows, train_on, weights
from tiny_runs import tiny_config
from widestream.blocks import experts
from widestream.blocks.roles import initialize
from widestream.blocks.routing import route
from widestream.errors import UserError
from widestream.model.build import build_model, meta_model
from widestream.model.depth import Eager, Rebuilt, Recomputed, RecomputedBlocks
from widestream.recipe.train import ParallelConfig
from widestream.train.layout import Layout, choose_layout
from widestream.train.parallel import World
from widestream.train.plan import make_plan
from widestream.train.shards import Shares
from widestream.train.tensor import Cut, SharedBlocks

ALIBI, ROTARY, LEARNED = ({"positions": kind} for kind in ("alibi", "rotary", "learned"))
EXPERTS = {"num_experts": 4, "top_k": 2, "balance_weight": 0.5}
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
    "norms of all heads jointly": tiny(
        VECTOR, **ROTARY, qk_norm={"over": "full"}, num_kv_heads=2, norm_cast="before_gain"
    ),
    "and without gains": tiny(VECTOR, **ROTARY, qk_norm={"over": "full", "place": "after", "gain": "none"}),
    "and of 1 + w": tiny(VECTOR, **ROTARY, qk_norm={"over": "full"}, norm_offset=True),
    "experts": tiny(VECTOR, **ROTARY, moe=EXPERTS, mlp_bias=True, activation="swiglu"),
    "experts of every other layer, their sums not 1": tiny(
        VECTOR, **ROTARY, moe={**EXPERTS, "every": 2, "normalise": False, "balance": "bias", "expert_dim": 6}
    ),
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
    "experts, layers computed again": (
        tiny(VECTOR, **ROTARY, moe=EXPERTS, qk_norm={"over": "full"}), Recomputed((range(1, 3), range(3, 5))), "sdpa"
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "layout",
    [
        Layout(tensor=2),
        pytest.param(Layout(1, 2, tensor=2), marks=pytest.mark.drill),
        pytest.param(Layout(2, 1, tensor=2), marks=pytest.mark.drill),
        pytest.param(Layout(context=2, tensor=2), marks=pytest.mark.drill),
    ],
    ids=str,
)
def test_gradients_of_shared_blocks_are_those_of_whole_ones(layout, tmp_path):
    cases = {name: (config, None, "sdpa") for name, config in MODELS.items()} | WAYS
    assert_gradients_of_one(layout, cases, tmp_path)


@pytest.mark.parametrize(
    ("parallel", "model", "train", "kind"),
    [
        ({"tensor": 2}, {"stream": VECTOR, **EVERYTHING}, {"micro_batch_size": 1, "watch_every": 3}, "adamw"),
        ({"tensor": 2}, {"stream": VECTOR, **ROTARY, "activation": "swiglu"}, {}, "muon"),
        ({"tensor": 2}, {"stream": VECTOR, **ROTARY, "qk_norm": {"over": "full"}, "moe": EXPERTS}, {}, "adamw"),
    ],
    ids=["everything", "muon", "experts, joint norms"],
)
def test_two_processes_train_as_one(data, tmp_path, parallel, model, train, kind):
    trains_as_one(parallel, data, tmp_path, model, train, kind)


@pytest.mark.drill
@pytest.mark.parametrize(
    ("model", "train"),
    [
        ({"stream": VECTOR, **EVERYTHING}, {}),
        ({"stream": VECTOR, **ROTARY, "qk_norm": {"over": "full"}, "moe": EXPERTS}, {"micro_batch_size": 1}),
    ],
    ids=["everything", "experts, joint norms"],
)
def test_compiled_too(data, tmp_path, model, train):
    trains_as_one({"tensor": 2}, data, tmp_path, model, {"compile": True, **train}, "adamw")


@pytest.mark.drill
@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize(
    "parallel",
    [{"tensor": 2, "shard": 2}, {"tensor": 2, "replicate": 2}, {"tensor": 4}, {"tensor": 2, "context": 2}],
    ids=str,
)
def test_so_do_four(data, tmp_path, parallel, kind):
    changes = EVERYTHING if kind == "adamw" else {**ROTARY, "activation": "swiglu"}
    model = {"stream": VECTOR, **changes, "num_heads": 8, "num_kv_heads": 4}
    trains_as_one(parallel, data, tmp_path, model, {"micro_batch_size": 1}, kind)


def test_what_is_frozen_and_weights_of_another_run(data, tmp_path):
    model = {"stream": VECTOR, **EVERYTHING, "num_heads": 4}
    train_quickly(tiny_config(data, model=model, train={"steps": 2, "seed": 5}), tmp_path / "base")
    train = {"steps": 6, "eval_every": 3, "eval_windows": 5, "init_from": str(tmp_path / "base")}
    optimizer = {"lr_factors": {"*.qkv": 0.0, "mlp": 0.0, "embedding": 3.0}, "grad_clip": 0.5}
    assert_trains_as_one({"tensor": 2}, tiny_config(data, model=model, train=train, optimizer=optimizer), tmp_path)
    base, on = weights(tmp_path / "base", 2), weights(tmp_path / "shared", 6)
    moved = {name for name in base if not torch.equal(base[name], on[name])}
    held = {"blocks.0.block.qkv", "blocks.1.block.w1", "blocks.1.block.w2"}
    assert held <= base.keys()
    assert not held & moved
    assert {"embedding.token", "blocks.0.block.out"} <= moved


@pytest.mark.parametrize(
    "parallel", [{"tensor": 2}, pytest.param({"tensor": 2, "shard": 2}, marks=pytest.mark.drill)], ids=str
)
def test_in_bfloat16(data, tmp_path, parallel):
    """Parts are rounded before they are added up, which stays below what rounding does to a loss anyway."""
    model = {"stream": VECTOR, **EVERYTHING, "num_heads": 4}
    config = tiny_config(data, model=model, train={"steps": 8, "batch_size": 4, "precision": "bf16"})
    train_quickly(config, tmp_path / "alone")
    train = replace(config.train, parallel=ParallelConfig(**parallel))
    train_on(math.prod(parallel.values()), replace(config, train=train), tmp_path / "shared")
    assert json.loads((tmp_path / "shared/run.json").read_text())["layout"]["gather"] == "bf16"
    losses = [[row["loss"] for row in rows(tmp_path / name) if row["kind"] == "train"] for name in ("alone", "shared")]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


@pytest.fixture
def group_of_two():
    """Name of a group of two processes, the other of which does not exist."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    assert torch.distributed.group.WORLD is not None
    yield torch.distributed.group.WORLD.group_name
    torch.distributed.destroy_process_group()


def test_a_router_reads_float32_as_in_one_process(group_of_two, monkeypatch):
    """Of rounded vectors it would pick other experts."""
    config = tiny(VECTOR, **ROTARY, moe=EXPERTS)
    model = meta_model(config, block_split=SharedBlocks(2, 0, group_of_two)).to_empty(device="cpu")
    initialize(model, 0, put=Shares(model).fill)
    seen = []
    monkeypatch.setattr(experts, "route", lambda x, *rest: (seen.append(x.dtype), route(x, *rest))[1])
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.zeros(1, 4, dtype=torch.long))
    assert seen == [torch.float32] * config.num_layers


@pytest.mark.parametrize(
    "layout", [Layout(tensor=2), pytest.param(Layout(context=2, tensor=2), marks=pytest.mark.drill)], ids=str
)
def test_initial_weights_are_those_of_one_process(layout, tmp_path):
    config, size = tiny({"kind": "hyper_connections"}, **EVERYTHING), layout.parts
    assert ranks.run(initial_weights, config, layout, tmp_path / "weights.safetensors", size=size) == [0] * size
    found, whole = load_file(tmp_path / "weights.safetensors"), build_model(config, 3).state_dict()
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], value) for name, value in whole.items())


def trains_as_one(parallel, data, tmp_path, model, train, kind):
    sizes = {"context": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 257}
    train = {"steps": 6, "eval_every": 3, "eval_windows": 5, **train}
    alone = tiny_config(data, model=sizes | model, train=train, optimizer={"kind": kind, "grad_clip": 0.5})
    assert_trains_as_one(parallel, alone, tmp_path)


OTHERS_OF_TWO = {"alone": {}, "shard": {"shard": 2}}
OTHERS_OF_FOUR = {
    "alone": {}, "shard": {"shard": 4}, "four": {"tensor": 4}, "groups": {"tensor": 2, "replicate": 2},
    "windows": {"tensor": 2, "context": 2},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "layout", "others"),
    [
        ("adamw", {"tensor": 2}, OTHERS_OF_TWO),
        pytest.param("muon", {"tensor": 2, "shard": 2}, OTHERS_OF_FOUR, marks=pytest.mark.drill),
        pytest.param("adamw", {"tensor": 2, "shard": 2}, OTHERS_OF_FOUR, marks=pytest.mark.drill),
    ],
    ids=str,
)
def test_a_run_goes_on_in_other_layouts(data, tmp_path, kind, layout, others):
    """The same losses, in the same layout the same bits; and back from the one before."""

    def config(**parallel):
        model = {"context": 32, "num_heads": 8, "num_kv_heads": 4, "vocab_size": 257, "stream": VECTOR}
        train = {"steps": 6, "save_every": 3, "keep": 5, "batch_size": 4, "parallel": parallel}
        optimizer = {"kind": kind, "grad_clip": 0.5}
        return tiny_config(data, model=EVERYTHING | model, train=train, optimizer=optimizer)

    def go_on(source, name, parallel):
        shutil.copytree(tmp_path / source, tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints/step_00000006")
        (tmp_path / name / "done.json").unlink()
        go = partial(train_on, math.prod(parallel.values())) if parallel else train_quickly
        go(config(**parallel), tmp_path / name)

    size = math.prod(layout.values())
    train_on(size, config(**layout), tmp_path / "whole")
    assert len(list((tmp_path / "whole/checkpoints/step_00000006").glob(f"optimizer-*-of-0000{size}*"))) == size
    go_on("whole", "same", layout)
    for what in ("model", "optimizer"):
        same, whole = (weights(tmp_path / name, 6, what) for name in ("same", "whole"))
        assert all(torch.equal(same[name], value) for name, value in whole.items())
    for name, other in others.items():
        go_on("whole", name, other)
    go_on("alone", "back", layout)
    for name in (*others, "back"):
        assert_same_rows(tmp_path / "whole", tmp_path / name, rel=MUON_LOSSES if kind == "muon" else 1e-5)


@pytest.mark.parametrize(
    ("model", "train", "tensor", "words"),
    [
        ({"num_heads": 6, "num_kv_heads": 3}, {}, 4, r"tensor is 4, which does not divide model.num_heads=6"),
        ({"num_heads": 4, "num_kv_heads": 2}, {}, 4, r"tensor is 4, which does not divide model.num_kv_heads=2"),
        ({"mlp_dim": 30}, {}, 4, r"tensor is 4, which does not divide model.mlp_dim=30"),
        ({"stream": {"kind": "matrix", "key_dim": 4}}, {}, 2, r"of a matrix stream has no .*train.parallel.context"),
        (
            {"moe": {"num_experts": 4, "top_k": 2, "expert_dim": 9}},
            {},
            2,
            r"divide the 9 neurons of an expert of layer 0",
        ),
        ({"num_heads": 6}, {"parallel": {"tensor": 2, "context": 2}}, 2, r"context is 2, which with tensor 2 does not"),
        ({}, {"batch_size": 3}, 2, r"batch_size=3 cannot be split evenly over 2 groups of 2 processes; make it"),
    ],
)
def test_blocks_that_cannot_be_shared_are_refused(data, model, train, tensor, words):
    model = {"stream": VECTOR, "num_heads": 4, **model}
    config = tiny_config(data, model=model, train={"parallel": {"tensor": tensor}, **train})
    with pytest.raises(UserError, match=words):
        make_plan(config, readers=2)


def test_two_processes_are_no_four(data, tmp_path):
    config = tiny_config(data, model={"stream": VECTOR}, train={"parallel": {"tensor": 2, "context": 2}})
    assert ranks.run(train_unlike, [config, config], tmp_path / "run") == [0, 0]
    for rank in range(2):
        assert "context=2 x tensor=2 is 4, and there are 2 processes" in (tmp_path / f"refusal-{rank}").read_text()


def test_one_process_does_not_share(data, tmp_path):
    config = tiny_config(data, model={"stream": VECTOR}, train={"parallel": {"tensor": 2}})
    with pytest.raises(UserError, match=r"train.parallel.tensor is 2, and there is 1 process; start a multiple"):
        train_quickly(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "processes", "room", "layout"),
    [
        ({"tensor": 4}, 8, 1e9, Layout(2, 1, tensor=4)),
        ({"tensor": 4}, 8, 2e6, Layout(1, 2, tensor=4)),
        ({"tensor": 2, "shard": 2}, 8, 1e9, Layout(2, 2, tensor=2)),
    ],
    ids=str,
)
def test_what_a_layout_comes_to(asked, processes, room, layout):
    assert choose_layout(ParallelConfig(**asked), processes, 1_000_000, room, "float32") == layout
    assert layout.replicate * layout.parts == processes
    with pytest.raises(UserError, match=r"tensor \d, and there are 12 processes"):
        choose_layout(ParallelConfig(**asked, replicate=5), 12, 1000, 1e9, "float32")


def test_who_reads_what():
    """Neighbours read the same windows, and the first of them counts."""
    worlds = [World(torch.device("cpu"), rank, 8, tensor=4) for rank in range(8)]
    assert [(world.reader, world.readers) for world in worlds] == [(0, 2)] * 4 + [(1, 2)] * 4
    assert [world.first_alike for world in worlds] == [0] * 4 + [4] * 4


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("cut", [Cut(0, (6,)), Cut(0, (12, 6, 6)), Cut(1, (6,))], ids=str)
def test_parts_make_up_the_whole_row_by_row(cut, size):
    shape = [sum(cut.parts), 5] if cut.dim == 0 else [5, sum(cut.parts)]
    whole = torch.arange(math.prod(shape)).view(shape)
    held = [cut.own(whole, rank, size) for rank in range(size)]
    assert {one.shape[cut.dim] for one in held} == {shape[cut.dim] // size}
    assert torch.equal(cut.join(held), whole)
    for rank, one in enumerate(held):
        for first, end in ((0, len(one)), (1, 3), (len(one) - 1, len(one))):
            rows = torch.cat([whole[slice(*run)] for run in cut.rows(rank, size, first, end)])
            assert torch.equal(rows if cut.dim == 0 else cut.own(rows, rank, size), one[first:end])
