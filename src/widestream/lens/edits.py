"""Changes to a forward pass: wires cut, writers silenced, vectors patched in from another pass, directions added.

    with edit(model, cut(writer, reader), silence(other)):
        model.loss(tokens, targets)                 # or look(model, tokens), generate(model, ...)

Edits compose, in the order in which they are given, and hold for every pass inside, with a cache or without.

A **wire** runs from a writer to a reader. Cut, the reader gets what it gets less the writer's share in it; the norm in
front keeps the scale that the whole stream gives it, and everybody else still gets the writer's vector. (Path patching
with the direct path only, Wang et al. 2022, for any stream whose shares are exact.) What it changes lies behind the
reader.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from widestream.blocks.attention import DenseAttention
from widestream.blocks.context import Context
from widestream.errors import UserError
from widestream.lens.look import Seen
from widestream.lens.parted import Ledger, Parted
from widestream.lens.places import Reader, Writer, inner_block, require_vector, vectors_of
from widestream.lens.shares import EXACT, written_shares
from widestream.lens.taps import Heads, tap_heads
from widestream.model.decoder import Decoder
from widestream.model.depth.eager import Blocks, Depth, Eager, Embedded, Exchanges

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Cut:
    """A reader gets nothing of what a writer has written."""

    writer: Writer
    reader: Reader


@dataclass(frozen=True, slots=True)
class Written:
    """What a writer writes is changed; all readers get the change."""

    writer: Writer
    change: Change
    """From the writer's share of what is written to the new one, both [B, T, ...]."""


@dataclass(frozen=True, slots=True)
class Got:
    """What a reader gets is changed."""

    reader: Reader
    change: Change
    """From the reader's vector [B, T, N] to the new one."""


Edit = Cut | Written | Got


def cut(writer: Writer, reader: Reader) -> Cut:
    """Cut the wire from a writer to a reader.

    Raises:
        UserError: the reader reads before the writer writes.
    """
    if reader.site < writer.site:
        raise UserError(f"{reader.name} reads before {writer.name} writes; there is no wire.")
    return Cut(writer, reader)


def silence(writer: Writer) -> Written:
    """A writer writes zeros."""
    return Written(writer, torch.zeros_like)


def steer(writer: Writer, direction: Tensor, strength: float = 1.0) -> Written:
    """Add a direction to what a writer writes.

    Args:
        writer: who.
        direction: of the shape of what is written, or broadcasting to it: [D]; heads [H, K].
        strength: it is multiplied by.
    """
    return Written(writer, lambda share: share + strength * direction)


def patch(place: Writer | Reader, source: Seen) -> Written | Got:
    """Put in what a writer wrote, or a reader got, in another pass.

    Args:
        place: who.
        source: a pass of the same model on as many tokens.
    """
    if isinstance(place, Reader):
        x = source.exchanges[place.site].inputs[place.role]
        vectors = vectors_of(source.model, x)
        require_vector(place, None if vectors is None else vectors.shape[2])
        got = x if vectors is None or place.vector is None else vectors[:, :, place.vector]
        return Got(place, _always(place, got))
    written = source.exchanges[place.site].written
    share = written_shares(source.model, place.site, written, source.heads.get(place.site), [place])[place]
    return Written(place, _always(place, share))


def _always(place: Writer | Reader, there: Tensor) -> Change:
    """Whatever stands there, the other pass's in its place."""

    def change(here: Tensor) -> Tensor:
        if here.shape != there.shape:
            raise UserError(
                f"{place.name} is {[*here.shape]} here and {[*there.shape]} in the pass that is patched in; both must "
                "be of as many tokens, and of one model."
            )
        return there

    return change


@contextmanager
def edit(model: Decoder, *edits: Edit) -> Iterator[None]:
    """Run the passes inside with edits.

    Args:
        model: in evaluation mode. Passes inside go through the plain loop, whatever way through the depth it has.
        edits: what is changed. Within other edits these come after them.

    Raises:
        UserError: a place that the model does not have; in a pass: a wire of a stream whose shares are not exact.
    """
    for place in (place for one in edits for place in _places(one)):
        if not 0 <= place.site <= len(model.layout):
            raise UserError(f"{place.name} is none of this model's {len(model.layout)} blocks.")
    earlier = model.depth.made if isinstance(model.depth, Edited) else ()
    with tap_heads(model) as tapped, model.using(Edited(model, (*earlier, *edits), tapped)):
        yield


def _places(one: Edit) -> tuple[Writer | Reader, ...]:
    if isinstance(one, Cut):
        return one.writer, one.reader
    return (one.writer if isinstance(one, Written) else one.reader,)


class Edited(Depth):
    """A way through the depth whose exchanges are edited.

    Args:
        model: whose stream it is.
        made: the edits.
        tapped: where what attention computes arrives.
        loop: what goes through the blocks.
    """

    def __init__(self, model: Decoder, made: tuple[Edit, ...], tapped: list[Heads], loop: Depth | None = None):
        self.model, self.made, self.tapped, self.loop = model, made, tapped, loop or Eager()

    @property
    def edits(self) -> bool:
        """See `Depth`."""
        return True

    def around(self, loop: Depth) -> Depth:
        """See `Depth`."""
        return Edited(self.model, self.made, self.tapped, loop)

    def __call__(self, stream: Any, blocks: Blocks, embedded: Embedded, context: Context) -> Tensor:
        """See `Depth`."""
        if torch.is_grad_enabled() and any(isinstance(one, Cut) for one in self.made):
            raise UserError("A pass with cut wires has no gradients; run it inside torch.no_grad().")
        self.tapped.clear()
        return self.loop(_EditedStream(self, stream), blocks, embedded, context)


class _EditedStream:
    """A stream in whose exchanges something is changed, in the stream's place in the loop."""

    def __init__(self, depth: Edited, stream: Exchanges):
        self.depth, self.model, self.stream, self.ledger = depth, depth.model, stream, Ledger()
        self.tracked = list(dict.fromkeys(one.writer for one in depth.made if isinstance(one, Cut)))
        self.index = {writer: number for number, writer in enumerate(self.tracked)}
        self.apart = {w for w in self.tracked if w.vector is None or w.whole not in self.index}
        """Of these, those that are no part of another one."""
        self.reading: dict[tuple[int, str], list[Cut | Got]] = {}
        """Edits of what is read, by site and role, in their order."""
        for one in depth.made:
            if not isinstance(one, Written):
                self.reading.setdefault((one.reader.site, one.reader.role), []).append(one)
        self.written: dict[int, tuple[Tensor, ...]] = {}
        """What was written in the end, by site."""

    def empty(self, context: Context) -> Any:
        """The stream's."""
        return self.stream.empty(context)

    def exchange(self, site: int, state: Any, written: Any) -> tuple[Any, dict[str, Tensor]]:
        """The stream's, between what is done to what is written and to what is read."""
        parts = self._written(site, [x for x in (written if site == 0 else (written,)) if x is not None])
        self.written[site] = tuple(x.value if isinstance(x, Parted) else x for x in parts)
        state, inputs = self.stream.exchange(site, state, (*parts, None)[:2] if site == 0 else parts[0])
        return state, {role: self._got(site, role, x) for role, x in inputs.items()}

    def _written(self, site: int, parts: list[Tensor]) -> list[Tensor]:
        """What is written, changed, with the shares of the writers whose wires are cut."""
        changes = [one for one in self.depth.made if isinstance(one, Written) and one.writer.site == site]
        tracked = [writer for writer in self.tracked if writer.site == site]
        heads = self.depth.tapped[-1] if self.depth.tapped else None
        shares = written_shares(self.model, site, parts, heads, [*tracked, *(one.writer for one in changes)])
        for one in changes:
            number, before = _number(one.writer), _known(one.writer, shares)
            shares[one.writer] = one.change(before).expand_as(before)
            parts[number] = parts[number] - before + shares[one.writer]
            self._follow(site, one.writer, parts[number], shares)
        # Whatever is written knows its shares, or a gate made of it would not be told from what it multiplies.
        own = {writer: _known(writer, shares) for writer in tracked}
        return [self._parted(x, number, own) for number, x in enumerate(parts)] if self.tracked else parts

    def _follow(self, site: int, changed: Writer, x: Tensor, shares: dict[Writer, Tensor]) -> None:
        """What a change does to other shares: a vector's to the whole's, the whole's to its vectors'."""
        for writer in [*shares]:
            if writer.vector is None and writer != changed and writer.whole == changed.whole:
                shares[writer] = x
            elif writer.vector is not None and writer.whole == changed:
                if isinstance(inner_block(self.model, site), DenseAttention):
                    del shares[writer]
                else:
                    shares |= written_shares(self.model, site, [x, x], None, [writer])

    def _parted(self, x: Tensor, number: int, shares: dict[Writer, Tensor]) -> Tensor:
        mine = [shares.get(writer) if _number(writer) == number else None for writer in self.tracked]
        rest = x
        for writer, share in zip(self.tracked, mine, strict=True):
            if share is not None and writer in self.apart:
                rest = rest - share
        return Parted(x, [*mine, rest], self.ledger)

    def _got(self, site: int, role: str, x: Tensor) -> Tensor:
        """What a reader gets, without the shares that are cut off, and changed."""
        out, edits = x.value if isinstance(x, Parted) else x, self.reading.get((site, role), [])
        if isinstance(x, Parted) and any(isinstance(one, Cut) for one in edits):
            self._require_linear(x)
        for cuts, one in _runs(edits):
            if cuts and isinstance(x, Parted):
                out = out - self._lost(x, cuts)
            if one is not None:
                out = _changed(self.model, out, one.reader, one.change)
        return out

    def _lost(self, x: Parted, cuts: list[Cut]) -> Tensor:
        """What readers at a site lose by all these cuts."""
        assert x.shares is not None
        lost, vectors = torch.zeros_like(x.value), None
        for one in cuts:
            share = x.shares[self.index[one.writer]]
            if share is None:
                continue
            if one.reader.vector is None:
                lost += share
                continue
            own = vectors_of(self.model, share)
            require_vector(one.reader, None if own is None else own.shape[2])
            assert own is not None
            vectors = torch.zeros_like(own) if vectors is None else vectors
            vectors[:, :, one.reader.vector] += own[:, :, one.reader.vector]
        return lost if vectors is None else lost + (vectors if x.value.ndim == 4 else vectors.mT.flatten(2))

    def _require_linear(self, x: Parted) -> None:
        whole = x
        if x.shares is not None:
            apart = [share if w in self.apart else None for w, share in zip(self.tracked, x.shares, strict=False)]
            whole = Parted(x.value, [*apart, x.shares[-1]], self.ledger)
        if whole.missing() > EXACT:
            raise UserError(
                f"A {self.model.config.stream.kind} stream with these settings passes on what was written through "
                f"{', '.join(sorted(self.ledger.nonlinear))}, which is not linear; there are no wires to cut."
            )


def _known(writer: Writer, shares: dict[Writer, Tensor]) -> Tensor:
    """A share, if it can still be told."""
    if writer not in shares:
        raise UserError(
            f"{writer.whole.name} is changed as a whole, and its heads are not told apart in what comes of that; edit "
            f"{writer.name} or {writer.whole.name}, or the first before the second."
        )
    return shares[writer]


def _number(writer: Writer) -> int:
    """Which of the things written at its site a writer writes."""
    return int(writer.part == "position")


def _changed(model: Decoder, x: Tensor, reader: Reader, change: Change) -> Tensor:
    """An input by role, what one reader gets of it changed."""
    if reader.vector is None:
        return change(x).expand_as(x)
    vectors = vectors_of(model, x)
    require_vector(reader, None if vectors is None else vectors.shape[2])
    assert vectors is not None
    vectors = vectors.clone()
    vectors[:, :, reader.vector] = change(vectors[:, :, reader.vector])
    return vectors if x.ndim == 4 else vectors.mT.flatten(2)


def _runs(edits: list[Cut | Got]) -> Iterator[tuple[list[Cut], Got | None]]:
    """Edits in their order: cuts that follow one another together, each with the change that comes after them."""
    cuts: list[Cut] = []
    for one in edits:
        if isinstance(one, Cut):
            cuts.append(one)
        else:
            yield cuts, one
            cuts = []
    yield cuts, None
