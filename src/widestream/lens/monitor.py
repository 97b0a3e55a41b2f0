"""A stream's health while a model trains: a look at one window every so many steps (`train.watch_every`)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from widestream.errors import UserError
from widestream.model.decoder import Decoder
from widestream.model.record import Exchanged, record_exchanges, record_stream
from widestream.streams.base import Stream

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
    largest_logit: float | None
    """In absolute value; None where logits are not at hand."""
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
        return _health(model.stream, exchanges, gradients, logits.abs().max().item())


class HostStream(Protocol):
    """A stream in a model that is not ours: what `widestream.residual` makes and `attached_stream` gives."""

    core: Stream
    """The design itself."""
    num_sites: int
    """How many branches write."""


def check_stream(stream: HostStream, loss_of: Callable[[], Tensor]) -> Health:
    """Look at a stream in a model that is not ours; parameters and their gradients are left as they are.

    Args:
        stream: between the model's branches.
        loss_of: computes a loss in one forward pass of that model, with gradients; a window or two are enough.

    Returns:
        What there is; no logits.

    Raises:
        UserError: the pass does not go through the stream, or more than once, or has no gradients by what is written.
    """
    with torch.enable_grad():
        with record_stream(stream.core) as recorded:
            loss = loss_of()
            exchanges = list(recorded)
        if [one.site for one in exchanges] != list(range(stream.num_sites + 1)):
            raise UserError(
                f"loss_of() made {len(exchanges)} exchanges, and one pass has {stream.num_sites + 1}; let it go "
                "through the model once, in an attached model or by start and exchange."
            )
        written = [one.written[0] for one in exchanges]
        if not loss.requires_grad or not all(one.requires_grad for one in written[1:]):
            raise UserError(
                "What loss_of() computes has no gradients by what is written to the stream; call it without no_grad, "
                "with activation checkpointing off or use_reentrant=False."
            )
        behind = [one for one in written if one.requires_grad]
        found = iter(torch.autograd.grad(loss, behind, allow_unused=True))
    gradients = [next(found) if one.requires_grad else None for one in written]
    with torch.no_grad():
        return _health(stream.core, exchanges, gradients, None)


def _health(
    stream: Stream, exchanges: Sequence[Exchanged], gradients: Sequence[Tensor | None], largest_logit: float | None
) -> Health:
    states = [_seen(one, stream.cuts_vectors) for one in exchanges]
    rms = [_rms(state) for state in states]
    sizes = [_rms(one.written[0]) for one in exchanges]
    tokens = exchanges[0].written[0].shape[:2].numel()
    slopes = [0.0 if gradient is None else _rms(gradient) * tokens for gradient in gradients]
    return Health(
        state_rms=rms,
        update=[_over(size, whole) for size, whole in zip(sizes, rms, strict=True)],
        written_grad_rms=slopes,
        forward_gain=_over(rms[-1], rms[0]),
        backward_gain=_over(slopes[0], slopes[-1]),
        largest_logit=largest_logit,
        lanes_alike=_alike_by_site(exchanges, stream),
        rows_in_use=_in_use_by_site(states, stream),
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


def _alike_by_site(exchanges: Sequence[Exchanged], stream: Stream) -> list[float] | None:
    """How alike lanes [B, T, n, W] are, at the sites where there are some."""
    number = getattr(stream.settings, "lanes", 0)
    parts = [one.state if isinstance(one.state, tuple) else (one.state,) for one in exchanges]
    lanes = [
        next((x for x in part if isinstance(x, Tensor) and x.ndim == 4 and x.shape[2] == number), None)
        for part in parts
    ]
    found = [_alike(x.float()) for x in lanes if x is not None]
    return found if number > 1 and len(found) > 1 else None


def _in_use_by_site(states: Sequence[Tensor], stream: Stream) -> list[float] | None:
    """What part of the rows of states [B, T, D_v, D_k] is in use."""
    if not stream.cuts_vectors or any(state.ndim != 4 for state in states):
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
