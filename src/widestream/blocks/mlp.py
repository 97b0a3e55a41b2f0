"""The MLP (paper eqs. 10-11): x -> W_2 GELU(W_1 x). The same for every stream."""

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.context import Context
from widestream.blocks.roles import Axis, Declared, Roles, size
from widestream.kernels.gelu_cpu import gelu
from widestream.recipe.model import ModelConfig


class MLP(Declared):
    """Two matrices without bias.

    Args:
        config: the model's.
        roles: for the weights' roles.
        axes: axes of the input and output, whose sizes multiply to the width D.
        num_neurons: F; default: the model's. 0: no matrices, the non-linearity alone.
        scale_output: whether depth scaling acts on W_2 (else the stream does it on its own keys).
    """

    w1: Tensor
    """W_1 [F, D]."""
    w2: Tensor
    """W_2 [D, F]."""

    def __init__(
        self,
        config: ModelConfig,
        roles: Roles,
        axes: tuple[Axis, ...],
        scale_output: bool,
        num_neurons: int | None = None,
    ):
        super().__init__()
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"
        self.bare = num_neurons == 0
        if self.bare:
            return
        neurons = roles.neurons if num_neurons is None else replace(roles.neurons, size=num_neurons)
        width = size(axes)
        self.declare("w1", (neurons.size, width), roles.hidden(axes, (neurons,), "mlp"))
        self.declare("w2", (width, neurons.size), roles.hidden((neurons,), axes, "mlp", output=scale_output))

    def forward(self, inputs: dict[str, Tensor], context: Context) -> Tensor:
        """Role x [B, T, D] -> [B, T, D]."""
        if self.bare:
            return gelu(inputs["x"], self.approximate)
        return F.linear(gelu(F.linear(inputs["x"], self.w1), self.approximate), self.w2)
