"""The MLP (paper eqs. 10, 24): x -> W_2 act(W_1 x). The same for every stream."""

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from widestream.blocks.activation import activate, gate_splits, inputs_per_neuron
from widestream.blocks.context import Context
from widestream.blocks.roles import Axis, Declared, Roles, size
from widestream.blocks.split import share_of
from widestream.recipe.model import Activation, ModelConfig


class MLP(Declared):
    """Two matrices, W_1 with gate and values in one; biases as `mlp_bias` says.

    Args:
        config: the model's.
        roles: for the weights' roles.
        axes: axes of the input and output, whose sizes multiply to the width D.
        scale_output: whether depth scaling acts on W_2 (else the stream does it on its own keys).
        num_neurons: F; default: the model's. 0: no matrices, the non-linearity alone.
    """

    w1: Tensor
    """W_1 [F, D]; with a gate [2 F, D], the gate's rows first."""
    w2: Tensor
    """W_2 [D, F]."""
    b1: Tensor | None
    """Bias behind W_1 [F], or [2 F]."""
    b2: Tensor | None
    """Bias behind W_2 [D]."""

    def __init__(
        self,
        config: ModelConfig,
        roles: Roles,
        axes: tuple[Axis, ...],
        scale_output: bool,
        num_neurons: int | None = None,
    ):
        super().__init__()
        self.activation: Activation = config.activation
        self.bias_share = 1.0
        """The part of `b2` that this process adds, of those that share the block."""
        self.bare = num_neurons == 0
        if self.bare:
            return
        neurons = roles.neurons if num_neurons is None else replace(roles.neurons, size=num_neurons)
        width, rows = size(axes), inputs_per_neuron(config.activation) * neurons.size
        splits = gate_splits(config.activation, neurons.size)
        self.declare("w1", (rows, width), roles.hidden(axes, (neurons,), "mlp", splits=splits))
        self.declare("w2", (width, neurons.size), roles.hidden((neurons,), axes, "mlp", output=scale_output))
        for name, length in (("b1", rows), ("b2", width)):
            if config.mlp_bias:
                self.declare(name, (length,), roles.bias("mlp"))
            else:
                self.register_parameter(name, None)

    def forward(self, inputs: dict[str, Tensor], context: Context) -> Tensor:
        """Role x [B, T, D] -> [B, T, D]. Bare: [B, T, F], or with a gate [B, T, 2 F], -> [B, T, F]."""
        if self.bare:
            return activate(self.activation, inputs["x"])
        hidden = activate(self.activation, F.linear(inputs["x"], self.w1, self.b1))
        return F.linear(hidden, self.w2, share_of(self.b2, self.bias_share))
