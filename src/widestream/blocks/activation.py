"""Non-linearities of MLPs. A gated one takes gates and values side by side, the gates first: act(gate) * value."""

import torch.nn.functional as F
from torch import Tensor

from widestream.kernels.gate_cpu import gate
from widestream.kernels.gelu_cpu import gelu
from widestream.recipe.model import GATED, Activation


def inputs_per_neuron(kind: Activation) -> int:
    """How many numbers a neuron is computed from: with a gate two, so that W_1 has twice as many rows."""
    return 2 if kind in GATED else 1


def gate_splits(kind: Activation, neurons: int) -> tuple[int, ...]:
    """Sizes of the matrices that W_1 holds one above the other (`Role.splits`)."""
    return (neurons, neurons) if kind in GATED else ()


def activate(kind: Activation, x: Tensor) -> Tensor:
    """[..., F], or with a gate [..., 2 F], -> [..., F]."""
    match kind:
        case "gelu":
            return gelu(x, "none")
        case "gelu_tanh":
            return gelu(x, "tanh")
        case "squared_relu":
            return F.relu(x).square()
        case "swiglu":
            return gate("silu", x)
        case "geglu_tanh":
            return gate("gelu_tanh", x)
        case "geglu":
            gates, values = x.chunk(2, dim=-1)
            return F.gelu(gates) * values
