"""What a plan says of memory and traffic is what processes hold and send, and what torch's memory tracker sees."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import ranks
from processes import hold_and_send
from tiny_runs import tiny_config
from widestream.blocks.roles import initialize
from widestream.data.batches import Batch
from widestream.model import live
from widestream.model.build import meta_model
from widestream.model.depth import plan_depth
from widestream.plan import find_kind
from widestream.plan.forecast import forecast
from widestream.plan.memory import share, shares, step_bytes
from widestream.plan.traffic import traffic
from widestream.recipe import RunConfig, load_recipe
from widestream.train.context import SharedWindows
from widestream.train.layout import Layout, build_shared, share_out
from widestream.train.optim import build_optimizer
from widestream.train.parallel import World
from widestream.train.plan import make_plan
from widestream.train.shards import Shares, average_when
from widestream.train.step import batch_loss
from widestream.train.tensor import SharedBlocks

SCALES = ["transformer-1b", "rmt-1b", "transformer-7b", "rmt-7b", "transformer-30b", "rmt-30b"]


@contextmanager
def fake_world(size: int) -> Iterator[int]:
    """The first process of so many, the others of which do not exist."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    yield size
    torch.distributed.destroy_process_group()


@pytest.fixture
def world_of_64():
    """The first process of 64."""
    with fake_world(64) as size:
        yield size


@pytest.fixture
def world_of_two():
    """The first process of two."""
    with fake_world(2) as size:
        yield size


@pytest.mark.parametrize(("name", "billions"), [*zip(SCALES, (1.485, 1.481, 7.30, 7.27, 32.2, 32.2), strict=True)])
def test_models_of_billions_and_their_shares(world_of_64, name, billions):
    config = load_recipe(f"scale/{name}")
    model, layout = meta_model(config.model), Layout(2, 32, "bf16")
    weights, gradients, moments = shares(config, model, layout)
    parameters = list(model.parameters())
    assert sum(parameter.numel() for parameter in parameters) == pytest.approx(billions * 1e9, rel=0.003)
    share_out(model, layout, World(torch.device("cpu"), 0, 64))
    held = sum(one.to_local().numel() for one in model.parameters() if isinstance(one, DTensor))
    assert weights == gradients == 4 * held
    assert moments == 8 * held + 4 * len(parameters)


def test_rmt_and_transformer_of_a_size_are_matched():
    for size in ("1b", "7b", "30b"):
        counts = [
            sum(parameter.numel() for parameter in meta_model(load_recipe(f"scale/{kind}-{size}").model).parameters())
            for kind in ("transformer", "rmt")
        ]
        assert counts[1] == pytest.approx(counts[0], rel=0.005)


@pytest.mark.parametrize("rows", [1, 5, 8, 64, 97])
@pytest.mark.parametrize("parts", [1, 2, 8, 64])
def test_a_share_is_a_piece_of_the_first_dimension(rows, parts):
    pieces = [len(piece) for piece in torch.arange(rows).chunk(parts)]
    held = [share(torch.Size((rows, 3)), parts, part) for part in range(parts)]
    assert held == [3 * size for size in pieces] + [0] * (parts - len(pieces))


@pytest.mark.parametrize(
    ("kind", "layout", "processes"),
    [
        ("adamw", Layout(1, 2), 2),
        ("muon", Layout(1, 2), 2),
        ("adamw", Layout(2, 1), 2),
        ("adamw", Layout(1, 2, "bf16"), 2),
        ("adamw", Layout(context=2), 2),
        ("adamw", Layout(tensor=2), 2),
        ("muon", Layout(tensor=2), 2),
        pytest.param("adamw", Layout(2, 2), 4, marks=pytest.mark.drill),
        pytest.param("muon", Layout(2, 2), 4, marks=pytest.mark.drill),
        pytest.param("muon", Layout(1, 2, tensor=2), 4, marks=pytest.mark.drill),
        pytest.param("adamw", Layout(context=2, tensor=2), 4, marks=pytest.mark.drill),
    ],
    ids=str,
)
def test_processes_hold_and_send_what_is_planned(data, tmp_path, kind, layout, processes):
    hold_and_send_what_is_planned(data, tmp_path, kind, layout, processes, {})


def test_so_they_do_with_parts_of_experts(data, tmp_path):
    model = {"moe": {"num_experts": 4, "top_k": 2}, "positions": "rotary", "qk_norm": {"over": "full"}}
    hold_and_send_what_is_planned(data, tmp_path, "adamw", Layout(tensor=2), 2, model)


@pytest.mark.parametrize("stream", [{"kind": "mudd"}, {"kind": "dca"}], ids=lambda stream: stream["kind"])
def test_so_they_do_where_attention_receives_more_than_one_vector(data, tmp_path, stream):
    model = {"stream": stream, "num_layers": 4}
    hold_and_send_what_is_planned(data, tmp_path, "adamw", Layout(tensor=2), 2, model)


def hold_and_send_what_is_planned(data, tmp_path, kind, layout, processes, changes):
    readers, precision = layout.replicate * layout.shard, "bf16" if layout.gather == "bf16" else "float32"
    train = {"batch_size": 4 * readers, "micro_batch_size": 2, "precision": precision}
    model = {"num_layers": 3, "num_heads": 4, "stream": {"kind": "hyper_connections", "lanes": 2}, **changes}
    config = tiny_config(data, model=model, train=train, optimizer={"kind": kind})
    assert ranks.run(hold_and_send, config, layout, 2, tmp_path, size=processes) == [0] * processes
    meta = meta_model(config.model)
    planned = traffic(config, meta, layout, make_plan(config, readers), precision, find_kind("h100", per_machine=2.0))
    for rank in range(processes):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["held"] == list(shares(config, meta, layout, rank % layout.parts))
        # Rows that shares lack are sent as zeros; and a step's few numbers are.
        assert sum(sent.bytes for sent in planned) == pytest.approx(found["sent"], rel=0.02)


@pytest.mark.parametrize("layout", [
    Layout(2, 1), Layout(1, 4), Layout(2, 2), Layout(1, 2, "bf16"), Layout(tensor=2), Layout(1, 2, tensor=2),
    Layout(context=2),
], ids=str)  # fmt: skip
def test_a_whole_step_has_at_most_what_is_planned(data, layout):
    """Of a model of few tokens, whose weights, and copies of them, take most: two micro-batches of two windows."""
    model = {"num_layers": 4, "num_heads": 4, "head_dim": 32, "mlp_dim": 1024, "context": 32, "vocab_size": 256}
    precision, readers = "bf16" if layout.gather == "bf16" else "float32", layout.replicate * layout.shard
    train = {"batch_size": 4 * readers, "micro_batch_size": 2, "precision": precision, "kernels": "reference"}
    config = tiny_config(data, model={**model, "stream": {"kind": "vector"}}, train=train)
    live = step_bytes(config, 2, config.model.context, precision, layout, gpu=False)
    planned = forecast(config, layout, find_kind("h100", per_machine=2.0), precision, live=live).memory.total
    with fake_world(readers * layout.context * layout.tensor) as size:
        world = World(torch.device("cpu"), 0, size, context=layout.context, tensor=layout.tensor)
        found = _whole_step(config, layout, world, precision)
    assert found <= planned <= 1.25 * found


def _whole_step(config: RunConfig, layout: Layout, world: World, precision: str) -> int:
    """Most bytes of a process during a step."""
    depth = plan_depth(config.model, torch.device("cpu"), "states", kernels="reference")
    model = build_shared(config.model, 3, world, layout, depth)
    optimizer = build_optimizer(model, config.optimizer)
    tokens = torch.randint(config.model.vocab_size, (2, config.model.context))
    batch = Batch(tokens=tokens, targets=tokens, segments=torch.zeros_like(tokens), weights=None)
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        for last in (False, True):  # as `optimizer_step` does it, but that the tracker has to be told
            average_when(model, optimizer.param_groups[0]["params"][0], last)
            batch_loss(model, batch, world.device, precision).total.backward()
            tracker.reset_mod_stats()
        optimizer.step()
    return _sizes(tracker.get_tracker_snapshot("peak"))["Total"]


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"stream": {"kind": "vector"}}, {}),
    "plain, checkpointed": ({"stream": {"kind": "vector"}}, {"activation_checkpointing": True}),
    "matrix, states": ({}, {"stream_memory": "states"}),
    "matrix, writes": ({}, {"stream_memory": "writes"}),
    "matrix, writes, checkpointed": ({}, {"stream_memory": "writes", "activation_checkpointing": True}),
    "histories": ({"stream": {"kind": "attn_res"}}, {}),
    "lanes": ({"stream": {"kind": "hyper_connections"}}, {}),
    "experts": ({"stream": {"kind": "vector"}, "moe": {"num_experts": 4, "top_k": 2}}, {}),
}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("way", WAYS)
def test_a_step_has_alive_what_the_tracker_sees(data, way, precision):
    model, train = WAYS[way]
    sizes = {"num_layers": 3, "num_heads": 4, "head_dim": 16, "mlp_dim": 96, "context": 64, "vocab_size": 512}
    config = tiny_config(
        data, model={**sizes, **model}, train={"kernels": "reference", "precision": precision, **train}
    )
    windows = 4
    kept, most = _tracked(config, windows, precision)
    found = step_bytes(config, windows, config.model.context, precision, Layout(), gpu=False)
    assert found.kept == pytest.approx(kept, rel=0.02)
    assert found.most == pytest.approx(most, rel=0.05)


@pytest.mark.parametrize(("way", "precision"), [("plain", "bf16"), ("matrix, writes", "float32")])
def test_so_has_one_of_two_processes_that_share_windows(world_of_two, data, way, precision):
    model, train = WAYS[way]
    sizes = {"num_layers": 3, "num_heads": 4, "head_dim": 16, "mlp_dim": 96, "context": 64, "vocab_size": 512}
    config = tiny_config(
        data, model={**sizes, **model}, train={"kernels": "reference", "precision": precision, **train}
    )
    kept, most = _tracked(config, 4, precision, SharedWindows(2, 0, torch.distributed.group.WORLD.group_name))
    found = step_bytes(config, 4, config.model.context, precision, Layout(context=2), gpu=False)
    assert found.kept == pytest.approx(kept, rel=0.02)
    assert found.most == pytest.approx(most, rel=0.05)
    assert found.kept < 0.65 * step_bytes(config, 4, config.model.context, precision, Layout(), gpu=False).kept


@pytest.mark.parametrize(("way", "precision"), [("lanes", "float32"), ("experts", "float32"), ("plain", "bf16")])
def test_so_has_one_of_two_processes_that_share_blocks(world_of_two, data, way, precision):
    model, train = WAYS[way]
    sizes = {"num_layers": 3, "num_heads": 4, "head_dim": 16, "mlp_dim": 256, "context": 64, "vocab_size": 512}
    model = {**sizes, "positions": "rotary", "qk_norm": {"over": "full"}, **model}
    config = tiny_config(data, model=model, train={"kernels": "reference", "precision": precision, **train})
    kept, most = _tracked(config, 4, precision, blocks=SharedBlocks(2, 0, torch.distributed.group.WORLD.group_name))
    found = step_bytes(config, 4, config.model.context, precision, Layout(tensor=2), gpu=False)
    assert found.kept == pytest.approx(kept, rel=0.02)
    assert found.most == pytest.approx(most, rel=0.05)
    assert found.kept < 0.9 * step_bytes(config, 4, config.model.context, precision, Layout(), gpu=False).kept


def _tracked(
    config: RunConfig,
    windows: int,
    precision: str,
    split: SharedWindows | None = None,
    blocks: SharedBlocks | None = None,
) -> tuple[int, int]:
    """Bytes of activations behind the forward pass, and most bytes but weights, gradients and moments."""
    train, length = config.train, config.model.context
    memory = "writes" if train.stream_memory == "auto" else train.stream_memory
    memory = memory if config.model.stream.kind == "matrix" else "states"
    depth = plan_depth(config.model, torch.device("cpu"), memory, kernels="reference",
                       recompute=train.activation_checkpointing)  # fmt: skip
    model = meta_model(config.model, depth, split=split, block_split=blocks).to_empty(device="cpu")
    initialize(model, 0, put=Shares(model).fill)
    optimizer = build_optimizer(model, config.optimizer)
    tokens = torch.randint(config.model.vocab_size, (windows, length))
    documents = (torch.arange(length) * 2 // length).expand(windows, length).contiguous()
    batch = Batch(tokens=tokens, targets=tokens, segments=documents, weights=None)
    tracker = MemTracker()
    tracker.track_external(model, optimizer)
    with tracker:
        terms = batch_loss(model, batch, torch.device("cpu"), precision)
        behind = _sizes(tracker.get_tracker_snapshot("current"))
        terms.total.backward()
    peak = _sizes(tracker.get_tracker_snapshot("peak"))
    return behind["Activation"], peak["Activation"] + peak["Temp"]


def _sizes(snapshot: dict[Any, dict[Any, int]]) -> dict[str, int]:
    (sizes,) = snapshot.values()
    return {str(getattr(name, "value", name)): size for name, size in sizes.items()}


@pytest.mark.parametrize("kind", ["vector", "matrix", "mudd"])
def test_a_deep_model_is_told_from_shallow_ones(kind):
    config = replace(load_recipe("zoo/rmt").model, num_layers=9, context=32)
    config = replace(config, stream=load_recipe(f"zoo/{kind}" if kind == "mudd" else "zoo/rmt").model.stream)
    if kind == "vector":
        config = replace(config, stream=load_recipe("demo/transformer").model.stream)

    def way(model):
        return plan_depth(model, torch.device("cpu"), "states", kernels="reference")

    told = live.live_bytes(config, way, 2, "float32")
    own = live._measure(config, way, 2, "float32", torch.float32, None)
    assert told.kept == own.kept
    assert told.most == pytest.approx(own.most, rel=0.01)
