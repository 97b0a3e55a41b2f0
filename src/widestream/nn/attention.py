"""Causal self-attention in two forms: dense, with W_Q, W_K, W_V, W_O of its own; bare, fed with heads by the stream.

Letters: B batch, T tokens, H heads, K head width (RMT: D_v), D width, S keys so far.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import flop_counter

from widestream.nn.config import ModelConfig
from widestream.nn.context import Context, Window
from widestream.nn.positions import rotate
from widestream.nn.roles import Axis, Declared, Roles, size

# torch's FLOP counter has no entry for the attention kernel that CPUs use, and reports zero for it. What its backward
# pass computes a second time is not counted, as nowhere in this package.
_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
if _FORWARD not in flop_counter.flop_registry:
    flop_counter.register_flop_formula(_FORWARD)(
        lambda q, k, v, *_, out_shape=None, **__: flop_counter.sdpa_flop_count(q, k, v)
    )
    flop_counter.register_flop_formula(_BACKWARD)(
        lambda grad, q, k, v, *_, out_shape=None, **__: 2 * flop_counter.sdpa_flop_count(q, k, v)
    )


class BareAttention(torch.nn.Module):
    """softmax(q k^T scale / (layer + 1)) v, and nothing else (RMT paper eq. 21).

    Args:
        config: the model's.
        layer: index of the layer, from 0.
        slot: where its keys and values lie in the cache; default: the layer.
        window: how many tokens back it sees, the token itself counted; None: all.
    """

    def __init__(self, config: ModelConfig, layer: int, slot: int | None = None, window: Window = None):
        super().__init__()
        self.slot = layer if slot is None else slot
        self.window = window
        self.scale = Roles(config).attention_scale() / (layer + 1 if config.inverse_layer_scaling else 1)
        self.upcast = config.upcast_attention

    def forward(self, inputs: dict[str, Tensor], context: Context) -> Tensor:
        """Roles q, k, v [B, T, H, K] -> heads [B, T, H, K]."""
        return self.attend(inputs["q"], inputs["k"], inputs["v"], context)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """q, k, v [B, T, H, K] -> heads [B, T, H, K]."""
        if self.upcast:
            with torch.autocast(q.device.type, enabled=False):  # autocast would cast them down again
                return self._attend(q.float(), k.float(), v.float(), context).to(v.dtype)
        return self._attend(q, k, v, context)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        q, k, v = (_with_head_rows(x.transpose(1, 2)) for x in (q, k, v))
        if context.rotary is not None:
            q, k = rotate(q, context.rotary), rotate(k, context.rotary)
        if context.cache is not None:
            k, v = context.cache.append(self.slot, k, v)
        mask = context.masks[self.window]
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)
        causal = mask is None and q.shape[2] > 1
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale)
        return out.transpose(1, 2)


class DenseAttention(Declared):
    """Attention with its own projections (paper eqs. 4-9): x -> W_O softmax(...) with q, k, v = W_Q x, W_K x, W_V x.

    Args:
        config: the model's.
        layer: index of the layer, from 0.
        roles: for the weights' roles.
        axes: axes of what it receives and puts out, whose sizes multiply to its width; default: the width D.
        slot, window: see `BareAttention`.
    """

    qkv: Tensor
    """W_Q, W_K, W_V one above the other [3 H K, D]."""
    out: Tensor
    """W_O [D, H K]."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        roles: Roles,
        axes: tuple[Axis, ...] | None = None,
        slot: int | None = None,
        window: Window = None,
    ):
        super().__init__()
        axes = (roles.width,) if axes is None else axes
        self.core = BareAttention(config, layer, slot, window)
        self.head_shape = (config.num_heads, config.head_dim)
        inner, width = config.num_heads * config.head_dim, size(axes)
        heads = (roles.heads, roles.head_dim)
        zero_rows = inner if config.init.query_zero else 0
        qkv = roles.hidden(axes, (roles.qkv, *heads), "attention", zero_rows=zero_rows)
        self.declare("qkv", (3 * inner, width), qkv)
        self.declare("out", (width, inner), roles.hidden(heads, axes, "attention", output=True))

    def forward(self, inputs: dict[str, Tensor], context: Context) -> Tensor:
        """Role x [B, T, D], or roles q, k, v [B, T, D] each -> [B, T, D]."""
        if "x" in inputs:
            projected = F.linear(inputs["x"], self.qkv).chunk(3, dim=-1)
        else:
            weights = self.qkv.chunk(3)
            projected = [F.linear(inputs[role], w) for role, w in zip("qkv", weights, strict=True)]
        q, k, v = (x.unflatten(-1, self.head_shape) for x in projected)
        return F.linear(self.core.attend(q, k, v, context).flatten(2), self.out)


def _with_head_rows(x: Tensor) -> Tensor:
    """Heads [B, H, T, K] whose last axis is contiguous, which every fused attention kernel wants."""
    return x if x.stride(-1) == 1 else x.contiguous()
