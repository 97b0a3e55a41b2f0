"""Causal self-attention in two forms: dense, with W_Q, W_K, W_V, W_O of its own; bare, fed with heads by the stream.

Either may have fewer heads of keys and values than of queries, norms of queries and keys (`qk_norm.py`), biases, a soft
cap, a window, and may mix the first block's values into its own (`ValueResidual`).

Letters: B batch, T tokens, H heads, H_kv heads of keys and values, K head width (RMT: D_v), D width, S keys so far.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import flop_counter

from widestream.blocks.context import Context, Window
from widestream.blocks.convolution import causal_convolution
from widestream.blocks.flex import FlexMask, flex
from widestream.blocks.qk_norm import QKNorm
from widestream.blocks.roles import Axis, Declared, Role, Roles, size
from widestream.blocks.rotary import rotate
from widestream.blocks.split import share_of
from widestream.errors import UserError
from widestream.kernels.attention_cpu import attention, suits
from widestream.kernels.autocasting import autocast_dtype, no_autocast
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
        gated            V'_n = V_n + relu(W_n x) V_1          SATFormer (Gunasekaran et al., arXiv 2605.03953)

    It is the block's own, whatever the stream. Learned starts plain and costs two scalars a block; shared saves D^2
    a block and the cached values of all blocks but the first. Reported: the plain model's loss with 16.1 % fewer
    parameters or 20.3 % fewer tokens (fixed; 82M to 468M, 20B tokens).

    Gated: every token decides for every head of values by what attention receives, W_n [H_kv, D]; it does not start
    plain, as W_n starts at random (as the authors' code, SkyeGunasekaran/SATFormer, has it, with relu and without a
    bias by default). Its other gates are not here. Reported by its authors: better than learned at 130M to 1.3B, by
    about 1.5 points on tasks of retrieval.

    Args:
        config: the model's.
        slot: number of the attention block, from 0; the first one leaves its values to the others.
        axes: of what the block receives, None where that is heads.

    Raises:
        UserError: `gated` for a block that receives heads.
    """

    weights: Tensor
    """lambda_1, lambda_2."""
    gate: Tensor
    """W_n [H_kv, D]."""

    def __init__(self, config: ModelConfig, slot: int, axes: tuple[Axis, ...] | None = None):
        super().__init__()
        self.kind = config.value_residual
        self.first = slot == 0
        if self.kind == "gated" and axes is None:
            raise UserError(
                f"model.value_residual: gated makes its gate from the vector that attention receives, and a "
                f"{config.stream.kind} stream hands it heads; use fixed or learned."
            )
        if self.kind == "learned" and not self.first:
            self.declare("weights", (2,), Role(std=0.0, decay="none", part="attention"))
        if self.kind == "gated" and not self.first:
            assert axes is not None
            roles = Roles(config)
            gate = replace(roles.hidden(axes, (roles.kv_heads,), "attention"), muon=False)
            self.declare("gate", (config.kv_heads, size(axes)), gate)

    def initial_values(self) -> dict[str, Tensor]:
        """Lambda = (0, 1)."""
        return {"weights": torch.tensor([0.0, 1.0])} if "weights" in self.own_roles else {}

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

    def forward(self, v: Tensor | None, context: Context, x: Tensor | None = None) -> Tensor:
        """V_n [B, T, H, K], None where it is replaced -> V'_n [B, T, H, K]; x [B, T, D] makes the gate."""
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
        if self.kind == "gated":
            assert x is not None
            return v + F.linear(x, self.gate).relu().unsqueeze(-1) * first
        return self.weights[0] * first + self.weights[1] * v


class BareAttention(Declared):
    """softmax(q k^T scale / (layer + 1)) v, and what the model's settings put around it (RMT paper eq. 21).

    In this order: biases, convolution over tokens, norm of q and k, rotary positions (or the norm behind them), logits,
    soft cap, mask.

    Args:
        config: the model's.
        layer: index of the layer, from 0.
        slot: where its keys and values lie in the cache; default: the layer.
        window: how many tokens back it sees, the token itself counted; None: all.
        bias_out: whether it puts out heads with a bias, where the model has one; W_O brings its own.
        axes: of the vector that queries, keys and values are made of; None: the block receives these.
    """

    bias_q: Tensor
    """[H K]."""
    bias_k: Tensor
    """[H_kv K]."""
    bias_v: Tensor
    """[H_kv K]."""
    bias_out: Tensor
    """[H K]."""
    taps_q: Tensor
    """Of the convolution of queries [J, H, K], tap j for j tokens back."""
    taps_k: Tensor
    """[J, H_kv, K]."""
    taps_v: Tensor
    """[J, H_kv, K]."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        slot: int | None = None,
        window: Window = None,
        bias_out: bool = True,
        axes: tuple[Axis, ...] | None = None,
    ):
        super().__init__()
        roles = Roles(config)
        self.slot = layer if slot is None else slot
        self.window = window
        self.scale = roles.attention_scale() / (layer + 1 if config.inverse_layer_scaling else 1)
        self.soft_cap = config.attention_soft_cap
        self.upcast = config.upcast_attention
        self.rotates = config.rotates(layer)
        self.values = ValueResidual(config, self.slot, axes)
        self.norm_before, self.norm_after = (
            QKNorm(config, roles) if config.qk_norm.over != "none" and config.qk_norm.place == place else None
            for place in ("before", "after")
        )
        heads = {"q": config.num_heads, "k": config.kv_heads, "v": config.kv_heads}
        if self.values.replaced:
            del heads["v"]
        convolved = "" if config.attention_convolution == "none" else config.attention_convolution
        self.convolved = tuple(name for name in heads if name in convolved)
        for name in self.convolved:
            shape = (config.attention_convolution_taps, heads[name], config.head_dim)
            self.declare(f"taps_{name}", shape, Role(0.0, "none", part="attention"))
        heads = heads if config.attention_bias != "none" else {}
        if config.attention_bias == "all" and bias_out:
            heads["out"] = config.num_heads
        self.biased = tuple(heads)
        for name, number in heads.items():
            self.declare(f"bias_{name}", (number * config.head_dim,), roles.bias("attention"))

    def initial_values(self) -> dict[str, Tensor]:
        """Convolutions start as the identity: 1 for the token itself, 0 for those before."""
        identity = {}
        for name in self.convolved:
            taps = torch.zeros(self.own_shapes[f"taps_{name}"])
            taps[0] = 1.0
            identity[f"taps_{name}"] = taps
        return identity

    def forward(self, inputs: dict[str, Tensor], context: Context) -> Tensor:
        """Roles q [B, T, H, K], k, v [B, T, H_kv, K] -> heads [B, T, H, K]."""
        self.values.check(inputs)
        return self.attend(inputs["q"], inputs["k"], inputs.get("v"), context)

    def attend(self, q: Tensor, k: Tensor, v: Tensor | None, context: Context, x: Tensor | None = None) -> Tensor:
        """From q [B, T, H, K] and k, v [B, T, H_kv, K] to heads [B, T, H, K].

        Without v, the first block's values are in its place. v was made of x [B, T, D], if of a vector.
        """
        q, k = self._made("q", q, context), self._made("k", k, context)
        mixed: Tensor = self.values(None if v is None else self._made("v", v, context), context, x)
        if self.upcast:
            with no_autocast(q.device):  # autocast would cast them down again
                out = self.mix(q.float(), k.float(), mixed.float(), context).to(mixed.dtype)
        else:
            out = self.mix(q, k, mixed, context)
        return self._biased("out", out)

    def _made(self, name: str, heads: Tensor, context: Context) -> Tensor:
        """Queries, keys or values as they are handed in, with their bias and convolution."""
        heads = self._biased(name, heads)
        if name not in self.convolved:
            return heads
        taps = getattr(self, f"taps_{name}").to(heads.dtype)
        return causal_convolution(heads, taps, context, f"attention {self.slot} {name}")

    def _biased(self, name: str, heads: Tensor) -> Tensor:
        return heads + getattr(self, f"bias_{name}").view(heads.shape[2:]) if name in self.biased else heads

    def mix(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """Attention itself: q [B, T, H, K], k, v [B, T, H_kv, K] -> heads [B, T, H, K]."""
        q, k = self.place(q, k, context)
        if context.split is None:
            return self._mix_tokens(q, k, v, context)
        q, k, v = context.split.to_heads(*(as_autocast(x) for x in (q, k, v)))
        return context.split.to_tokens(self._mix_tokens(q, k, v, context))

    def _mix_tokens(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """The same of heads in their place, all of a window's tokens."""
        q, k, v = (_with_head_rows(x.transpose(1, 2)) for x in (q, k, v))
        if context.cache is not None:
            k, v = context.cache.append(self.slot, k, v, context.positions if context.fixed else None)
        k, v = (for_all_heads(x, q.shape[1]) for x in (k, v))
        mask = context.masks[self.window]
        if context.fused or isinstance(mask, FlexMask):
            q, k, v = (as_autocast(x) for x in (q, k, v))
        if isinstance(mask, FlexMask):
            return flex(q, k, v, mask, self.scale).transpose(1, 2)
        if self.soft_cap is not None:
            weights = attention_weights(q, k, mask, self.scale, self.soft_cap)
            return (weights.to(v.dtype) @ v).transpose(1, 2)
        if context.fused and suits(q, k, v):
            return attention(q, k, v, mask, self.scale).transpose(1, 2)
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)
        causal = mask is None and q.shape[2] > 1
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale)
        return out.transpose(1, 2)

    def place(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Norms and rotary positions of q and k [B, T, H, K]."""
        angles = context.rotary[self.window is not None] if self.rotates else None
        # What is turned last may be rounded at once; a cache has a type of its own.
        dtype = autocast_dtype(q.device) if self.norm_after is None and context.cache is None else None
        if self.norm_before is not None:
            q, k = self.norm_before(q, k, angles, dtype)
        elif angles is not None:
            q, k = rotate(q, angles, dtype=dtype), rotate(k, angles, dtype=dtype)
        return (q, k) if self.norm_after is None else self.norm_after(q, k)


class DenseAttention(Declared):
    """Attention with its own projections (paper eqs. 7-9): x -> W_O softmax(...) with q, k, v = W_Q x, W_K x, W_V x.

    Args:
        config: the model's.
        layer: index of the layer, from 0.
        roles: for the weights' roles.
        axes: axes of what it receives and puts out, whose sizes multiply to its width; default: the width D.
        slot, window: see `BareAttention`.
    """

    qkv: Tensor
    """W_Q, W_K, W_V one above the other [(H + 2 H_kv) K, D]; without W_V where other values replace these."""
    out: Tensor
    """W_O [D, H K]."""
    bias_out: Tensor | None
    """[D], with `attention_bias: all`."""

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
        self.core = BareAttention(config, layer, slot, window, bias_out=False, axes=axes)
        self.head_dim = config.head_dim
        self.bias_share = 1.0
        """The part of `bias_out` that this process adds, of those that share the block."""
        inner, width = config.num_heads * config.head_dim, size(axes)
        numbers = {"q": roles.heads.size, "k": roles.kv_heads.size, "v": roles.kv_heads.size}
        if self.core.values.replaced:
            del numbers["v"]
        self.rows = {role: number * config.head_dim for role, number in numbers.items()}
        """Rows of `qkv` that are W_Q, W_K, W_V."""
        heads = roles.like_heads(sum(numbers.values()))
        zero_rows = inner if config.init.query_zero else 0
        parts = tuple(self.rows.values())
        qkv = roles.hidden(axes, (heads, roles.head_dim), "attention", zero_rows=zero_rows, splits=parts)
        self.declare("qkv", (sum(parts), width), qkv)
        self.declare("out", (width, inner), roles.hidden((roles.heads, roles.head_dim), axes, "attention", output=True))
        if config.attention_bias == "all":
            self.declare("bias_out", (width,), roles.bias("attention"))
        else:
            self.register_parameter("bias_out", None)

    def forward(self, inputs: dict[str, Tensor], context: Context) -> Tensor:
        """Role x [B, T, D], or roles q, k, v [B, T, D] each -> [B, T, D]."""
        self.core.values.check(inputs)
        rows = list(self.rows.values())
        if "x" in inputs:
            projected = F.linear(inputs["x"], self.qkv).split(rows, dim=-1)
        else:
            weights = self.qkv.split(rows)
            projected = [F.linear(inputs[role], w) for role, w in zip(self.rows, weights, strict=True)]
        q, k, *v = (x.unflatten(-1, (-1, self.head_dim)) for x in projected)
        source = inputs["x"] if "x" in inputs else inputs.get("v")
        return self.put_out(self.core.attend(q, k, v[0] if v else None, context, source))

    def put_out(self, heads: Tensor) -> Tensor:
        """W_O: heads [B, T, H, K] -> [B, T, D]."""
        return F.linear(heads.flatten(2), self.out, share_of(self.bias_out, self.bias_share))


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, cap: float | None = None) -> Tensor:
    """softmax(cap tanh(q k^T scale / cap) + mask) [B, H, T, S], in float32 or wider: no fused kernel has a cap.

    Args:
        q: [B, H, T, K].
        k: [B, H, S, K].
        mask: added (float) or allowed pairs (bool), broadcastable to [B, H, T, S]; None: causal.
        scale: of the logits.
        cap: c; None: no cap.
    """
    logits = (q @ k.mT).float() * scale if q.itemsize < 4 else (q @ k.mT) * scale
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    if mask is None:
        past = k.shape[2] - q.shape[2]
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).tril(past)
    logits = logits + mask if mask.is_floating_point() else logits.masked_fill(~mask, float("-inf"))
    return logits.softmax(dim=-1)


def for_all_heads(x: Tensor, num_heads: int, dim: int = 1) -> Tensor:
    """Keys or values [B, H_kv, S, K], each for the heads of queries that share it [B, H, S, K]; `dim` is the heads'."""
    return x if x.shape[dim] == num_heads else x.repeat_interleave(num_heads // x.shape[dim], dim=dim)


def as_autocast(x: Tensor) -> Tensor:
    """What autocast makes of an input of SDPA."""
    dtype = autocast_dtype(x.device)
    return x if dtype is None else x.to(dtype)


def _with_head_rows(x: Tensor) -> Tensor:
    """Heads [B, H, T, K] whose last axis is contiguous, which every fused attention kernel wants."""
    return x if x.stride(-1) == 1 else x.contiguous()
