"""A plain stream of which tokens enter and leave only a part; the rest is a data lane (C. S. Armstrong, "Residual
Stream Data Lane", https://chrissarmstrong.github.io).

    DL     x_0 = [E s; 0]    logits = W_U norm(x_S)[: d_emb]          in and out on the same side
    SwDL   x_0 = [E s; 0]    logits = W_U norm(x_S)[D - d_emb :]      in on one side, out on the other

What changes: token vectors and unembedding rows have d_emb < D numbers. Blocks read and write all D; the D - d_emb
further coordinates start empty and end nowhere, as working space. With d_emb = D it is the plain stream (NoDL).

Cost: none; V (D - d_emb) parameters and 2 V (D - d_emb) FLOPs fewer per table. It does not start as the plain
transformer, unless d_emb = D.

Evidence: none for it. On TinyStories (GPT-Neo, 250k of 2.75M stories, one epoch, one run per point) DL, SwDL and plain
models of several widths lie on one curve of validation loss against parameters, even with d_emb a quarter of D.

The source is a post without code. It does not give the width of position vectors, the order of norm and slice, or
whether the head is tied, so these are options; the defaults are positions at full width, as GPT-Neo has them, and the
norm over all of D. Its labels (DL-768-96-36M) cannot be reproduced exactly: at 4 layers 768-96 has 33.1M parameters
here (33.2M with GPT-Neo's biases) tied and without positions, 34.7M with 2048 of them, 38.0M untied without.

Letters: B batch, T tokens, D width, E embedding width d_emb, S the number of blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from widestream.blocks.norm import Norm, has_read_norm, norm_size, read_norms
from widestream.blocks.roles import Axis, Roles
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import Stream, StreamCost, StreamSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class DataLaneConfig(StreamConfig):
    """Whether the head shares the embedding's table is the model's `tied_head`: their widths are the same."""

    kind: Literal["data_lane"] = "data_lane"
    """This stream."""
    embedding_dim: int
    """[d_emb] Coordinates that token vectors are written to, and as many that the head reads."""
    output: Literal["same", "opposite"] = "same"
    """Side that the head reads: that of the token vectors (DL) or the other one (SwDL)."""
    positions: Literal["full", "lane"] = "full"
    """Width of learned positions: all coordinates, or those of the token vectors."""
    head_norm: Literal["norm_then_slice", "slice_then_norm"] = "norm_then_slice"
    """What the head's norm takes its statistics over: all coordinates, or those that the head reads."""

    def __post_init__(self):
        if self.embedding_dim < 1:
            raise UserError(f"model.stream.embedding_dim is {self.embedding_dim}; it must be at least 1.")


class DataLaneStream(Stream[DataLaneConfig]):
    """x [B, T, D]; one pre-norm in front of every block, and one around the slice that the head reads."""

    Config = DataLaneConfig
    examples = (
        {"embedding_dim": 8},
        {"embedding_dim": 8, "output": "opposite"},
        {"embedding_dim": 20, "output": "opposite", "head_norm": "slice_then_norm"},
        {"embedding_dim": 12, "positions": "lane"},
    )

    head_gain: Tensor | None
    """Gain of what the head reads [E]; the lane, which it does not read, needs none."""

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        settings = self.settings
        self.width, self.embedding_dim = config.embed_dim, settings.embedding_dim
        if self.embedding_dim > self.width:
            raise UserError(
                f"model.stream.embedding_dim is {self.embedding_dim}, but the stream is {self.width} wide; "
                "lower it or raise model.width."
            )
        self.full_positions = settings.positions == "full"
        self.first = self.width - self.embedding_dim if settings.output == "opposite" else 0
        self.slice_first = settings.head_norm == "slice_then_norm"
        shape = (self.width,)
        normed = (self.embedding_dim,) if self.slice_first else shape
        self.norms = read_norms(config, roles, self.readers[:-1], shape)
        self.offset = config.norm_offset
        if has_read_norm(config, "head"):
            self.head_norm = Norm(config, roles, normed, has_gain=False)
            self.declare("head_gain", (self.embedding_dim,), roles.gain())
        else:
            self.head_norm = nn.Identity()
            self.register_parameter("head_gain", None)
        if config.norm_bias:
            raise UserError("A data_lane stream has no bias in front of its head; leave out model.norm_bias.")

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D."""
        settings = cls.settings_of(config)
        return StreamSpec(
            state_shape=(config.embed_dim,),
            starts_plain=settings.embedding_dim == config.embed_dim,
            papers=("https://chrissarmstrong.github.io",),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """2 L D gains in front of blocks (3 L D with ShortSWA), d_emb in front of the head."""
        settings = cls.settings_of(config)
        blocks = config.num_blocks if has_read_norm(config, "attention") else 0
        head = settings.embedding_dim if has_read_norm(config, "head") else 0
        return blocks * norm_size(config, config.embed_dim) + head

    def cost(self) -> StreamCost:
        """As the plain stream: no product; a read and a write of D float32 per exchange; each norm's input is saved.

        And what the gain in front of the head multiplies.
        """
        moved, kept = 8 * self.width * len(self.readers), 4 * self.width * len(self.readers)
        gained = 4 * (self.embedding_dim if self.slice_first else self.width)
        return StreamCost(flops=0, bytes_moved=moved, bytes_saved=kept + gained)

    def from_plain(self, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The head's gain stands apart."""
        head = f"norms.{len(self.readers) - 1}.gain"
        return {("head_gain" if name == head else name): value for name, value in plain.items()}

    def embedding_axes(self, roles: Roles) -> tuple[Axis, ...]:
        """d_emb coordinates; as the model grows they stay the same share of its width."""
        base = round(self.embedding_dim * (roles.width.base or self.width) / self.width)
        return (Axis(self.embedding_dim, max(1, base)),)

    def position_axes(self, roles: Roles) -> tuple[Axis, ...]:
        """All D, or as many as token vectors have."""
        return (roles.width,) if self.full_positions else self.embedding_axes(roles)

    def head_axes(self, roles: Roles) -> tuple[Axis, ...]:
        """As many as token vectors have, which lets the head be tied."""
        return self.embedding_axes(roles)

    def write_embedding(self, state: None, token: Tensor, position: Tensor | None) -> Tensor:
        """x_0 = [E s; 0] + p, or [E s + p; 0]."""
        if position is not None and not self.full_positions:
            token, position = token + position, None
        x = F.pad(token, (0, self.width - self.embedding_dim))
        return x if position is None else x + position

    def write(self, site: int, state: Tensor, written: Tensor) -> Tensor:
        """Add."""
        return state + written

    def read(self, site: int, state: Tensor) -> dict[str, Tensor]:
        """Blocks: normalise. Head: norm(x_S)[slice], or norm(x_S[slice])."""
        if site < len(self.norms):
            return {"x": self.norms[site](state)}
        x = self.head_norm(self._slice(state)) if self.slice_first else self._slice(self.head_norm(state))
        return {"x": x if self.head_gain is None else x * self.head_factor()}

    def head_factor(self) -> Tensor:
        """What the head's input is multiplied by: g, or 1 + w (`norm_offset`)."""
        assert self.head_gain is not None
        return self.head_gain + 1 if self.offset else self.head_gain

    def _slice(self, x: Tensor) -> Tensor:
        """The coordinates that the head reads [B, T, E]."""
        return x.narrow(-1, self.first, self.embedding_dim)
