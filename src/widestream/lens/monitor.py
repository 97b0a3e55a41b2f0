"""A stream's health while a model trains: a look at one window every so many steps (`train.watch_every`)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from widestream.model.decoder import Decoder
from widestream.model.record import Exchanged, record_exchanges

ALIKE = 0.9999
"""Lanes whose vectors have a larger cosine than this at every site carry one vector between them."""
RUNAWAY = 100.0
"""A gain over the depth beyond this, or below one over it, and ten times as far as at the first look, runs away."""
PATIENCE = 5
"""Looks after which lanes that are still equal are named: many designs begin with equal ones."""


@dataclass(frozen=True)
class Health:
    """One look. Lists go by site: 0 is the embedding's, the last one the head's."""

    state_rms: list[float]
    """Root mean square of the stream as each reader sees it, before its norm."""
    update: list[float]
    """Size of what was written over that of the stream after it."""
    written_grad_rms: list[float]
    """Root mean square of the loss's gradient by what was written, times tokens."""
    forward_gain: float
    """Of the depth: the last of `state_rms` over the first."""
    backward_gain: float
    """Of the depth: the first of `written_grad_rms` over the last."""
    largest_logit: float
    """In absolute value."""
    lanes_alike: list[float] | None
    """Mean cosine between the lanes of a token; None for streams without lanes."""
    rows_in_use: list[float] | None
    """Part of a matrix stream's rows in use: exp of the entropy of their squared norms, over D_k."""

    def to_row(self) -> dict[str, Any]:
        """For metrics.jsonl: what there is, and a number for each list that trackers can draw."""
        row = {name: value for name, value in asdict(self).items() if value is not None}
        row["largest_state_rms"] = max(self.state_rms)
        if self.lanes_alike is not None:
            row["least_lanes_alike"] = min(self.lanes_alike)
        if self.rows_in_use is not None:
            row["last_rows_in_use"] = self.rows_in_use[-1]
        return row


def check_health(model: Decoder, tokens: Tensor, targets: Tensor, segments: Tensor | None = None) -> Health:
    """Look at a stream in one forward and backward pass; parameters and their gradients are left as they are.

    Where processes share out the weights (FSDP2), all have to look at once, and see the same in the same window.

    Args:
        model: in training or evaluation mode, whatever the way through its depth; under the autocast of the run.
        tokens: [B, T]; a window or two are enough.
        targets: [B, T].
        segments: document of every token [B, T].
    """
    with torch.enable_grad(), record_exchanges(model) as exchanges:
        terms = model.loss(tokens, targets, segments)
        written = [one.written[0] for one in exchanges]
        with torch.no_grad():  # before the backward pass, after which processes part with each other's weights
            logits = model.logits(exchanges[-1].inputs["x"])
        gradients = torch.autograd.grad(terms.total, written, allow_unused=True)
    with torch.no_grad():
        states = [_seen(one, model.stream.cuts_vectors) for one in exchanges]
        rms = [_rms(state) for state in states]
        sizes = [_rms(one.written[0]) for one in exchanges]
        slopes = [0.0 if gradient is None else _rms(gradient) * targets.numel() for gradient in gradients]
        return Health(
            state_rms=rms,
            update=[_over(size, whole) for size, whole in zip(sizes, rms, strict=True)],
            written_grad_rms=slopes,
            forward_gain=_over(rms[-1], rms[0]),
            backward_gain=_over(slopes[0], slopes[-1]),
            largest_logit=logits.abs().max().item(),
            lanes_alike=_alike_by_site(exchanges, model),
            rows_in_use=_in_use_by_site(states, model),
        )


def _over(a: float, b: float) -> float:
    return a / b if b else float("inf")


def _rms(x: Tensor) -> float:
    return x.float().square().mean().sqrt().item()


def _seen(exchanged: Exchanged, matrix: bool) -> Tensor:
    """A matrix stream's state, else what stands in front of the reader's norm."""
    state = exchanged.state
    if isinstance(state, Tensor) and ((matrix and state.ndim == 4) or not exchanged.normed):
        return state
    return (exchanged.normed or tuple(exchanged.inputs.values()))[0]


def _alike_by_site(exchanges: Sequence[Exchanged], model: Decoder) -> list[float] | None:
    """How alike lanes [B, T, n, W] are, at the sites where there are some."""
    number = getattr(model.stream.settings, "lanes", 0)
    parts = [one.state if isinstance(one.state, tuple) else (one.state,) for one in exchanges]
    lanes = [
        next((x for x in part if isinstance(x, Tensor) and x.ndim == 4 and x.shape[2] == number), None)
        for part in parts
    ]
    found = [_alike(x.float()) for x in lanes if x is not None]
    return found if number > 1 and len(found) > 1 else None


def _in_use_by_site(states: Sequence[Tensor], model: Decoder) -> list[float] | None:
    """What part of the rows of states [B, T, D_v, D_k] is in use."""
    if not model.stream.cuts_vectors or any(state.ndim != 4 for state in states):
        return None
    return [_in_use(state.float()) for state in states]


def _alike(state: Tensor) -> float:
    """Mean cosine between different lanes."""
    unit = torch.nn.functional.normalize(state, dim=-1)
    number = state.shape[2]
    whole = unit.sum(2).square().sum(-1)  # sum of all cosines, each lane's with itself among them
    return ((whole - unit.square().sum((-1, -2))) / (number * (number - 1))).mean().item()


def _in_use(state: Tensor) -> float:
    energy = state.square().sum(2)
    shares = energy / energy.sum(-1, keepdim=True).clamp_min(1e-30)
    return (torch.special.entr(shares).sum(-1).exp().mean() / state.shape[-1]).item()


class Watch:
    """What is said of a stream's health over a run, each thing once."""

    def __init__(self) -> None:
        self._looks, self._first, self._said = 0, 1.0, set[str]()

    def take(self, health: Health) -> list[str]:
        """Sentences on what this look shows."""
        self._looks += 1
        far = max(_far(health.forward_gain), _far(health.backward_gain))
        if self._looks == 1:
            self._first = far
        found = {}
        if far > RUNAWAY and far > 10 * self._first:
            found["gain"] = (
                f"the stream's gain over the depth runs away: {health.forward_gain:.3g} forward, "
                f"{health.backward_gain:.3g} backward"
            )
        if health.lanes_alike is not None and self._looks >= PATIENCE and min(health.lanes_alike[1:]) > ALIKE:
            found["lanes"] = (
                f"the lanes of the stream are still equal (cosine {min(health.lanes_alike[1:]):.5f}): they carry one "
                "vector between them"
            )
        new = [sentence for name, sentence in found.items() if name not in self._said]
        self._said |= found.keys()
        return new


def _far(gain: float) -> float:
    return max(gain, _over(1.0, gain))
