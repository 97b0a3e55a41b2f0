"""LayerNorm and RMSNorm, over one axis or jointly over several, in the forms that families of models have.

y = x / rms(x) * g          g from ones, or 1 + w with w from zeros (`norm_offset`)
y = (x - mean) / std * g + b                            b with `norm_bias`
"""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from widestream.blocks.roles import Declared, Roles
from widestream.kernels.autocasting import autocast_dtype
from widestream.kernels.norm_cpu import rms_norm
from widestream.recipe.model import ModelConfig

Kind = Literal["layernorm", "rmsnorm"]


class Norm(Declared):
    """Normalises jointly over the last axes, then multiplies by a gain.

    Args:
        config: the model's, which says of what form its norms are.
        roles: for the gain's role.
        shape: sizes of the axes normalised over.
        gain_shape: shape of the gain, which broadcasts against the last axes; default: `shape`.
        has_gain: whether there is a gain.
        kind: `layernorm` (subtracts the mean) or `rmsnorm`; default: the model's.
        eps: default: the model's.
    """

    gain: Tensor | None
    """g, or w where g is 1 + w."""
    bias: Tensor | None
    """b, of the gain's shape."""

    def __init__(
        self,
        config: ModelConfig,
        roles: Roles,
        shape: tuple[int, ...],
        gain_shape: tuple[int, ...] | None = None,
        *,
        has_gain: bool = True,
        kind: Kind | None = None,
        eps: float | None = None,
    ):
        super().__init__()
        self.kind: Kind = kind or config.norm
        self.shape, self.offset = shape, config.norm_offset
        self.eps = config.norm_eps if eps is None else eps
        gain_shape = gain_shape or shape
        self.rounds_first = has_gain and config.norm_cast == "before_gain"
        self.fused = has_gain and gain_shape == shape and not self.rounds_first
        if has_gain:
            self.declare("gain", gain_shape, roles.gain())
        else:
            self.register_parameter("gain", None)
        if has_gain and config.norm_bias and self.kind == "layernorm":
            self.declare("bias", gain_shape, roles.bias("norm"))
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """[..., *shape] -> the same shape, in float32 or wider: statistics in bfloat16 would cost accuracy.

        With `norm_cast: before_gain` under autocast in its precision.
        """
        gain = self.factor()
        if self.kind == "rmsnorm":
            out = self.over_rms(x, gain if self.plain else None)
        else:
            x = x.float() if x.itemsize < 4 else x
            # Of a block whose weights are sent in bfloat16 they come in that.
            g, b = (None if one is None or not self.fused else one.to(x.dtype) for one in (gain, self.bias))
            out = F.layer_norm(x, self.shape, g, b, self.eps)
        if gain is None or self.plain or self.fused:
            return out
        if self.rounds_first and (dtype := autocast_dtype(x.device)) is not None:
            out, gain = out.to(dtype), gain.to(dtype)
        out = out * gain
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def over_rms(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """The numbers over their root mean square, times a gain if one is given; in float32 or wider."""
        return rms_norm(x, len(self.shape), gain, self.eps)

    @property
    def plain(self) -> bool:
        """Whether it is RMSNorm in float32 throughout, which other operations may take upon themselves."""
        return self.kind == "rmsnorm" and not self.rounds_first

    def factor(self) -> Tensor | None:
        """What the normalised numbers are multiplied by: g or 1 + w; None without a gain."""
        return self.gain + 1 if self.offset and self.gain is not None else self.gain


def norm_size(config: ModelConfig, numbers: int) -> int:
    """Parameters of a norm with a gain of so many numbers."""
    return numbers * (2 if config.norm_bias else 1)


def read_norms(config: ModelConfig, roles: Roles, readers: Sequence[str], shape: tuple[int, ...]) -> nn.ModuleList:
    """Norms in front of what readers get [*shape], one for each; see `has_read_norm`."""
    return nn.ModuleList(
        Norm(config, roles, shape) if has_read_norm(config, reader) else nn.Identity() for reader in readers
    )


def has_read_norm(config: ModelConfig, reader: str) -> bool:
    """Whether a reader has a norm in front: the head always, blocks unless theirs stand behind them.

    In a model that is not ours (`host.residual`) the norms may be its own.
    """
    blocks, head = config.norm_places
    return head if reader == "head" else blocks


def read_norms_size(config: ModelConfig, numbers: int, blocks: int | None = None) -> int:
    """Parameters of all norms in front of reads, of so many numbers each.

    Args:
        config: the model's.
        numbers: of one gain.
        blocks: how many blocks read; default: all of the model's.
    """
    blocks = config.num_blocks if blocks is None else blocks
    in_front_of_blocks, in_front_of_head = config.norm_places
    return norm_size(config, numbers) * (in_front_of_head + blocks * in_front_of_blocks)


class NormBehind(nn.Module):
    """A block whose output is normalised before it is written (`norm_place`: after, both).

    Heads [B, T, H, K] of a block without an output map are normalised jointly, as the R vectors that they are.

    Args:
        block: the block.
        norm: over the width of its output, heads side by side.
    """

    def __init__(self, block: nn.Module, norm: Norm):
        super().__init__()
        self.block, self.norm = block, norm

    def forward(self, inputs: dict[str, Tensor], context: object) -> Tensor:
        """What the block does, normalised."""
        out = self.block(inputs, context)
        return self.norm(out.flatten(2)).view_as(out)


def without_norm(block: nn.Module) -> nn.Module:
    """A block without the norm behind it, if one stands there."""
    return block.block if isinstance(block, NormBehind) else block
