"""The tape: one live state outside autograd, which exchanges change going forwards and rebuild going backwards.

Autograd sees one node per exchange, with what was written and the site's parameters as inputs and what was read as
output, and a token that the tape hands from node to node: it carries no value, but it makes the nodes run backwards in
their order. There, the node of site i finds on the tape the state after its write and the gradient of that state, and
leaves the state before its write and the gradient of that.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from widestream.blocks.context import Context
from widestream.streams.base import Stream, anchor_sites


@dataclass
class Stretch:
    """Exchanges from one anchor to the next, as the forward pass leaves them."""

    first: int
    """Site of the first one."""
    before: Any
    """The state in front of it."""
    written: list[tuple[Tensor | None, ...]] = field(default_factory=list)
    """What was written at each."""


class Repeated(NamedTuple):
    """An exchange gone through again, with a graph of its own."""

    inputs: list[Any]
    """Leaves of the state in front of it, and what was written."""
    outputs: list[Any]
    """What was read, and the leaves of the state behind it."""
    num_leaves: int
    """How many of the inputs are the state's."""


class Tape:
    """The live state of one forward pass, and of its backward pass, which can be gone through once.

    Args:
        stream: whose state this is.
        anchors: exact copies that the forward pass keeps, evenly spaced over the sites.
        bf16: whether a state that is changed in place, and its gradient, are kept in bfloat16.
    """

    def __init__(self, stream: Stream, anchors: int = 0, bf16: bool = False):
        self.stream, self.bf16 = stream, bf16
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
        self.anchor_sites = set(anchor_sites(len(stream.readers) - 1, anchors)) if self.goes_back else set()
        self.anchors: dict[int, Any] = {}
        """Exact copies of the state, by site; where states are replayed they lie in the graph."""
        self.stretch: Stretch
        """Replayed states: what has been written since the last anchor."""
        self.repeated: list[Repeated] = []
        """Replayed states: what the backward pass has still to go through of the stretch at hand."""

    def begin(self, context: Context) -> None:
        """Begin a forward pass."""
        self.start = self.stream.empty(context)
        self.stretch = Stretch(0, self.start)

    def next_stretch(self) -> Stretch:
        """Hand out the stretch that ends with the newest write, and begin another."""
        ended, self.stretch = self.stretch, Stretch(self.site + 1, self.state)
        return ended

    def enter(self, X: Tensor) -> None:
        """Take in X_0 [B, T, V, K], whose copy is changed in place from here on."""
        dtype = torch.bfloat16 if self.bf16 else torch.promote_types(X.dtype, torch.float32)
        self.windows, self.state = X.shape[:2], X.detach().to(dtype).flatten(0, 1).contiguous()

    def advance(self, site: int, state: Any, copy: Callable[[Any], Any] | None = None) -> None:
        """Note that `state` is the one after the write at `site`.

        Args:
            site: one more than before.
            state: the live one from here on.
            copy: makes the copy that an anchor keeps; None: anchors lie elsewhere.
        """
        assert site == self.site + 1, f"exchange {site} on a tape that stands at {self.site}"
        self.site, self.state = site, state
        if copy is not None and site in self.anchor_sites:
            self.anchors[site] = copy(state)

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

    def retreat(self, state: Any, grad: Any) -> None:
        """Note that `state` and `grad` are those before the newest write; in front of the first there is no state."""
        self.site, self.state, self.grad = self.site - 1, state, grad
        if self.site < 0:
            self.state = self.start = None

    def leave(self) -> Any:
        """Hand out the gradient that is left when all exchanges have been undone."""
        grad, self.grad = self.grad, None
        return grad
