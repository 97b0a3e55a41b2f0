"""Causal self-attention in two forms: dense, with W_Q, W_K, W_V, W_O of its own; bare, fed with heads by the stream.

Letters: B batch, T tokens, H heads, K head width (RMT: D_v), D width, S keys so far.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import flop_counter

from widestream.nn.cache import KVCache
from widestream.nn.config import ModelConfig
from widestream.nn.positions import alibi_bias, rotary_angles, rotate
from widestream.nn.roles import Declared, Roles

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


@dataclass(frozen=True)
class AttentionContext:
    """What all layers of one forward pass share."""

    mask: Tensor | None
    """Added to the logits (float) or allowed pairs (bool), broadcastable to [B, H, T, S]; None: causal alone."""
    rotary: tuple[Tensor, Tensor] | None
    """cos and sin of the tokens' rotary angles."""
    cache: KVCache | None
    """Earlier keys and values when sampling."""


def attention_context(
    config: ModelConfig, positions: Tensor, segments: Tensor | None, mask: Tensor | None, cache: KVCache | None
) -> AttentionContext:
    """Build masks, biases and angles once for all layers.

    Args:
        config: the model's.
        positions: of the tokens in their sequence [T].
        segments: document of every token [B, T]; used if `config.document_mask`.
        mask: allowed (query, key) pairs [B, T, T], instead of one built from `segments`.
        cache: earlier keys and values.
    """
    start = cache.length if cache else 0
    keys = torch.arange(start + len(positions), device=positions.device)
    if mask is not None:
        mask = mask[:, None]
    elif segments is not None and config.document_mask:
        mask = ((segments[:, :, None] == segments[:, None, :]) & (positions[:, None] >= keys[None, :]))[:, None]
    elif config.positions == "alibi" or start:
        mask = (positions[:, None] >= keys[None, :])[None, None]
    if config.positions == "alibi":
        assert mask is not None
        bias = alibi_bias(config.num_heads, positions, keys)[None]
        mask = bias.masked_fill(~mask, float("-inf"))
    rotary = rotary_angles(positions, config.head_dim, config.rotary_base) if config.positions == "rotary" else None
    return AttentionContext(mask, rotary, cache)


class BareAttention(torch.nn.Module):
    """softmax(q k^T scale / (layer + 1)) v, and nothing else (RMT paper eq. 21).

    Args:
        config: the model's.
        layer: index of the layer, from 0.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.scale = Roles(config).attention_scale() / (layer + 1 if config.inverse_layer_scaling else 1)
        self.upcast = config.upcast_attention

    def forward(self, inputs: dict[str, Tensor], context: AttentionContext) -> Tensor:
        """Roles q, k, v [B, T, H, K] -> heads [B, T, H, K]."""
        return self.attend(inputs["q"], inputs["k"], inputs["v"], context)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> Tensor:
        """q, k, v [B, T, H, K] -> heads [B, T, H, K]."""
        if self.upcast:
            with torch.autocast(q.device.type, enabled=False):  # autocast would cast them down again
                return self._attend(q.float(), k.float(), v.float(), context).to(v.dtype)
        return self._attend(q, k, v, context)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> Tensor:
        q, k, v = (_with_head_rows(x.transpose(1, 2)) for x in (q, k, v))
        if context.rotary is not None:
            q, k = rotate(q, context.rotary), rotate(k, context.rotary)
        if context.cache is not None:
            k, v = context.cache.append(self.layer, k, v)
        mask = context.mask
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)
        causal = mask is None and q.shape[2] > 1
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale).transpose(
            1, 2
        )


def _with_head_rows(x: Tensor) -> Tensor:
    """Heads [B, H, T, K] whose last axis is contiguous, which every fused attention kernel wants."""
    return x if x.stride(-1) == 1 else x.contiguous()


class DenseAttention(Declared):
    """Attention with its own projections (paper eqs. 4-9): x -> W_O softmax(...) with q, k, v = W_Q x, W_K x, W_V x.

    Args:
        config: the model's.
        layer: index of the layer, from 0.
        roles: for the weights' roles.
    """

    qkv: Tensor
    """W_Q, W_K, W_V one above the other [3 H K, D]."""
    out: Tensor
    """W_O [D, H K]."""

    def __init__(self, config: ModelConfig, layer: int, roles: Roles):
        super().__init__()
        self.core = BareAttention(config, layer)
        self.head_shape = (config.num_heads, config.head_dim)
        inner, width = config.num_heads * config.head_dim, config.embed_dim
        heads = (roles.heads, roles.head_dim)
        zero_rows = inner if config.init.query_zero else 0
        qkv = roles.hidden((roles.width,), (roles.qkv, *heads), "attention", zero_rows=zero_rows)
        self.declare("qkv", (3 * inner, width), qkv)
        self.declare("out", (width, inner), roles.hidden(heads, (roles.width,), "attention", output=True))

    def forward(self, inputs: dict[str, Tensor], context: AttentionContext) -> Tensor:
        """Role x [B, T, D] -> [B, T, D]."""
        q, k, v = F.linear(inputs["x"], self.qkv).unflatten(-1, (3, *self.head_shape)).unbind(2)
        return F.linear(self.core.attend(q, k, v, context).flatten(2), self.out)
