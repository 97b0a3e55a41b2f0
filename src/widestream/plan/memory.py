"""Bytes of a process by part."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from widestream.model.decoder import Decoder
from widestream.model.depth import Depth, plan_depth
from widestream.model.live import Live, live_bytes
from widestream.recipe import RunConfig
from widestream.recipe.model import ModelConfig
from widestream.streams import stream_class
from widestream.train.context import SharedWindows
from widestream.train.layout import Layout
from widestream.train.optim import rate_factors
from widestream.train.optim_muon import muon_takes
from widestream.train.tensor import SharedBlocks, find_cuts

FLOAT32, BF16 = 4, 2
"""Bytes of a number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of the process that holds most."""

    weights: int
    """Its share, in float32."""
    gradients: int
    """Its share, in float32."""
    moments: int
    """Its share: two numbers a weight with AdamW, one with Muon."""
    whole: int
    """Weights that are made whole while they compute, and their gradients on the way out; 0 of one process."""
    kept: int
    """What a forward pass keeps for the backward pass of a micro-batch, weights in lower precision among it."""
    working: int
    """Most that a step has alive beside that at a time."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.moments + self.whole + self.kept + self.working


def share(shape: torch.Size, parts: int, part: int = 0) -> int:
    """Numbers of a weight that a process holds, as FSDP2 cuts it: along its first dimension, in equal pieces, of which
    the last ones may lack rows.

    Args:
        shape: of the weight.
        parts: processes that share it out.
        part: which of them.
    """
    if parts == 1:
        return shape.numel()
    rows = math.ceil(shape[0] / parts)
    return max(0, min(rows, shape[0] - part * rows)) * shape[1:].numel()


def shares(config: RunConfig, model: Decoder, layout: Layout, part: int = 0) -> tuple[int, int, int]:
    """Bytes of weights, gradients and moments that a process holds.

    Args:
        config: says what optimizer each parameter takes.
        model: the model, on the meta device or any other.
        layout: who holds what.
        part: which process of its group.
    """
    cuts, shard = find_cuts(model.blocks), part // layout.tensor
    roles = model.roles()
    factors, muon = rate_factors(roles, config.optimizer), set(muon_takes(roles, config.optimizer))
    weights = gradients = moments = 0
    for name, parameter in model.named_parameters():
        if name in cuts:
            numbers = share(cuts[name].shape(parameter.shape, layout.tensor), layout.block_parts, shard)
        elif name.startswith("blocks."):
            numbers = share(parameter.shape, layout.block_parts, shard)
        else:
            numbers = share(parameter.shape, layout.parts, part)
        size = FLOAT32 * numbers
        weights += size
        gradients += size if factors[name] else 0
        # AdamW also keeps a number of steps for each of its parameters, frozen ones with it, in every process.
        moments += size if name in muon and factors[name] else 2 * size + FLOAT32
    return weights, gradients, moments


def at_work(model: Decoder, layout: Layout) -> int:
    """Bytes of weights that are whole at a time beside the shares: all of the root's, one block's with its gradients,
    and those of the next block, where they are on their way. FSDP2 makes these copies in replicated layouts too.
    """
    if layout.replicate * layout.parts == 1:
        return 0
    blocks, root = sorted(in_blocks(model, layout), reverse=True), outside_blocks(model)
    sent, at_a_time = BF16 if layout.gather == "bf16" else FLOAT32, 2 if layout.block_parts > 1 else 1
    return FLOAT32 * root + sent * sum(blocks[:at_a_time]) + (sent + FLOAT32) * max(blocks, default=0)


def in_blocks(model: Decoder, layout: Layout) -> list[int]:
    """Numbers of each block's weights that one process computes with."""
    cuts = find_cuts(model.blocks)

    def numbers(name: str, parameter: nn.Parameter) -> int:
        return parameter.numel() // (layout.tensor if name in cuts else 1)

    return [
        sum(numbers(f"blocks.{index}.{name}", parameter) for name, parameter in block.named_parameters())
        for index, block in enumerate(model.blocks)
    ]


def outside_blocks(model: Decoder) -> int:
    """Numbers of weights of embedding, stream and head."""
    return _numbers(model.parameters()) - _numbers(model.blocks.parameters())


def step_bytes(config: RunConfig, windows: int, length: int, precision: str, layout: Layout, gpu: bool = True) -> Live:
    """What a step has alive beside weights, gradients and moments.

    Where processes share windows it is that of one of them, measured as the rest is: its tokens, and attention with all
    of the window's. Where they share blocks, its heads and neurons.

    Args:
        config: says what is kept of the stream and of layers.
        windows: of a micro-batch and process.
        length: of a window.
        precision: `bf16` or `float32`.
        layout: how weights come to where they compute, and how many processes share a window, or blocks.
        gpu: whether a GPU computes it, or a CPU.
    """
    gathered = torch.bfloat16 if layout.gather == "bf16" else torch.float32

    def way(model: ModelConfig) -> Depth:
        train = config.train
        # As a GPU does it, or a CPU with its kernels: writes where that is faster too.
        fused = train.stream_memory == "auto" and stream_class(model.stream.kind).spec(model).undo == "kernel"
        return plan_depth(
            model,
            torch.device("cpu"),
            "writes" if fused else train.stream_memory,
            train.anchors,
            "reference",
            train.state_precision,
            recompute=train.activation_checkpointing,
        )

    split = SharedWindows(layout.context) if layout.context > 1 else None
    blocks = SharedBlocks(layout.tensor) if layout.tensor > 1 else None
    return live_bytes(replace(config.model, context=length), way, windows, precision, gathered, gpu, split, blocks)


def _numbers(parameters: Iterator[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
