"""From the settings of a run to a way through the depth."""

from dataclasses import replace
from typing import Any, Literal

import torch

from widestream.errors import UserError
from widestream.kernels.compiled import require_compiler
from widestream.kernels.exchange import KernelSetting, ReferenceExchange, choose_exchange
from widestream.model.depth.compiled import Compiled, CompiledBlocks
from widestream.model.depth.eager import Depth, Eager
from widestream.model.depth.operator import Fused
from widestream.model.depth.rebuilt import Rebuilt
from widestream.model.depth.recompute import Recomputed, RecomputedBlocks, sites_of_layers
from widestream.recipe.model import ModelConfig
from widestream.streams import stream_class

Memory = Literal["auto", "states", "writes"]
Precision = Literal["float32", "bf16"]


def plan_depth(
    config: ModelConfig,
    device: torch.device,
    memory: Memory = "auto",
    anchors: int = 0,
    kernels: KernelSetting = "auto",
    state_precision: Precision = "float32",
    *,
    recompute: bool = False,
    compiled: bool = False,
    **options: Any,
) -> Depth:
    """Choose a way through the depth.

    Args:
        config: the model's.
        device: where it computes.
        memory: `states`, `writes`, or `auto`: writes where a fused kernel makes that the faster way too, or where
            another setting needs it; else states.
        anchors: exact copies of the state; 0: none where writes are undone, `Stream.replay_anchors` where states are
            replayed.
        kernels: see `kernels.exchange.choose_exchange`.
        state_precision: of the live state.
        recompute: keep only what crosses the bounds of layers (of blocks, where states are rebuilt).
        compiled: compile all of it (block by block, where states are rebuilt).
        options: for `torch.compile`.

    Raises:
        UserError: settings that the stream or each other cannot serve, or nothing to compile with.
    """
    if compiled and "backend" not in options:
        require_compiler("train.compile", device)
    cls = stream_class(config.stream.kind)
    exchanges = _plan_exchanges(config, device, memory, anchors, kernels, state_precision)
    if isinstance(exchanges, Rebuilt):
        loop: Depth = RecomputedBlocks(Eager()) if recompute else Eager()
        return replace(exchanges, loop=CompiledBlocks(loop, **options) if compiled else loop)
    loop = Recomputed(sites_of_layers(cls.blocks(config))) if recompute else Eager()
    depth = replace(exchanges, loop=loop) if isinstance(exchanges, Fused) else loop
    return Compiled(depth, **options) if compiled else depth


def _plan_exchanges(
    config: ModelConfig,
    device: torch.device,
    memory: Memory,
    anchors: int,
    kernels: KernelSetting,
    state_precision: Precision,
) -> Rebuilt | Fused | None:
    """How exchanges are computed and what is kept of them; None: as the stream has them, and its states."""
    kind, cls = config.stream.kind, stream_class(config.stream.kind)
    undo, writes = cls.spec(config).undo, len(cls.blocks(config))
    if memory == "writes" and undo == "no":
        raise UserError(
            f"A {kind} stream rebuilds no states, which take no more than what is written to it; "
            "use train.stream_memory: auto or states."
        )
    if kernels == "fused" and undo != "kernel":
        raise UserError(f"train.kernels: fused has no form for the exchange of a {kind} stream; use auto.")
    if memory == "states" or undo == "no":
        asked = {"anchors": anchors > 0, "state_precision": state_precision == "bf16"}
        for name in (name for name, given in asked.items() if given):
            why = f"a {kind} stream saves its states" if undo == "no" else "train.stream_memory is states"
            raise UserError(f"train.{name} acts where states are rebuilt from writes, but {why}; leave it out.")
        return _plan_saving(device, kernels) if undo == "kernel" else None
    needed = anchors > 0 or kernels == "fused" or state_precision == "bf16"
    fused = undo == "kernel" and not isinstance(choose_exchange(kernels, device), ReferenceExchange)
    if memory == "auto" and not needed and not fused:
        return None
    if anchors >= writes:
        raise UserError(f"train.anchors is {anchors}; it must be below the number of this model's blocks, {writes}.")
    if undo != "kernel":
        if state_precision == "bf16":
            raise UserError(f"train.state_precision: bf16 does not suit a {kind} stream; use float32.")
        return Rebuilt(anchors=anchors or (cls.replay_anchors(config) if undo == "replay" else 0))
    return Rebuilt(choose_exchange(kernels, device), anchors, state_precision == "bf16")


def _plan_saving(device: torch.device, kernels: KernelSetting) -> Fused | None:
    """Operators where a fused kernel is behind them; torch operations do not gain by being one.

    `auto` takes them where that was measured.
    """
    exchange = choose_exchange(kernels if kernels == "fused" or device.type == "cpu" else "reference", device)
    return None if isinstance(exchange, ReferenceExchange) else Fused(type(exchange).__name__)
