"""A mixture of experts in the MLP's place: every token goes through k of E MLPs, as a router chooses (routing.py).

It is exact: no expert has a capacity, and no token is dropped.
"""

from dataclasses import replace

import torch
from torch import Tensor

from widestream.blocks.activation import activate, gate_splits, inputs_per_neuron
from widestream.blocks.context import Context
from widestream.blocks.roles import Axis, Declared, Roles, size
from widestream.blocks.routing import bring_back, route, send
from widestream.blocks.split import share_of
from widestream.kernels.grouped import grouped_linear
from widestream.recipe.model import Activation, ModelConfig

BALANCE, LOAD = "balance", "load"
"""Names, before the layer's, under which a block leaves `Routes.balance` [B] and `Routes.load` summed over windows [E]
in `Context.shared`, in passes with gradients."""


class Experts(Declared):
    """E MLPs and a router.

    Args:
        config: the model's.
        layer: its layer.
        roles: for the weights' roles.
        axes: axes of the input and output, whose sizes multiply to the width D.
        scale_output: whether depth scaling acts on W_2.
        num_neurons: F of an MLP in this place; default: the model's. Experts are wider by as much.
    """

    router: Tensor
    """W_r [E, D]."""
    w1: Tensor
    """W_1 of every expert [E, F, D]; with a gate [E, 2 F, D], the gate's rows first."""
    w2: Tensor
    """W_2 of every expert [E, D, F]."""
    b1: Tensor | None
    """Biases behind W_1 [E, F], or [E, 2 F]."""
    b2: Tensor | None
    """Biases behind W_2 [E, D]."""
    balance_bias: Tensor | None
    """Added to scores for the choice of experts [E] float32; no parameter, `move_bias` moves it."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        roles: Roles,
        axes: tuple[Axis, ...],
        scale_output: bool,
        num_neurons: int | None = None,
    ):
        super().__init__()
        settings = config.moe
        self.activation: Activation = config.activation
        self.layer = layer
        assert settings.top_k is not None
        self.num_experts, self.top_k, self.normalise = settings.num_experts, settings.top_k, settings.normalise
        self.bias_rate = settings.bias_rate
        self.bias_share = 1.0
        """The part of `b2` that this process adds, of those that share the block."""
        neurons = Axis(expert_neurons(config, num_neurons), settings.expert_dim or roles.neurons.base)
        self._declare(config, roles, axes, neurons, scale_output)
        bias = torch.zeros(self.num_experts) if settings.balance == "bias" else None
        self.register_buffer("balance_bias", bias)

    def _declare(
        self, config: ModelConfig, roles: Roles, axes: tuple[Axis, ...], neurons: Axis, scale_output: bool
    ) -> None:
        width, count = size(axes), self.num_experts
        rows, used = inputs_per_neuron(self.activation) * neurons.size, self.top_k / count
        w1 = roles.hidden(axes, (neurons,), "mlp", splits=gate_splits(self.activation, neurons.size))
        w2 = roles.hidden((neurons,), axes, "mlp", output=scale_output)
        router = roles.readout(axes, Axis(count), "router")
        self.router_multiplier = router.multiplier
        self.declare("router", (count, width), router)
        self.declare("w1", (count, rows, width), replace(w1, used=used))
        self.declare("w2", (count, width, neurons.size), replace(w2, used=used))
        for name, length in (("b1", rows), ("b2", width)):
            if config.mlp_bias:
                self.declare(name, (count, length), replace(roles.bias("mlp"), used=used))
            else:
                self.register_parameter(name, None)

    def initial_values(self) -> dict[str, Tensor]:
        """No expert is favoured."""
        return {} if self.balance_bias is None else {"balance_bias": torch.zeros(self.num_experts)}

    def forward(self, inputs: dict[str, Tensor], context: Context) -> Tensor:
        """Role x [B, T, D] -> [B, T, D]."""
        x = inputs["x"]
        router = self.router * self.router_multiplier
        routes = route(x, router, self.top_k, self.normalise, self.balance_bias, context.split)
        if torch.is_grad_enabled():
            context.shared[f"{BALANCE}/{self.layer}"] = routes.balance
            context.shared[f"{LOAD}/{self.layer}"] = routes.load.sum(0)
        rows = grouped_linear(send(x.flatten(0, 1), routes), self.w1, routes.ends)
        if self.b1 is not None:
            rows = rows + self.b1[routes.experts].to(rows.dtype)
        rows = grouped_linear(activate(self.activation, rows), self.w2, routes.ends)
        if (b2 := share_of(self.b2, self.bias_share)) is not None:
            rows = rows + b2[routes.experts].to(rows.dtype)
        return bring_back(rows, routes).unflatten(0, x.shape[:2])

    @torch.no_grad()
    def move_bias(self, load: Tensor) -> None:
        """Favour experts that were picked too rarely, by `bias_rate` (arXiv 2408.15664, algorithm 1).

        Args:
            load: tokens of a whole batch that picked each expert [E].
        """
        if self.balance_bias is not None:
            load = load.to(self.balance_bias.dtype)
            self.balance_bias.add_((load.mean() - load).sign(), alpha=self.bias_rate)


def expert_neurons(config: ModelConfig, num_neurons: int | None = None) -> int:
    """Neurons of one expert.

    Args:
        config: the model's.
        num_neurons: F of an MLP in its place; default: the model's.
    """
    wider = (num_neurons or config.mlp_dim) / config.mlp_dim
    return round((config.moe.expert_dim or config.mlp_dim) * wider)
