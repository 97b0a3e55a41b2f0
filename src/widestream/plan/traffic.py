"""Bytes that a process sends in an optimizer step, as rings of processes do it: each sends to its neighbour.

Gathering or scattering B bytes among N processes takes (N - 1) / N B from each, adding up twice that.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from widestream.model.decoder import Decoder
from widestream.plan.devices import Device
from widestream.plan.memory import BF16, FLOAT32, in_blocks, outside_blocks
from widestream.recipe import RunConfig
from widestream.recipe.model import ModelConfig
from widestream.streams import stream_class
from widestream.train.layout import Layout
from widestream.train.optim import rate_factors
from widestream.train.optim_muon import muon_takes
from widestream.train.plan import Plan
from widestream.train.tensor import find_cuts

Link = Literal["inside", "between"]
"""Within a machine, or from machine to machine."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What a process sends for one purpose."""

    what: str
    """The purpose."""
    link: Link
    """Where it goes; the slower one where a group of processes lies on several machines."""
    bytes: float
    """In a step."""


def traffic(
    config: RunConfig, model: Decoder, layout: Layout, plan: Plan, precision: str, device: Device
) -> list[Sent]:
    """All that is more than a few numbers.

    Args:
        config: says what Muon takes, and whether layers are computed again.
        model: the model, on the meta device or any other.
        layout: who holds what.
        plan: sizes of a step.
        precision: `bf16` or `float32`, in which attention computes.
        device: says which processes share a machine: those of a group of shards are neighbours.
    """
    blocks, root = sum(in_blocks(model, layout)), outside_blocks(model)
    blocks_trained, root_trained = _trained(config, model, layout)
    shards, groups = _link(layout.parts, layout, device), _link(layout.parts * layout.replicate, layout, device)
    windows, in_block = _link(layout.context * layout.tensor, layout, device), _link(layout.tensor, layout, device)
    of_blocks, of_root, of_groups = map(_around, (layout.block_parts, layout.parts, layout.replicate))
    number = BF16 if layout.gather == "bf16" else FLOAT32
    within = FLOAT32 * (of_blocks * blocks_trained + of_root * root_trained)
    between = FLOAT32 * (blocks_trained / layout.block_parts + root_trained / layout.parts)
    found = [
        # Blocks are let go behind the forward pass and gathered again; embedding, head and stream stay till the end.
        Sent("weights", shards, plan.micro_batches * (2 * number * of_blocks * blocks + FLOAT32 * of_root * root)),
        Sent("gradients within groups", shards, plan.micro_batches * within),
        Sent("gradients between groups", groups, 2 * of_groups * between),
        Sent("matrices of Muon", groups if layout.replicate > 1 else shards, _muon(config, model, layout)),
        Sent("heads of attention", windows, _heads(config, layout, plan, precision)),
        Sent("sums of blocks", in_block, _sums(config, layout, plan, precision)),
    ]
    return [sent for sent in found if sent.bytes]


def _trained(config: RunConfig, model: Decoder, layout: Layout) -> tuple[float, int]:
    """Numbers of a process's blocks, and of all else, that have gradients."""
    sizes, factors = _sizes(config, model)
    cuts = find_cuts(model.blocks)
    blocks = sum(
        size / (layout.tensor if name in cuts else 1)
        for name, size in sizes.items()
        if factors[name] and name.startswith("blocks.")
    )
    return blocks, sum(size for name, size in sizes.items() if factors[name] and not name.startswith("blocks."))


def _muon(config: RunConfig, model: Decoder, layout: Layout) -> float:
    """Directions are gathered, and the steps sent out by the one whose turn it is.

    Of a block that processes share, first what one of them has, then that of all.
    """
    sizes, factors = _sizes(config, model)
    taken = {name: sizes[name] for name in muon_takes(model.roles(), config.optimizer) if factors[name]}
    cut = sum(taken[name] for name in find_cuts(model.blocks).keys() & taken.keys()) if layout.tensor > 1 else 0
    of_cut = _around(layout.block_parts) / layout.tensor + _around(layout.tensor)
    gathered = cut * of_cut + (sum(taken.values()) - cut) * _around(layout.parts)
    return FLOAT32 * (gathered + sum(taken.values()) * _around(layout.parts * layout.replicate))


def _heads(config: RunConfig, layout: Layout, plan: Plan, precision: str) -> float:
    """Queries, keys, values and what comes of them, in the forward pass, and as many gradients in the backward pass."""
    model = config.model
    blocks = stream_class(model.stream.kind).blocks(model)
    layers = sum(block.kind == "attention" for block in blocks)
    heads = 2 * (model.num_heads // layout.tensor + math.lcm(model.kv_heads // layout.tensor, layout.context))
    tokens = plan.micro_batches * plan.micro_batch_size * plan.sequence_length / layout.context
    number = BF16 if precision == "bf16" and not model.upcast_attention else FLOAT32
    passes = 3 if config.train.activation_checkpointing else 2
    return passes * layers * tokens * heads * model.head_dim * number * _around(layout.context)


def _sums(config: RunConfig, layout: Layout, plan: Plan, precision: str) -> float:
    """Outputs of blocks in the forward pass, and gradients of what they receive in the backward pass.

    Computed again, a layer's outputs are needed once more; a block's alone, with rebuilt states, are not. Experts
    receive float32, so that their gradients are sent in it.
    """
    if layout.tensor == 1:
        return 0.0
    sizes, train = config.model, config.train
    blocks = [block for block in stream_class(sizes.stream.kind).blocks(sizes) if block.num_neurons != 0]
    experts = sum(block.kind == "mlp" and sizes.has_experts(block.layer) for block in blocks)
    tokens = plan.micro_batches * plan.micro_batch_size * plan.sequence_length / layout.context
    number = BF16 if precision == "bf16" else FLOAT32
    forwards = 2 if train.activation_checkpointing and train.stream_memory != "writes" else 1
    vectors = forwards * len(blocks) + _received(sizes)
    numbers = sizes.embed_dim * (number * vectors + (FLOAT32 - number) * experts)
    if sizes.qk_norm.over == "full":  # squares of queries and of keys
        numbers += (forwards + 1) * 2 * FLOAT32 * sum(block.kind == "attention" for block in blocks)
    return numbers * tokens * 2 * _around(layout.tensor)


@torch.no_grad()
def _received(config: ModelConfig) -> int:
    """Vectors that blocks with matrices receive: one each of most streams, of some more, as queries, keys, values."""
    found: list[int] = []

    def count(block: nn.Module, given: tuple[dict[str, Tensor], Any]) -> None:
        found.append(len({id(x) for x in given[0].values()}))

    with FakeTensorMode(), torch.device("cpu"):
        model = Decoder(config)
        for block, place in zip(model.blocks, model.layout, strict=True):
            if place.num_neurons != 0:
                block.register_forward_pre_hook(count)
        model(torch.zeros(1, 1, dtype=torch.long))
    return sum(found)


def _link(neighbours: int, layout: Layout, device: Device) -> Link:
    """What the slowest two of so many processes send over, of all groups of neighbours.

    A group begins behind the one before, so that some lie on two machines where one is not filled by whole groups.
    """
    one_machine = layout.replicate * layout.parts <= device.per_machine
    return "inside" if one_machine or device.per_machine % neighbours == 0 else "between"


def _sizes(config: RunConfig, model: Decoder) -> tuple[dict[str, int], dict[str, float]]:
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sizes, rate_factors(model.roles(), config.optimizer)


def _around(processes: int) -> float:
    """Share of something that a process sends on for all to have it."""
    return (processes - 1) / processes
