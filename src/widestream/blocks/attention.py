"""Causal self-attention in two forms: dense, with W_Q, W_K, W_V, W_O of its own; bare, fed with heads by the stream.

Either may mix the first block's values into its own (`ValueResidual`).

Letters: B batch, T tokens, H heads, K head width (RMT: D_v), D width, S keys so far.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import flop_counter

from widestream.blocks.context import Context, Window
from widestream.blocks.flex import FlexMask, flex
from widestream.blocks.positions import rotate
from widestream.blocks.roles import Axis, Declared, Role, Roles, size
from widestream.errors import UserError
from widestream.kernels.attention_cpu import attention, suits
from widestream.recipe.model import ModelConfig

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


class ValueResidual(Declared):
    """What attention block n does with V_1, the values of the first one (Zhou et al., arXiv 2410.17897, section 3).

        fixed, learned   V'_n = lambda_1 V_1 + lambda_2 V_n    ResFormer; lambda = (1/2, 1/2), or learned from (0, 1)
        shared           V'_n = V_1                            SVFormer; V_n need not be made, nor W_V exist

    It is the block's own, whatever the stream. Learned starts plain and costs two scalars a block; shared saves D^2
    a block and the cached values of all blocks but the first. Reported: the plain model's loss with 16.1 % fewer
    parameters or 20.3 % fewer tokens (fixed; 82M to 468M, 20B tokens).

    Args:
        config: the model's.
        slot: number of the attention block, from 0; the first one leaves its values to the others.
    """

    weights: Tensor
    """lambda_1, lambda_2."""

    def __init__(self, config: ModelConfig, slot: int):
        super().__init__()
        self.kind = config.value_residual
        self.first = slot == 0
        if self.kind == "learned" and not self.first:
            self.declare("weights", (2,), Role(std=0.0, decay="none", part="attention"))

    def initial_values(self) -> dict[str, Tensor]:
        """Lambda = (0, 1)."""
        return {name: torch.tensor([0.0, 1.0]) for name in self.own_roles}

    @property
    def replaced(self) -> bool:
        """Whether the block needs no values of its own."""
        return self.kind == "shared" and not self.first

    def check(self, inputs: dict[str, Tensor]) -> None:
        """Refuse values that would be dropped.

        Raises:
            UserError: the stream hands values to a block that has others in their place.
        """
        if self.replaced and "v" in inputs:
            raise UserError(
                "model.value_residual: shared takes W_V away; this stream hands attention values of its own, "
                "so use fixed or learned."
            )

    def forward(self, v: Tensor | None, context: Context) -> Tensor:
        """V_n [B, T, H, K], None where it is replaced -> V'_n [B, T, H, K]."""
        if self.replaced:
            return context.shared["values"]
        assert v is not None
        if self.kind == "none":
            return v
        if self.first:
            context.shared["values"] = v
            return v
        first = context.shared["values"]
        if self.kind == "fixed":
            return (first + v) / 2
        return self.weights[0] * first + self.weights[1] * v


class BareAttention(torch.nn.Module):
    """softmax(q k^T scale / (layer + 1)) v, and nothing else (RMT paper eq. 21), but for a value residual.

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
        self.values = ValueResidual(config, self.slot)

    def forward(self, inputs: dict[str, Tensor], context: Context) -> Tensor:
        """Roles q, k, v [B, T, H, K] -> heads [B, T, H, K]."""
        self.values.check(inputs)
        return self.attend(inputs["q"], inputs["k"], inputs.get("v"), context)

    def attend(self, q: Tensor, k: Tensor, v: Tensor | None, context: Context) -> Tensor:
        """q, k, v [B, T, H, K] -> heads [B, T, H, K]; v is None where the first block's values replace it."""
        mixed: Tensor = self.values(v, context)
        if self.upcast:
            with torch.autocast(q.device.type, enabled=False):  # autocast would cast them down again
                return self._attend(q.float(), k.float(), mixed.float(), context).to(mixed.dtype)
        return self._attend(q, k, mixed, context)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        q, k, v = (_with_head_rows(x.transpose(1, 2)) for x in (q, k, v))
        if context.rotary is not None:
            q, k = rotate(q, context.rotary), rotate(k, context.rotary)
        if context.cache is not None:
            k, v = context.cache.append(self.slot, k, v, context.positions if context.fixed else None)
        mask = context.masks[self.window]
        if context.fused or isinstance(mask, FlexMask):
            q, k, v = (_as_autocast(x) for x in (q, k, v))
        if isinstance(mask, FlexMask):
            return flex(q, k, v, mask, self.scale).transpose(1, 2)
        if context.fused and suits(q, k, v):
            return attention(q, k, v, mask, self.scale).transpose(1, 2)
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
    """W_Q, W_K, W_V one above the other [3 H K, D]; without W_V [2 H K, D] where other values replace these."""
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
        self.projects = "qk" if self.core.values.replaced else "qkv"
        slots = replace(roles.qkv, size=len(self.projects))
        qkv = roles.hidden(axes, (slots, *heads), "attention", zero_rows=zero_rows)
        self.declare("qkv", (slots.size * inner, width), qkv)
        self.declare("out", (width, inner), roles.hidden(heads, axes, "attention", output=True))

    def forward(self, inputs: dict[str, Tensor], context: Context) -> Tensor:
        """Role x [B, T, D], or roles q, k, v [B, T, D] each -> [B, T, D]."""
        self.core.values.check(inputs)
        if "x" in inputs:
            projected = F.linear(inputs["x"], self.qkv).chunk(len(self.projects), dim=-1)
        else:
            weights = self.qkv.chunk(len(self.projects))
            projected = [F.linear(inputs[role], w) for role, w in zip(self.projects, weights, strict=True)]
        q, k, *v = (x.unflatten(-1, self.head_shape) for x in projected)
        return F.linear(self.core.attend(q, k, v[0] if v else None, context).flatten(2), self.out)


def _as_autocast(x: Tensor) -> Tensor:
    """What autocast makes of an input of SDPA."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _with_head_rows(x: Tensor) -> Tensor:
    """Heads [B, H, T, K] whose last axis is contiguous, which every fused attention kernel wants."""
    return x if x.stride(-1) == 1 else x.contiguous()
