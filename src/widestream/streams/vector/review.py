"""Review residuals: what a block puts out passes a gate that has seen it (Kramer, arXiv 2606.31859).

    h <- h + r * u,   r = sigmoid( W [N(h), N(u)] )          u = f(norm(h)); N: RMSNorm without a gain; W [D, 2 D]

Changes: every channel of a block's output is let through by a share that depends on stream and output; a highway's gate
(`highway`) sees the stream alone.
Costs: 2 D^2 parameters and 4 D^2 FLOPs per block, a third of a layer's own (7 % of the author's models), and no state.
Does not start plain: W = 0, so that r = 1/2 and every block has half its say.
Evidence (the author's, TinyStories, baselines widened to as many parameters): validation loss of gate and plain model
at 590M 1.4795 and 1.4901, at 1B 1.4876 and 1.5040 (p = .07).
Paper and code (SixSigmaEngineer/review-residuals): the code's gate has a bias, zero at first, which the equation has
not; `bias: true` is the code. Its RMSNorm has eps 1e-5, here it is the model's. Of a gate in a highway's form,
(1 - r) h + r u, the paper reports that it does not train beyond 20 layers; that form is not here.

Letters: B batch, T tokens, D width.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.roles import Role, Roles
from widestream.kernels.norm_cpu import rms_norm
from widestream.recipe.model import ModelConfig
from widestream.recipe.stream import StreamConfig
from widestream.streams.base import StreamCost, StreamSpec
from widestream.streams.vector.plain import VectorBase


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewConfig(StreamConfig):
    """Paper or code."""

    kind: Literal["review"] = "review"
    """This stream."""
    bias: bool = False
    """A bias of the gate, zero at first (the published code has it)."""


class ReviewStream(VectorBase[ReviewConfig]):
    """h [B, T, D]; a gate behind every block; norms as in the plain stream."""

    Config = ReviewConfig
    limits = (
        "No gain below 590M parameters, and at 60M worse than a plain model of as many: 1.689 against 1.681 "
        "(2606.31859, table 2; one data set, TinyStories).",
    )
    examples = ({}, {"bias": True})

    def __init__(self, config: ModelConfig, roles: Roles):
        super().__init__(config, roles)
        self.eps, self.num_blocks = config.norm_eps, len(self.readers) - 1
        gate = replace(roles.hidden((roles.width,), (roles.width,), "stream"), std=0.0)
        for site in range(1, self.num_blocks + 1):
            self.declare(f"gate_{site}", (self.width, 2 * self.width), gate)
            if self.settings.bias:
                self.declare(f"bias_{site}", (self.width,), Role(0.0, "none", part="stream"))

    @classmethod
    def spec(cls, config: ModelConfig) -> StreamSpec:
        """One vector of width D."""
        return StreamSpec(
            state_shape=(config.embed_dim,),
            starts_plain=False,
            undo="replay",
            papers=("2606.31859", "https://github.com/SixSigmaEngineer/review-residuals"),
        )

    @classmethod
    def parameter_formula(cls, config: ModelConfig) -> int:
        """The plain stream's gains, and 2 D^2 per block; D more with a bias."""
        D, bias = config.embed_dim, cls.settings_of(config).bias
        return super().parameter_formula(config) + len(cls.blocks(config)) * (2 * D * D + D * bias)

    def cost(self) -> StreamCost:
        """A product of D by 2 D per block. Saved: u, N(h), N(u) and r beside the norms' inputs."""
        plain, vector = super().cost(), 4 * self.width
        return StreamCost(
            flops=4 * self.width**2 * self.num_blocks,
            bytes_moved=plain.bytes_moved,
            bytes_saved=plain.bytes_saved + 4 * vector * self.num_blocks,
            bytes_saved_writes=vector * (len(self.readers) + len(self.anchored)),
        )

    def write(self, site: int, state: Tensor | None, written: Tensor) -> Tensor:
        """Add what the gate lets through."""
        if state is None:
            return written
        u = written.to(state.dtype)
        of_state, of_output = self.get_parameter(f"gate_{site}").chunk(2, dim=-1)
        bias = self.get_parameter(f"bias_{site}") if self.settings.bias else None
        # Two products, and no copy of both vectors side by side.
        logits = F.linear(rms_norm(state, 1, None, self.eps), of_state, bias)
        logits = logits + F.linear(rms_norm(u, 1, None, self.eps), of_output)
        return state + logits.to(state.dtype).sigmoid() * u
