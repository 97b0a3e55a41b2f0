"""Who wrote what a reader gets: the stream run once more on what was written, with every writer's share kept apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from widestream.blocks.attention import DenseAttention
from widestream.blocks.norm import Norm, NormBehind
from widestream.errors import UserError
from widestream.lens.look import Seen, require_there
from widestream.lens.parted import Ledger, Parted, Share
from widestream.lens.places import BIAS, Writer, data_vectors, inner_block, require_vector
from widestream.lens.taps import Heads
from widestream.model.decoder import Decoder
from widestream.streams.base import Stream

EXACT = 1e-4
"""Shares that miss more of what is read than this are no attribution."""
ROOM = 2**27
"""Bytes that the shares of a state may take at once; further writers are left to another pass."""


@dataclass(frozen=True)
class Read:
    """What a reader gets, share by share."""

    site: int
    inputs: dict[str, Parted]
    """By role. Shares are in the order of the writers that were asked for, the last one is all else."""
    before_norm: list[Parted]
    """What the norms in front of the reader took in, likewise."""
    ledger: Ledger


def written_shares(
    model: Decoder, site: int, written: Sequence[Tensor], heads: Heads | None, wanted: Sequence[Writer]
) -> dict[Writer, Tensor]:
    """The shares of writers in what is written at a site, each of its shape.

    Args:
        model: whose.
        site: where.
        written: tokens' and perhaps positions' vectors at site 0, else a block's output.
        heads: what attention has computed, if it is that.
        wanted: writers of this site.
    """
    found: dict[Writer, Tensor] = {}
    by_head = [one for one in wanted if one.part.endswith(BIAS) or (one.part == "attention" and one.vector is not None)]
    if heads is not None and isinstance(inner_block(model, site), DenseAttention) and by_head:
        found = _through_w_o(model, site, heads, by_head)
    for writer in wanted:
        if writer not in found:
            x = written[1 if writer.part == "position" else 0]
            found[writer] = x if writer.vector is None else _one_vector(model, x, writer)
    return found


def _through_w_o(model: Decoder, site: int, heads: Heads, wanted: list[Writer]) -> dict[Writer, Tensor]:
    """Heads of attention that has an output map, each behind it, and behind a norm that stands there."""
    by_head = [writer for writer in wanted if writer.vector is not None]
    shares = [_one_vector(model, heads.z, writer) for writer in by_head]
    inner, block = inner_block(model, site), model.blocks[site - 1]
    assert isinstance(inner, DenseAttention)
    out: Any = inner.put_out(Parted(heads.z, [*shares, None], Ledger()))
    if isinstance(block, NormBehind):
        out = block.norm(out)
    found = dict(zip(by_head, out.shares, strict=False))
    bias = out.shares[-1]  # None where it is zero, as in a model that was not trained
    bias = torch.zeros_like(out.value) if bias is None else bias.expand_as(out.value)
    return found | {writer: bias for writer in wanted if writer.vector is None}


def _one_vector(model: Decoder, x: Tensor, writer: Writer) -> Tensor:
    """A writer's head or data vector of [B, T, H, K] or [B, T, V * R], zeros in the place of all others.

    Raises:
        UserError: it is not there.
    """
    alone, vector = torch.zeros_like(x), writer.vector
    number = x.shape[2] if x.ndim == 4 else data_vectors(model, x.shape[-1])
    require_vector(writer, number)
    if x.ndim == 4:
        alone[:, :, vector] = x[:, :, vector]
    else:
        alone[..., vector::number] = x[..., vector::number]
    return alone


class Replay:
    """The exchanges of a pass once more, with shares.

    Args:
        seen: the pass.
        writers: whose shares are kept apart; all else is one share more.
        sites: where it is read; None: everywhere.

    Raises:
        UserError: the pass has no such writer.
    """

    def __init__(self, seen: Seen, writers: Sequence[Writer], sites: Sequence[int] | None = None):
        require_there(seen, writers)
        self.seen, self.writers, self.ledger = seen, list(writers), Ledger()
        self.sites = range(seen.last + 1) if sites is None else sites
        self._index = {writer: number for number, writer in enumerate(self.writers)}

    @torch.no_grad()
    def __iter__(self) -> Iterator[Read]:
        stream, seen = self.seen.model.stream, self.seen
        before: list[Parted] = []
        hooks = [
            module.register_forward_pre_hook(lambda _, arguments: before.append(arguments[0]))
            for module in stream.modules()
            if isinstance(module, Norm)
        ]
        try:
            state = stream.empty(seen.context)
            for site in range(seen.last + 1):
                before.clear()
                written = self._written(site)
                if site not in self.sites and type(stream).exchange is Stream.exchange:
                    state = stream.write_embedding(state, *written) if site == 0 else stream.write(site, state, written)
                    continue
                state, inputs = stream.exchange(site, state, written)
                if site not in self.sites:
                    continue
                normed = [x for x in before if isinstance(x, Parted)]
                yield Read(site, {role: self._parted(x) for role, x in inputs.items()}, normed, self.ledger)
        finally:
            for hook in hooks:
                hook.remove()

    def _parted(self, x: Tensor) -> Parted:
        """What does not depend on a writer that was asked for is all else."""
        return x if isinstance(x, Parted) else Parted(x, [*(None for _ in self.writers), x], self.ledger)

    def _written(self, site: int) -> Any:
        exchanged = self.seen.exchanges[site]
        wanted = [writer for writer in self.writers if writer.site == site]
        shares = written_shares(self.seen.model, site, exchanged.written, self.seen.heads.get(site), wanted)
        parts = [self._with_shares(x, number, shares) for number, x in enumerate(exchanged.written)]
        if site:
            return parts[0]
        return parts[0], parts[1] if len(parts) > 1 else None

    def _with_shares(self, x: Tensor, number: int, shares: dict[Writer, Tensor]) -> Parted:
        own: list[Share] = [None for _ in self.writers]
        rest = x
        for writer, share in shares.items():
            if number == (writer.part == "position"):
                own[self._index[writer]] = share
                rest = rest - share
        # A difference of a sum and its parts is rounding where nothing is left out.
        left = rest if rest.norm() > 1e-5 * x.norm() else None
        return Parted(x, [*own, left], self.ledger)


def in_parts(seen: Seen, writers: Sequence[Writer], room: int = ROOM) -> Iterator[list[Writer]]:
    """Writers in groups whose shares of a state fit into so many bytes."""
    spec = type(seen.model.stream).spec(seen.model.config)
    state = torch.Size(spec.state_shape).numel() + spec.history_size
    size = max(1, room // (seen.tokens.numel() * state * seen.exchanges[0].written[0].itemsize))
    for start in range(0, len(writers), size):
        yield list(writers[start : start + size])


@dataclass
class Exactness:
    """How exact the shares of a pass are."""

    gated: bool = False
    """Whether gates that depend on the stream had a part: the shares are exact given these."""
    missing: float = 0.0
    """The largest part of what a reader gets that no share accounts for."""
    nonlinear: set[str] = field(default_factory=set)
    """Operations that are not linear."""

    def add(self, read: Read) -> None:
        """Take in what a reader gets."""
        self.gated = self.gated or bool(read.ledger.gated)
        self.nonlinear |= read.ledger.nonlinear
        self.missing = max(self.missing, *(x.missing() for x in read.inputs.values()))

    def require(self, seen: Seen) -> None:
        """Refuse a stream that does not pass on what is written linearly.

        Raises:
            UserError: says so.
        """
        if self.missing > EXACT:
            raise UserError(
                f"In a {seen.model.config.stream.kind} stream with these settings what was written goes through "
                f"{', '.join(sorted(self.nonlinear)) or 'an operation'} that is not linear, so that no reader's input "
                f"is a sum over writers ({self.missing:.1%} of it would be missing); there is no exact attribution."
            )

    def __str__(self) -> str:
        return "exact given the gates" if self.gated else "exact"


def exactness(seen: Seen) -> Exactness:
    """How exact attribution in this pass is: every writer's share is followed to every reader, site by site.

    Raises:
        UserError: it is not.
    """
    found = Exactness()
    for read in Replay(seen, sorted({writer.whole for writer in seen.writers()})):
        found.add(read)
    found.require(seen)
    return found
