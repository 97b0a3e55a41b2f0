"""Streams with learned numbers: gains on the vector and on what is added to it.

    layer       x <- g_l (x + f)                        behind the last block of layer l; g_l one number
    channel     x <- g_i * x + f                        g_i in R^D, of block i
    affine      x <- s_i * (x + c_i) + t_i * (f + d_i)  all four in R^D; at the embedding x = t_0 * (e + d_0)
    preserving  x <- alpha_i * x + beta_i * f           beta_i = sigmoid(g_i / tau), alpha_i = sqrt(1 - beta_i^2)

`preserving` keeps the variance of a channel where x and f are of one size and independent, whatever the gate. Its alpha
is computed as the root of sigmoid(-g / tau) (1 + beta), at least 1e-3 beneath the root.

Released models: Gemma 4 (`gemma4`: layer; there a buffer that checkpoints fill, here learned; its embeddings of every
layer are left out), Doge (`doge`: channel), ZAYA1 (`zaya`: affine) and Muse Spark (`muse_spark`: preserving with tau
0.3, behind sandwich norms). Tests hold all four to transformers' models.

Changes: blocks can make the stream forget, a channel at a time or all of it.
Costs: L numbers, S D, (4 S + 2) D or S D for S blocks. Beside the stream, layer keeps a vector a layer for the backward
pass, affine and preserving every block's output.
Starts as the plain transformer with gains of 1 and biases of 0; preserving does not: at g = 0, our choice (released
code draws g with its initializer's 0.02, hardly more), the stream shrinks by 0.866 and half of f is added.
Evidence: none that isolates them was found.

Letters: B batch, T tokens, D width, L layers, S blocks.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from widestream.blocks.roles import Role, Roles
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.depth_sums import layer_ends
from widestream.streams.vector.plain import VectorBase

FLOOR = 1e-3
"""Least 1 - beta^2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GainsConfig(StreamConfig):
    """Which gains."""

    kind: Literal["gains"] = "gains"
    """This stream."""
    form: Literal["layer", "channel", "affine", "preserving"] = "channel"
    """Where gains act; see above."""
    temperature: float = 0.3
    """[tau] preserving: what the gates' numbers are divided by."""

    def __post_init__(self):
        if not 0 < self.temperature < math.inf:
            raise UserError(f"model.stream.temperature is {self.temperature}; it must be above 0.")
        if self.form != "preserving" and self.temperature != 0.3:
            raise UserError(f"model.stream.temperature does nothing with form: {self.form}; leave it out.")


class GainsStream(VectorBase[GainsConfig]):
    """x [B, T, D], and learned gains on both sides of the sum; norms as in the plain stream."""

    Config = GainsConfig
    models: ClassVar = {
        "gemma4": {"form": "layer"},
        "doge": {"form": "channel"},
        "zaya": {"form": "affine"},
        "muse_spark": {"form": "preserving"},
    }
    examples = ({}, {"form": "affine"})

    gain: Tensor
    """layer [L], channel and preserving [S, D]; affine, of the stream [S, D]."""
    bias: Tensor
    """affine: of the stream [S, D]."""
    write_gain: Tensor
    """affine: of what is written, the embedding first [S + 1, D]."""
    write_bias: Tensor
    """The same."""

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        self.form, blocks = self.settings.form, len(self.readers) - 1
        self.layer_ends = layer_ends(self.blocks(config))
        ones, zeros = Role(None, "none", part="stream"), Role(0.0, "none", part="stream")
        shape = (config.num_layers,) if self.form == "layer" else (blocks, self.width)
        self.declare("gain", shape, zeros if self.form == "preserving" else ones)
        if self.form == "affine":
            self.declare("bias", shape, zeros)
            self.declare("write_gain", (blocks + 1, self.width), ones)
            self.declare("write_bias", (blocks + 1, self.width), zeros)

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D."""
        plain = cls.settings_of(config).form != "preserving"
        return StreamSpec(state_shape=(config.embed_dim,), starts_plain=plain)

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """The plain stream's gains, and L, S D, (4 S + 2) D or S D."""
        S, D = config.num_blocks, config.embed_dim
        own = {"layer": config.num_layers, "channel": S * D, "affine": (4 * S + 2) * D, "preserving": S * D}
        return super().parameter_formula(config) + own[cls.settings_of(config).form]

    def cost(self) -> StreamCost:
        """No product. Kept beside the norms' inputs: sums to be rescaled, or blocks' outputs (affine, preserving)."""
        plain = super().cost()
        kept = {"layer": len(self.layer_ends) - 1, "channel": 0}.get(self.form, len(self.readers) - 1)
        kept += self.form == "affine"  # the embedding
        return replace(plain, bytes_saved=plain.bytes_saved + 4 * self.width * kept)

    def write(self, site: int, state: Tensor | None, written: Tensor) -> Tensor:
        """The sum with its gains."""
        if self.form == "affine":
            gain, bias = self.write_gain[site], self.write_gain[site] * self.write_bias[site]
            if state is None:
                return gain * written + bias
            bias = bias + self.gain[site - 1] * self.bias[site - 1]
            return gain * written + self.gain[site - 1] * state + bias
        if state is None:
            return written
        if self.form == "layer":
            x, layer = state + written, self.layer_ends.get(site)
            # A slice, not a scalar: a scalar would not widen bfloat16 to its own float32.
            return x if layer is None else self.gain[layer - 1 : layer] * x
        gain = self.gain[site - 1]
        if self.form == "channel":
            return gain * state + written
        gate = gain / self.settings.temperature
        beta = torch.sigmoid(gate)
        alpha = (torch.sigmoid(-gate) * (1 + beta)).clamp(min=FLOOR).sqrt()
        return alpha * state + beta * written
