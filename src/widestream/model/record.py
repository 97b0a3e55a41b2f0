"""What goes through a decoder's exchanges, kept for measurements: written vectors, states, and what readers get."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from widestream.blocks.context import Context
from widestream.blocks.norm import Norm
from widestream.model.decoder import Decoder
from widestream.model.depth.eager import Blocks, Depth, Eager, Embedded
from widestream.streams.base import Stream


@dataclass(frozen=True, slots=True)
class Exchanged:
    """One exchange of a forward pass."""

    site: int
    """0 is the embedding's, the last one the head's."""
    written: tuple[Tensor, ...]
    """What was written: tokens' and perhaps positions' vectors at site 0, then a block's output."""
    state: Any
    """The stream's state after the write."""
    normed: tuple[Tensor, ...]
    """What the norms in front of the reader took in: the stream as this reader sees it, at its own scale."""
    inputs: dict[str, Tensor]
    """What the reader received, by role."""


@contextmanager
def record_exchanges(model: Decoder) -> Iterator[list[Exchanged]]:
    """Collect every exchange of the forward passes inside.

    Written vectors and inputs are recorded as views of their own, so that the gradient of one is that through its
    exchange, or through its reader, alone. The model is eager inside, and saves its states.
    """
    with record_pass(model) as recorded:
        yield recorded.exchanges


@contextmanager
def record_pass(model: Decoder) -> Iterator["Recorded"]:
    """The same, with what the pass shared."""
    recorded = Recorded()
    with ExitStack() as stack:
        stack.enter_context(recorded.norms.of(model.stream))
        stack.enter_context(model.using(model.depth.around(recorded)))
        yield recorded


@contextmanager
def record_stream(stream: Stream) -> Iterator[list[Exchanged]]:
    """Collect every exchange that anybody's code asks a stream for inside; see `record_exchanges`."""
    recorded = Recorded()
    with ExitStack() as stack:
        stack.enter_context(recorded.norms.of(stream))
        stream.exchange = _Recorder(stream, recorded.exchanges, recorded.norms).exchange  # type: ignore[method-assign]
        stack.callback(delattr, stream, "exchange")
        yield recorded.exchanges


class Recorded(Depth):
    """The plain loop, every exchange of which is kept."""

    context: Context
    """Of the last pass."""

    def __init__(self):
        self.exchanges: list[Exchanged] = []
        self.norms = _NormInputs()

    def __call__(self, stream: Stream, blocks: Blocks, embedded: Embedded, context: Context) -> Tensor:
        """See `Depth`."""
        self.context = context
        return Eager()(_Recorder(stream, self.exchanges, self.norms), blocks, embedded, context)


@runtime_checkable
class Editing(Protocol):
    """What stands in a stream's place and changes what is written."""

    written: dict[int, tuple[Tensor, ...]]
    """What was written in the end, by site."""


class _Recorder:
    """A stream that is looked at, in the stream's place in the loop."""

    def __init__(self, stream: Stream, exchanges: list[Exchanged], norms: "_NormInputs"):
        self.stream, self.exchanges, self.norms = stream, exchanges, norms

    def empty(self, context: Context) -> Any:
        return self.stream.empty(context)

    def exchange(self, site: int, state: Any, written: Any) -> tuple[Any, dict[str, Tensor]]:
        parts = tuple(None if x is None else x.view_as(x) for x in (written if site == 0 else (written,)))
        state, inputs = self._exchange(site, state, parts if site == 0 else parts[0])
        inputs = {role: x.view_as(x) for role, x in inputs.items()}
        present = tuple(x for x in parts if x is not None)
        if isinstance(self.stream, Editing):
            present = self.stream.written[site]
        self.exchanges.append(Exchanged(site, present, state, self.norms.take(), inputs))
        return state, inputs

    def _exchange(self, site: int, state: Any, written: Any) -> tuple[Any, dict[str, Tensor]]:
        """As `Stream.exchange`, but told apart: what norms take in while writing, and while reading."""
        stream = self.stream
        if type(stream).exchange is not Stream.exchange:
            return type(stream).exchange(stream, site, state, written)  # not what may stand in its place
        state = stream.write_embedding(state, *written) if site == 0 else stream.write(site, state, written)
        with self.norms.read():
            return state, stream.read(site, state)


class _NormInputs:
    """A hook on all norms of a stream that keeps what they take in during an exchange."""

    def __init__(self):
        self._reading = False
        self._inputs: list[Tensor] = []
        self._last: tuple[Tensor, ...] = ()

    def __call__(self, norm: Norm, arguments: tuple[Tensor]) -> None:
        self._last = arguments
        if self._reading:
            self._inputs.append(arguments[0])

    @contextmanager
    def of(self, stream: Stream) -> Iterator[None]:
        """The stream's norms are listened to inside."""
        with ExitStack() as stack:
            for module in stream.modules():
                if isinstance(module, Norm):
                    stack.callback(module.register_forward_pre_hook(self).remove)
            yield

    @contextmanager
    def read(self) -> Iterator[None]:
        """A read goes on inside."""
        self._reading = True
        try:
            yield
        finally:
            self._reading = False

    def take(self) -> tuple[Tensor, ...]:
        """Inputs of the norms of this exchange's read; a stream that needs them before has normed last in its write."""
        inputs = tuple(self._inputs) or self._last
        self._inputs, self._last = [], ()
        return inputs
