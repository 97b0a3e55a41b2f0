"""Token embedding and learned positions, kept apart: a stream may store them under own keys (paper eqs. 18, 19)."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.context import Context
from widestream.blocks.convolution import token_before
from widestream.blocks.roles import Axis, Declared, Role, Roles, size
from widestream.kernels.autocasting import no_autocast
from widestream.recipe.model import ModelConfig


class Embedding(Declared):
    """Look-up tables of tokens and, if the model has learned positions, of positions.

    Args:
        config: the model's.
        roles: for the weights' roles.
        axes: axes of token vectors, whose sizes multiply to their width.
        position_axes: the same of position vectors.
    """

    token: Tensor
    """[V, D]."""
    position: Tensor | None
    """[N, D], for learned positions."""

    before: Tensor
    """W_p [D, D], with `token_before: dense`."""
    smear: Tensor
    """w [D], with `token_before: smear`."""
    smear_scale: Tensor
    """lambda [1]."""

    def __init__(self, config: ModelConfig, roles: Roles, axes: tuple[Axis, ...], position_axes: tuple[Axis, ...]):
        super().__init__()
        self.multiplier = config.mup.input_multiplier
        self.declare("token", (config.vocab_size, size(axes)), roles.embedding(roles.vocab, axes, "embedding"))
        self.token_before = config.token_before
        if config.token_before == "dense":
            role = replace(roles.hidden(axes, axes, "token before"), std=0.0)
            self.declare("before", (size(axes), size(axes)), role)
        if config.token_before == "smear":
            self.declare("smear", (size(axes),), Role(0.0, "weight", part="token before"))
            self.declare("smear_scale", (1,), Role(0.0, "none", part="token before"))
        if config.positions == "learned":
            role = roles.embedding(roles.positions, position_axes, "positions")
            self.declare("position", (config.context, size(position_axes)), role)
        else:
            self.register_parameter("position", None)

    def forward(
        self, tokens: Tensor, positions: Tensor, context: Context | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, T] and their positions [T] -> token vectors [B, T, D], position vectors [1, T, D] or None.

        In place of tokens there may be vectors in the place of the table's [B, T, D]. Of positions [B, T] come position
        vectors [B, T, D]. `context` is that of the pass, for the token before.
        """
        token = F.embedding(tokens, self.token) if tokens.ndim == 2 else tokens
        token = token.float() if token.itemsize < 4 else token  # a table shared with the head may be kept in bfloat16
        if self.token_before != "none":
            assert context is not None
            token = token + self._of_before(token, context)
        position = None if self.position is None else F.embedding(positions, self.position)
        position = position[None] if position is not None and position.ndim == 2 else position
        if self.multiplier != 1.0:
            token = token * self.multiplier
            position = None if position is None else position * self.multiplier
        return token, position

    def _of_before(self, token: Tensor, context: Context) -> Tensor:
        """What token vectors [B, T, D] get of those before them [B, T, D]."""
        before = token_before(token, context, "embedding")
        if self.token_before == "dense":
            return F.linear(before, self.before).to(token.dtype)
        with no_autocast(token.device):
            return self.smear_scale * torch.sigmoid(token @ self.smear)[..., None] * before
