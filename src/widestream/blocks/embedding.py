"""Token embedding and learned positions, kept apart: a stream may store them under keys of their own (paper eq. 13)."""

import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.roles import Axis, Declared, Roles, size
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

    def __init__(self, config: ModelConfig, roles: Roles, axes: tuple[Axis, ...], position_axes: tuple[Axis, ...]):
        super().__init__()
        self.multiplier = config.mup.input_multiplier
        self.declare("token", (config.vocab_size, size(axes)), roles.embedding(roles.vocab, axes, "embedding"))
        if config.positions == "learned":
            role = roles.embedding(roles.positions, position_axes, "positions")
            self.declare("position", (config.context, size(position_axes)), role)
        else:
            self.register_parameter("position", None)

    def forward(self, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, T] and their positions [T] -> token vectors [B, T, D], position vectors [1, T, D] or None.

        Of positions [B, T] come position vectors [B, T, D].
        """
        token = F.embedding(tokens, self.token)
        token = token.float() if token.itemsize < 4 else token  # a table shared with the head may be kept in bfloat16
        position = None if self.position is None else F.embedding(positions, self.position)
        position = position[None] if position is not None and position.ndim == 2 else position
        if self.multiplier != 1.0:
            token = token * self.multiplier
            position = None if position is None else position * self.multiplier
        return token, position
