"""The wirings of two models on one prompt, side by side, and where they differ."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from widestream.errors import UserError, shown
from widestream.experiments.lens.prompt import Inspection, see_prompt
from widestream.lens import Reader, Seen, Wiring, Writer, flow
from widestream.lens.wiring import by_block


@dataclass(frozen=True)
class Beside:
    """A model's wiring, and another's."""

    run: Path
    """The other run."""
    step: int
    """Of its checkpoint."""
    stream: str
    """Its kind of stream."""
    whole: bool
    """Whether what blocks write and read was taken as a whole, because the vectors of the two are not alike."""
    tokens: int
    """Of the prompt, as the other model reads it."""
    own: Wiring
    """The wiring that is looked at."""
    other: Wiring
    """The other's; writers and readers have the same names in the same order."""

    def difference(self, view: str) -> Tensor:
        """[readers, writers]: own minus other; nan where a reader reads before a writer writes."""
        return getattr(self.own, view) - getattr(self.other, view)

    def largest(self, number: int = 20) -> list[tuple[str, str, float, float]]:
        """Writer, reader and both sizes of the wires whose sizes differ most."""
        wires = self.own.largest(number, self.difference("size"))
        columns = {one: column for column, one in enumerate(self.own.writers)}
        rows = {one: row for row, one in enumerate(self.own.readers)}

        def size(wiring: Wiring, w: Writer, r: Reader) -> float:
            return float(wiring.size[rows[r], columns[w]])

        return [(w.name, r.name, size(self.own, w, r), size(self.other, w, r)) for w, r, _ in wires]


def set_beside(found: Inspection, other: Path, *, step: int | None = None, device: str | None = None) -> Beside:
    """Set another run's wiring beside the one that was found.

    Vector by vector where both have the same; else block by block, what a reader of several vectors gets being the mean
    over them (of sizes the root mean square).

    Args:
        found: a model on a prompt.
        other: folder of the other run, which reads the same text.
        step: of its checkpoint; None: the newest.
        device: where to compute; None: where the run was trained.

    Raises:
        UserError: the other run cannot be looked at, or its blocks are not the same; one of them has no shares.
    """
    if found.wiring is None:
        raise UserError(f"{found.run} has no wiring to compare: {found.refusal}")
    seen, theirs = found.seen, see_prompt(other, found.prompt, step, device)
    _require_same_blocks(found.run, seen, other, theirs.seen)
    skip = min(1, len(found.tokens) - 1)
    alike = all(_names(seen, what) == _names(theirs.seen, what) for what in ("writers", "readers"))
    if alike:
        own, their = found.wiring, flow(theirs.seen, skip=skip)
    else:
        own, their = (by_block(one, skip) for one in (seen, theirs.seen))
        own, their = _with_the_same_writers(own, their)
    kind = theirs.seen.model.config.stream.kind
    return Beside(other, theirs.step, kind, not alike, theirs.seen.tokens.shape[1], own, their)


def _names(seen: Seen, what: str) -> list[str]:
    return [one.name for one in getattr(seen, what)()]


def _require_same_blocks(run: Path, seen: Seen, other: Path, theirs: Seen) -> None:
    blocks = [list(dict.fromkeys(reader.whole.name for reader in one.readers())) for one in (seen, theirs)]
    if blocks[0] == blocks[1]:
        return
    told = [f"{len(one)} readers ({shown(', '.join(one), 60)})" for one in blocks]
    raise UserError(
        f"{run} has {told[0]} and {other} {told[1]}: wirings are set side by side only where both models have the same "
        "blocks in the same order; give another run to --against."
    )


def _with_the_same_writers(own: Wiring, other: Wiring) -> tuple[Wiring, Wiring]:
    """Those that one of them alone has (position vectors) are nothing in the other."""
    writers = sorted({*own.writers, *other.writers})

    def spread(wiring: Wiring) -> Wiring:
        columns = torch.tensor([writers.index(writer) for writer in wiring.writers])
        part, size = (values.new_zeros(len(values), len(writers)) for values in (wiring.part, wiring.size))
        part[:, columns], size[:, columns] = wiring.part, wiring.size
        return replace(wiring, writers=writers, part=part, size=size)

    return spread(own), spread(other)
