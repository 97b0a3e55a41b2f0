"""torch.optim.Muon on hidden matrices beside torch.optim.AdamW on the rest, as one optimizer.

torch's Muon takes parameters of two axes and makes each orthogonal as a whole. Here a parameter may hold several
matrices: W_Q, W_K and W_V one above the other, the keys of q, k and v, experts along a leading axis. Each is handed to
torch as a view, with a view of the momentum and of the gradient, so that what torch computes is what it would for
separate matrices, and a checkpoint has one momentum for each parameter.

Where processes share out weights (layout.py), each keeps the mean of its share's gradients. These are made whole, one
parameter after the other; each is orthogonalised by one process, in turn, which hands the result to the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from widestream.blocks.roles import Role
from widestream.errors import UserError
from widestream.recipe.model import ModelConfig
from widestream.recipe.train import MuonConfig, OptimizerConfig
from widestream.train.shards import Shares, hand_out, is_shared, is_turn, own

MOMENTUM = "momentum_buffer"
"""What torch's Muon calls its moment."""


def muon_takes(roles: Mapping[str, Role], config: OptimizerConfig) -> list[str]:
    """Names of the parameters that take Muon.

    They are the matrices between infinite axes that are decayed as weights, and the stream's own on request
    (`muon.keys`).
    """
    if config.muon is None:
        return []
    decays = ("weight", "key") if config.muon.keys else ("weight",)
    return [name for name, role in roles.items() if role.muon and role.decay in decays]


def muon_rate(model: ModelConfig, lr: float, muon: MuonConfig) -> float:
    """Muon's peak rate, before its scale by shape.

    muP asks for steps whose effect on a product stays as a model widens. The entries of Adam's steps are all of one
    size, so its rate has to fall with the fan-in. An orthogonal step times sqrt(A / B) has that effect at any width, so
    with `original` muP has no factor for Muon. (A matrix with fewer rows than columns has the scale 1 there, which is
    the same as long as both grow together.) With `match_rms_adamw` steps grow with width, which muP is there to
    prevent; that is refused at the base sizes already, whose settings are to serve wider models.

    Raises:
        UserError: there are base sizes and the scale is `match_rms_adamw`.
    """
    if model.mup_bases and muon.adjust_lr == "match_rms_adamw":
        base = next(iter(model.mup_bases))
        raise UserError(
            f"optimizer.muon.adjust_lr is match_rms_adamw, whose steps grow with width, and model.mup.{base} is set so "
            "that they do not; use optimizer.muon.adjust_lr=original."
        )
    return lr * muon.lr_factor


def matrices(values: Tensor, role: Role, split_heads: bool) -> list[Tensor]:
    """The matrices that a parameter holds, as views.

    Args:
        values: the parameter, its momentum or its gradient [..., A, B].
        role: says how it divides.
        split_heads: also head by head, where it maps to heads or from them.

    Returns:
        Views [A', B']: part by part along A, within a part head by head, within a head along the leading axes.
    """
    parts = values.split(role.splits or values.shape[-2], dim=-2)
    if split_heads and role.head is not None:
        rows, columns = role.head
        parts = [head for part in parts for band in part.split(rows, -2) for head in band.split(columns, -1)]
    return [matrix for part in parts for matrix in part.view(-1, *part.shape[-2:]).unbind()]


class Divided:
    """A parameter that takes Muon.

    Args:
        name: its name.
        parameter: itself.
        role: says what matrices it holds.
        split_heads: whether each head is one.
        shares: what this process holds of it.

    Attributes:
        parameter: itself [..., A, B].
        momentum: its momentum, of the same shape.
        shared: whether this process may hold a part of it only.
        views: its matrices as parameters of torch's Muon.
    """

    def __init__(self, name: str, parameter: nn.Parameter, role: Role, split_heads: bool, shares: Shares):
        self.parameter, self._role, self._split_heads = parameter, role, split_heads
        self._name, self._shares = name, shares
        self.momentum = torch.zeros_like(parameter)
        self.shared = is_shared(parameter)
        # A shared one has no matrices of its own; an empty one stands in its group.
        there = [parameter.new_empty(0, 0)] if self.shared else self.cut(parameter.detach())
        self.views = [nn.Parameter(view) for view in there]

    def momenta(self) -> list[Tensor]:
        """The momentum of each of the views."""
        return self.cut(self.momentum)

    def lend_gradient(self) -> None:
        """Give each view its part of the parameter's gradient."""
        gradient = self.parameter.grad
        parts = [None] * len(self.views) if gradient is None else self.cut(gradient)
        for view, part in zip(self.views, parts, strict=True):
            view.grad = part

    def return_gradient(self) -> None:
        """Let go of the gradient, whose memory would stay as long as the views hold it."""
        for view in self.views:
            view.grad = None

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a tensor of which this process holds what it does of the parameter."""
        return self._shares.whole(self._name, tensor)

    def fill(self, tensor: Tensor, values: Tensor) -> None:
        """Copy whole values into such a tensor."""
        self._shares.fill(self._name, tensor, values)

    def cut(self, values: Tensor) -> list[Tensor]:
        """The matrices in values of its shape."""
        return matrices(values, self._role, self._split_heads)


@dataclass(frozen=True, slots=True)
class MuonGroup:
    """Parameters that take Muon with the same rate and decay."""

    divided: list[Divided]
    """The parameters."""
    rates: dict[str, float]
    """`lr`, `peak_lr` and `weight_decay`."""


class MuonWithAdamW(torch.optim.Optimizer):
    """One optimizer of two: `param_groups` are those of both, `state` has every parameter's moments.

    Args:
        groups: parameters that take Muon.
        settings: of Muon.
        adamw: over all other parameters, with its state.
    """

    def __init__(self, groups: list[MuonGroup], settings: MuonConfig, adamw: torch.optim.AdamW):
        self._divided = [one for group in groups for one in group.divided if not one.shared]
        self._shared = [(one, index) for index, group in enumerate(groups) for one in group.divided if one.shared]
        self._adamw = adamw
        self._muon = torch.optim.Muon(
            [{"params": [view for one in group.divided for view in one.views], **group.rates} for group in groups],
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            ns_steps=settings.ns_steps,
            adjust_lr_fn=settings.adjust_lr,
        )
        self._settings = settings
        every = [one for group in groups for one in group.divided]
        super().__init__([*(one.parameter for one in every), *adamw.state], {})
        self.param_groups = [*self._muon.param_groups, *adamw.param_groups]
        for one in every:
            self.state[one.parameter] = {MOMENTUM: one.momentum}
        for one in self._divided:
            for view, momentum in zip(one.views, one.momenta(), strict=True):
                self._muon.state[view] = {MOMENTUM: momentum}
        self.state.update(adamw.state)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.state:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step with the gradients that are there."""
        assert closure is None, "a closure would be called twice"
        for one in self._divided:
            one.lend_gradient()
        if self._divided:
            self._muon.step()
        for turn, (one, group) in enumerate(self._shared):
            self._step_shared(one, self._muon.param_groups[group], turn)
        self._adamw.step()
        for one in self._divided:
            one.return_gradient()

    @torch.no_grad()
    def _step_shared(self, one: Divided, group: dict[str, Any], turn: int) -> None:
        """Step a shared parameter: each process its share, of a direction that one computes in turn.

        What torch's Muon would do to the whole: the mean of gradients takes them number by number, so that only what is
        made orthogonal has to be whole.
        """
        if one.parameter.grad is None:
            return
        momentum, lr = group["momentum"], group["lr"]
        sent = torch.empty_like(one.momentum)
        weight, gradient, mean, share = own((one.parameter.detach(), one.parameter.grad, one.momentum, sent))
        mean.lerp_(gradient, 1 - momentum)
        share.copy_(gradient.lerp(mean, momentum) if group["nesterov"] else mean)
        whole = one.whole(sent)
        step = torch.zeros_like(whole)
        if is_turn(turn):
            _take(one.cut(step), one.cut(whole), group)
        hand_out([step], turn)
        one.fill(sent, step)
        weight.mul_(1 - lr * group["weight_decay"]).add_(share)

    def set_momentum(self, step: int) -> None:
        """Set Muon's momentum for the step with this number, from 0, as its warm-up has it."""
        start, over = self._settings.momentum_start, self._settings.momentum_warmup
        if start is None or over is None:
            return
        done = min(1.0, step / over)
        for group in self._muon.param_groups:
            group["momentum"] = (1 - done) * start + done * self._settings.momentum


def _take(steps: list[Tensor], directions: list[Tensor], group: dict[str, Any]) -> None:
    """Move matrices at zero by what torch's Muon makes of directions that are means of gradients already."""
    views = [nn.Parameter(step) for step in steps]
    for view, direction in zip(views, directions, strict=True):
        view.grad = direction
    settings = {name: group[name] for name in ("lr", "ns_steps", "adjust_lr_fn")}
    torch.optim.Muon(views, weight_decay=0.0, momentum=0.0, nesterov=False, **settings).step()
