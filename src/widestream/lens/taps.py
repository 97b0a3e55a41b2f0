"""What attention blocks compute inside: queries, keys, values, patterns, heads."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from widestream.blocks.attention import BareAttention, attention_weights, for_all_heads
from widestream.blocks.context import Context
from widestream.blocks.flex import FlexMask
from widestream.model.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Heads:
    """One attention block in a forward pass."""

    core: BareAttention
    context: Context
    q: Tensor
    """[B, T, H, K] as they are multiplied: normed and turned."""
    k: Tensor
    """[B, T, H_kv, K] likewise."""
    v: Tensor
    """[B, T, H_kv, K]."""
    z: Tensor
    """What heads put out, before W_O [B, T, H, K]."""

    def pattern(self) -> Tensor:
        """Attention weights [B, H, T, T], in float32 or wider."""
        q, k = (x.transpose(1, 2) for x in (self.q, self.k))
        mask = self.context.masks[self.core.window]
        assert not isinstance(mask, FlexMask), "a look computes with masks in memory"
        return attention_weights(q, for_all_heads(k, q.shape[1]), mask, self.core.scale, self.core.soft_cap)


@contextmanager
def tap_heads(model: Decoder) -> Iterator[list[Heads]]:
    """Collect what attention blocks compute, in the order in which they do, in the forward passes inside."""
    tapped: list[Heads] = []
    cores = [module for module in model.modules() if isinstance(module, BareAttention)]

    def tap(core: BareAttention) -> Any:
        mix = core.mix

        def mix_and_keep(q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
            z = mix(q, k, v, context)
            tapped.append(Heads(core, context, *core.place(q, k, context), v, z))
            return z

        return mix_and_keep

    before = [core.__dict__.get("mix") for core in cores]  # another tap around this one
    for core in cores:
        core.mix = tap(core)  # type: ignore[method-assign]
    try:
        yield tapped
    finally:
        for core, mix in zip(cores, before, strict=True):
            del core.mix
            if mix is not None:
                core.mix = mix  # type: ignore[method-assign]
