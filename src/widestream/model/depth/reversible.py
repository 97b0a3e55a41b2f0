"""Save the writes, not the state: the backward pass rebuilds every state from the one after it.

A write of low rank can be taken back: RMT's X before a write is X after it minus sum_h w^(h) (x) y^(h), and y^(h) is
kept for its gradient anyway. So one state is alive in the forward pass, and one state and one gradient of it in the
backward pass, however deep the model is and however wide the state.

The live state lies outside autograd, on a `Tape`. Autograd sees one node per exchange, with what was written and the
site's parameters as inputs and what was read as output, and a token that the tape hands from node to node: it carries
no value, but it makes the nodes run backwards in their order. There, the node of site i finds on the tape the state
after its write and the gradient of that state, and leaves the state before its write and the gradient of that.

Undoing rounds. Where that adds up (very deep models, states in bfloat16), exact copies of the state at a few sites,
`anchors`, take over in the backward pass.

A stream goes through `kernels/exchange.py` in place, or step by step: undo the write, or go once more from the anchor
before it, and take the gradients of that exchange alone (`StreamSpec.undo`, stepwise.py).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from widestream.blocks.context import Context
from widestream.errors import UserError
from widestream.kernels.exchange import Exchange, ReferenceExchange, Site, Switch, choose
from widestream.model.depth.operator import Saved
from widestream.model.depth.stepwise import Replay, Replayed, Stretch, Undone
from widestream.recipe.model import ModelConfig
from widestream.streams import stream_class
from widestream.streams.base import KernelCall, Stream, anchor_sites

Memory = Literal["auto", "states", "writes"]
Precision = Literal["float32", "bf16"]


@dataclass(frozen=True)
class Reversible:
    """How states are rebuilt."""

    exchange: Exchange = field(default_factory=ReferenceExchange)
    """What computes, where the stream's exchange is one of kernels/exchange.py."""
    anchors: int = 0
    """Exact copies of the state that a forward pass keeps, evenly spaced over the sites; where states are replayed,
    there is no other way to one."""
    bf16: bool = False
    """Whether the live state and its gradient are kept in bfloat16."""


ExchangePlan = Reversible | Saved
"""What `Decoder.exchanges` may be beside None, which is states saved and exchanges as their stream has them."""


def plan_exchanges(
    config: ModelConfig,
    device: torch.device,
    memory: Memory = "auto",
    anchors: int = 0,
    kernels: Switch = "auto",
    state_precision: Precision = "float32",
) -> ExchangePlan | None:
    """Turn the settings of a run into what `Decoder.exchanges` takes.

    Args:
        config: the model's.
        device: where it computes.
        memory: `states`, `writes`, or `auto`: writes where a fused kernel makes that the faster way too, or where
            another setting needs it; else states.
        anchors: exact copies of the state; 0: none where writes are undone, `Stream.replay_anchors` where states are
            replayed.
        kernels: see `kernels.exchange.choose`.
        state_precision: of the live state.

    Raises:
        UserError: settings that the stream or each other cannot serve.
    """
    kind, cls = config.stream.kind, stream_class(config.stream.kind)
    undo, writes = cls.spec(config).undo, len(cls.blocks(config))
    if memory == "writes" and undo == "no":
        raise UserError(
            f"A {kind} stream rebuilds no states, which take no more than what is written to it; "
            "use train.stream_memory: auto or states."
        )
    if kernels == "fused" and undo != "kernel":
        raise UserError(f"train.kernels: fused has no form for the exchange of a {kind} stream; use auto.")
    if memory == "states" or undo == "no":
        asked = {"anchors": anchors > 0, "state_precision": state_precision == "bf16"}
        for name in (name for name, given in asked.items() if given):
            why = f"a {kind} stream saves its states" if undo == "no" else "train.stream_memory is states"
            raise UserError(f"train.{name} acts where states are rebuilt from writes, but {why}; leave it out.")
        return _plan_saving(device, kernels) if undo == "kernel" else None
    needed = anchors > 0 or kernels == "fused" or state_precision == "bf16"
    fused = undo == "kernel" and not isinstance(choose(kernels, device), ReferenceExchange)
    if memory == "auto" and not needed and not fused:
        return None
    if anchors >= writes:
        raise UserError(f"train.anchors is {anchors}; it must be below the number of this model's blocks, {writes}.")
    if undo != "kernel":
        if state_precision == "bf16":
            raise UserError(f"train.state_precision: bf16 does not suit a {kind} stream; use float32.")
        return Reversible(anchors=anchors or (cls.replay_anchors(config) if undo == "replay" else 0))
    return Reversible(choose(kernels, device), anchors, state_precision == "bf16")


def _plan_saving(device: torch.device, kernels: Switch) -> Saved | None:
    """Operators where a fused kernel is behind them; torch operations do not gain by being one.

    `auto` takes them where that was measured.
    """
    exchange = choose(kernels if kernels == "fused" or device.type == "cpu" else "reference", device)
    return None if isinstance(exchange, ReferenceExchange) else Saved(type(exchange).__name__)


def describe(plan: ExchangePlan | None) -> dict[str, Any]:
    """The same in words, for a run's record."""
    if plan is None:
        return {"memory": "states"}
    if isinstance(plan, Saved):
        return {"memory": "states", "kernel": plan.kernel}
    state_precision = "bf16" if plan.bf16 else "float32"
    kernel, anchors = type(plan.exchange).__name__, plan.anchors
    return {"memory": "writes", "kernel": kernel, "anchors": anchors, "state_precision": state_precision}


class Tape:
    """The live state of one forward pass, in the stream's place in the decoder's loop.

    Its `exchange` is the stream's, but for a token [] in the state's place. Backward, a pass can be gone through once.

    Args:
        stream: whose exchanges these are.
        config: the model's.
        options: how states are rebuilt.
    """

    def __init__(self, stream: Stream, config: ModelConfig, options: Reversible):
        self.stream, self.options = stream, options
        undo = type(stream).spec(config).undo
        self.in_place = undo == "kernel"
        self.node: type[torch.autograd.Function] = Replayed if undo == "replay" else Undone
        """What autograd sees of an exchange that is not in place."""
        self.start: Any = None
        """What there is before the first write."""
        self.windows: tuple[int, ...] = ()
        """In place: B, T."""
        self.site = -1
        """The newest write that `state` contains."""
        self.state: Any = None
        """In place [N, V, K]; else the stream's own, detached."""
        self.grad: Any = None
        """Of `state`: in place [N, V, K]; else of each of its leaves, or None. None until the backward pass begins."""
        self.goes_back = torch.is_grad_enabled()
        """Whether there is to be a backward pass."""
        self.anchor_sites = set(anchor_sites(len(stream.readers) - 1, options.anchors)) if self.goes_back else set()
        self.anchors: dict[int, Any] = {}
        self.stretch: Stretch
        """Replayed states: what has been written since the last anchor."""
        self.replayed: list[Replay] = []
        """Replayed states: what the backward pass has still to go through of the stretch at hand."""

    def empty(self, context: Context) -> None:
        """Begin."""
        self.start = self.stream.empty(context)
        self.stretch = Stretch(0, self.start)

    @torch.compiler.disable()
    def exchange(self, site: int, token: Tensor | None, written: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Stream.exchange`."""
        if not self.in_place:
            tensors = written if site == 0 else (written,)
            found: Any = self.node.apply(self, site, len(tensors), token, *tensors, *self.stream.parameters())
            after, names, *read = found
            return after, dict(zip(names, read, strict=True))
        if site == 0:
            token = _Enter.apply(self, self.stream.write_embedding(self.start, *written))  # pyright: ignore[reportAssignmentType]
            written = None
        call = self.stream.as_kernel(site, written)
        keys = call.site
        found = _InPlace.apply(self, site, call, token, call.data, keys.write_keys, keys.read_keys, keys.gain)
        after, out = found
        return after, call.hand_over(out.mT if call.by_heads else out)

    def advance(self, site: int) -> None:
        """Note that `state` is now the one after the write at `site`."""
        assert site == self.site + 1, f"exchange {site} on a tape that stands at {self.site}"
        self.site = site
        if site in self.anchor_sites and self.node is Undone:
            self.anchors[site] = self.state.clone() if self.in_place else self.state

    def rewind(self, site: int) -> None:
        """Make sure that `state` is the one after the write at `site`; an anchor gives the exact one.

        Raises:
            RuntimeError: a backward pass has been here before, or is to be differentiated itself.
        """
        if torch.is_grad_enabled():
            raise RuntimeError(
                "Rebuilt states have no gradients of gradients; use stream_memory: states and kernels: reference, or "
                "no create_graph."
            )
        if site != self.site:
            raise RuntimeError(
                "The states of this forward pass were given up as an earlier backward pass rebuilt them; with "
                "stream_memory: writes there can be only one. Run the forward pass again, or use stream_memory: states."
            )
        self.state = self.anchors.pop(site, self.state)

    def retreat(self) -> None:
        """Note that `state` and `grad` are now those before the write at `site`, of which the first has none."""
        self.site -= 1
        if self.site < 0:
            self.state = self.start = None


class _Enter(torch.autograd.Function):
    """X_0 goes onto the tape; its gradient comes back from there."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, X: Tensor) -> Tensor:
        """X [B, T, V, K] -> token []."""
        ctx.tape, ctx.shape = tape, X.shape
        ctx.set_materialize_grads(False)
        dtype = torch.bfloat16 if tape.options.bf16 else torch.promote_types(X.dtype, torch.float32)
        tape.windows, tape.state = X.shape[:2], X.detach().to(dtype).flatten(0, 1).contiguous()
        if ctx.needs_input_grad[1]:
            # Changed in place from here on, also by kernels of which autograd knows nothing: had a stream saved X_0 for
            # its own backward pass, that would now be an error and not a wrong number.
            torch.autograd.graph.increment_version(X)
        return X.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradient that is left when all exchanges have been undone."""
        grad, ctx.tape.grad = ctx.tape.grad, None
        return None, grad.view(ctx.shape)


class _InPlace(torch.autograd.Function):
    """An exchange by kernels/exchange.py on the tape's state."""

    @staticmethod
    def forward(
        ctx: Any, tape: Tape, number: int, call: KernelCall, token: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Data, keys and gain, which are in `call` too -> token [], and what is read, by heads [B, T, Q, V] or not."""
        values, read = tape.state.shape[1], len(call.site.read_keys)
        shape = (*tape.windows, read, values) if call.by_heads else (*tape.windows, values, read)
        out = tape.state.new_empty(shape, dtype=call.dtype)
        by_columns = out.mT if call.by_heads else out
        tape.options.exchange.forward_(tape.state, _flat(call.data), call.site, by_columns.flatten(0, 1))
        tape.advance(number)
        ctx.save_for_backward(*tensors)
        ctx.tape, ctx.number, ctx.by_heads, ctx.norm = tape, number, call.by_heads, (call.site.norm, call.site.eps)
        return token.new_zeros(()), out

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, _: Tensor | None, grad_out: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Undo the write on the tape, and take its gradient to the state before."""
        tape, (data, write_keys, read_keys, gain) = ctx.tape, ctx.saved_tensors
        tape.rewind(ctx.number)
        state = tape.state
        if tape.grad is None:
            tape.grad = torch.zeros_like(state)
        grad_data = None if data is None else _like(data)
        site = Site(write_keys, read_keys, gain, *ctx.norm)
        by_columns = (grad_out.mT if ctx.by_heads else grad_out).flatten(0, 1)
        found = tape.options.exchange.backward_(state, tape.grad, _flat(data), site, by_columns, _flat(grad_data))
        tape.retreat()
        return None, None, None, None, grad_data, found.write_keys, found.read_keys, found.gain


def _flat(x: Tensor | None) -> Tensor | None:
    """[B, T, ...] -> [N, ...]."""
    return None if x is None else x.flatten(0, 1)


def _like(data: Tensor) -> Tensor:
    """Room for the gradient of vectors [B, T, V, R], side by side or one after the other as they are."""
    B, T, V, R = data.shape
    return data.new_empty(B, T, R, V).mT if data.stride(-2) == 1 else data.new_empty(data.shape)
