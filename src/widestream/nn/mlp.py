"""The MLP (paper eqs. 10-11): x -> W_2 GELU(W_1 x). The same for every stream."""

import torch.nn.functional as F
from torch import Tensor

from widestream.nn.attention import AttentionContext
from widestream.nn.config import ModelConfig
from widestream.nn.roles import Axis, Declared, Roles


class MLP(Declared):
    """Two matrices without bias.

    Args:
        config: the model's.
        roles: for the weights' roles.
        axes: axes of the input and output, whose sizes multiply to the width D.
        scale_output: whether depth scaling acts on W_2 (else the stream does it on its own keys).
    """

    w1: Tensor
    """W_1 [F, D]."""
    w2: Tensor
    """W_2 [D, F]."""

    def __init__(self, config: ModelConfig, roles: Roles, axes: tuple[Axis, ...], scale_output: bool):
        super().__init__()
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"
        self.declare("w1", (config.mlp_dim, config.embed_dim), roles.hidden(axes, (roles.neurons,), "mlp"))
        w2 = roles.hidden((roles.neurons,), axes, "mlp", output=scale_output)
        self.declare("w2", (config.embed_dim, config.mlp_dim), w2)

    def forward(self, inputs: dict[str, Tensor], context: AttentionContext) -> Tensor:
        """Role x [B, T, D] -> [B, T, D]."""
        return F.linear(F.gelu(F.linear(inputs["x"], self.w1), approximate=self.approximate), self.w2)
