"""Who reads whom: every writer against every later reader, as matrices.

Two kinds of number:

    coefficient   how much of what is written a reader gets if the norm's scale is left out. In a matrix stream it
                  follows from the keys: r . diag(gain) w for the write key w and the read key r of two vectors, one
                  number for each of the D_v columns, or one for all where the gain is by row or there is none (RMT
                  paper, eqs. 12, 13). In any other stream it is measured: the number by which the vector that was
                  written appears in front of the reader's norm, token by token (1 in the plain transformer; depth
                  weights of a history; what lanes' matrices come to).
    flow          what flows on given text: the part of what the reader gets that is the writer's. Shares sum to 1 over
                  writers and constants; sizes are norms, of the share over that of all the reader gets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from widestream.errors import UserError
from widestream.lens.look import Seen, require_there
from widestream.lens.parted import Parted
from widestream.lens.places import Reader, Writer, vectors_of
from widestream.lens.shares import Exactness, Read, Replay, in_parts
from widestream.streams.matrix.rmt import MatrixBase


@dataclass(frozen=True)
class Wiring:
    """Matrices of readers and writers; nan where a reader reads before a writer writes."""

    writers: list[Writer]
    readers: list[Reader]
    part: Tensor
    """[readers, writers] signed: mean over tokens of (share . read) / (read . read); sums to 1 with `constants`."""
    size: Tensor
    """[readers, writers]: root mean square of shares over that of what is read."""
    constants: Tensor
    """[readers]: the part of biases of norms."""
    exactness: Exactness

    def named(self, values: Tensor) -> dict[str, dict[str, float]]:
        """A matrix by names of readers, then writers."""
        return {
            reader.name: {writer.name: value for writer, value in zip(self.writers, row, strict=True) if value == value}
            for reader, row in zip(self.readers, values.tolist(), strict=True)
        }

    def largest(self, number: int = 20, values: Tensor | None = None) -> list[tuple[Writer, Reader, float]]:
        """The wires of the largest size, or of the largest absolute values of another matrix."""
        values = self.size if values is None else values
        order = values.abs().nan_to_num(-1.0).flatten().argsort(descending=True)[:number]
        wires = [(divmod(int(index), len(self.writers))) for index in order]
        return [
            (self.writers[w], self.readers[r], float(values[r, w])) for r, w in wires if values[r, w] == values[r, w]
        ]


@torch.no_grad()
def flow(
    seen: Seen, writers: Sequence[Writer] | None = None, readers: Sequence[Reader] | None = None, skip: int = 0
) -> Wiring:
    """What flows from every writer to every later reader in a pass.

    Args:
        seen: the pass.
        writers: which; None: all.
        readers: which; None: all.
        skip: tokens at the start of every row that are left out: the first ones are unlike the others.

    Raises:
        UserError: the stream's shares are not exact; nothing is left of the rows; no such writer or reader.
    """
    if not 0 <= skip < seen.tokens.shape[1]:
        raise UserError(f"skip is {skip}, and rows have {seen.tokens.shape[1]} tokens; it must be less.")
    asked = seen.writers() if writers is None else [*writers]
    listening = seen.readers() if readers is None else [*readers]
    require_there(seen, [*asked, *listening])
    part = torch.full((len(listening), len(asked)), torch.nan, dtype=torch.float64)
    size, constants = part.clone(), torch.zeros(len(listening), dtype=torch.float64)
    wholes, exact = list(dict.fromkeys(writer.whole for writer in seen.writers())), Exactness()
    for read in Replay(seen, wholes):
        exact.add(read)
        exact.require(seen)
        for row, (signed, _) in _measured(seen, read, listening, len(wholes), skip).items():
            constants[row] = signed
    column = {writer: number for number, writer in enumerate(asked)}
    for group in in_parts(seen, asked):
        for read in Replay(seen, group):
            for number, writer in enumerate(group):
                if writer.site <= read.site:
                    for row, found in _measured(seen, read, listening, number, skip).items():
                        part[row, column[writer]], size[row, column[writer]] = found
    return Wiring(asked, listening, part, size, constants, exact)


def by_block(seen: Seen, skip: int = 0) -> Wiring:
    """What flows between whole blocks: writers as a whole, and readers of several vectors by the mean over these.

    Of sizes it is the root mean square. Models whose vectors cannot be told apart in the same way have this in common.

    Args:
        seen: the pass.
        skip: see `flow`.

    Raises:
        UserError: see `flow`.
    """
    fine = flow(seen, list(dict.fromkeys(writer.whole for writer in seen.writers())), skip=skip)
    rows: dict[Reader, list[int]] = {}
    for row, reader in enumerate(fine.readers):
        rows.setdefault(reader.whole, []).append(row)

    def means(values: Tensor) -> Tensor:
        return torch.stack([values[of].mean(0) for of in rows.values()])

    part, size, constants = means(fine.part), means(fine.size.square()).sqrt(), means(fine.constants)
    return Wiring(fine.writers, list(rows), part, size, constants, fine.exactness)


def _measured(seen: Seen, read: Read, readers: list[Reader], number: int, skip: int) -> dict[int, tuple[float, float]]:
    """Signed part and size of a share in what each reader at a site gets, by the reader's place in the list."""
    found: dict[int, tuple[float, float]] = {}
    for role, x in read.inputs.items():
        here = [(row, reader) for row, reader in enumerate(readers) if (reader.site, reader.role) == (read.site, role)]
        share = None if x.shares is None else x.shares[number]
        if share is None or not here:
            found |= {row: (0.0, 0.0) for row, _ in here}
            continue
        whole, own = (_vectors(seen, tensor)[:, skip:] for tensor in (x.value, share))
        squares = whole.square().sum(-1)
        signed = ((whole * own).sum(-1) / squares.clamp_min(torch.finfo(squares.dtype).tiny)).mean((0, 1))
        size = (own.square().sum((0, 1, 3)) / squares.sum((0, 1))).sqrt()
        for row, reader in here:
            found[row] = signed[reader.vector or 0].item(), size[reader.vector or 0].item()
    return found


def _vectors(seen: Seen, x: Tensor) -> Tensor:
    """[B, T, N, V]; N is 1 where one vector is read."""
    vectors = vectors_of(seen.model, x)
    return x[:, :, None] if vectors is None else vectors


@dataclass(frozen=True)
class Keys:
    """The wiring of a matrix stream by its keys alone: r . diag(gain) w."""

    writers: list[Writer]
    readers: list[Reader]
    mean: Tensor
    """[readers, writers], over the D_v columns."""
    spread: Tensor
    """[readers, writers]: standard deviation over the columns; 0 where the gain is by row or there is none."""
    columns: Tensor
    """[readers, writers, D_v]: the coefficients themselves."""


@torch.no_grad()
def keys(seen: Seen) -> Keys:
    """Coefficients of every writer at every later reader, from the weights alone.

    What a reader gets of a written vector y is coefficient * y / the norm's scale (less the mean, under LayerNorm).

    Args:
        seen: a pass, of which only the model and who is there are used.

    Raises:
        UserError: the stream is not a matrix stream whose write, norm and read are RMT's.
    """
    stream, kind = seen.model.stream, seen.model.config.stream.kind
    if not isinstance(stream, MatrixBase) or not _writes_as_rmt(stream):
        raise UserError(f"A {kind} stream has no coefficients from keys alone; flow() measures what its readers get.")
    writers, readers = _stored(seen, stream), seen.readers()
    written = torch.stack([_write_key(stream, writer) for writer in writers], dim=1)  # [K, writers]
    before = torch.tensor([[writer.site <= reader.site for writer in writers] for reader in readers])
    by_site = [_rows(seen, site) @ written for site in range(seen.last + 1)]  # [V, Q, writers] each
    columns = torch.cat(by_site, dim=1).permute(1, 2, 0).masked_fill(~before[..., None], torch.nan)
    return Keys(writers, readers, columns.mean(-1), columns.std(-1, correction=0), columns)


def _writes_as_rmt(stream: MatrixBase[Any]) -> bool:
    """Whether all that is written is stored under keys in all of D_k and left there."""
    own = all(getattr(type(stream), name) is getattr(MatrixBase, name) for name in ("write", "write_embedding"))
    return own and stream.is_kernel and len(stream.write_0) == stream.key_dim


def _stored(seen: Seen, stream: MatrixBase[Any]) -> list[Writer]:
    """Data vectors as they are stored: what attention with an output map puts out is cut anew (`attention.data`)."""
    bare = type(stream).spec(seen.model.config).attention == "bare"
    found = []
    for writer in dict.fromkeys(writer.whole for writer in seen.writers()):
        part = "attention.data" if writer.part == "attention" and not bare else writer.part
        number = stream.write_position if part == "position" else getattr(stream, f"write_{writer.site}")
        found += [Writer(writer.site, part, writer.layer, vector) for vector in range(number.shape[1])]
    return found


def _rows(seen: Seen, site: int) -> Tensor:
    """Read keys of a site times the gain [V, Q, K]."""
    there = seen.model.stream.as_kernel(site, None).site
    read, width = there.read_keys.double(), seen.model.config.head_dim
    gain = torch.ones((), dtype=read.dtype) if there.gain is None else there.gain.double()
    return read * gain.expand(width, read.shape[1])[:, None]


def _write_key(stream: MatrixBase[Any], writer: Writer) -> Tensor:
    """[K]."""
    table = stream.write_position if writer.part == "position" else getattr(stream, f"write_{writer.site}")
    return table[:, writer.vector].double()


@dataclass(frozen=True)
class Weights:
    """How strongly a written vector stands in front of readers' norms, in streams of whole vectors."""

    writers: list[Writer]
    readers: list[Reader]
    mean: Tensor
    """[readers, writers], over tokens."""
    spread: Tensor
    """[readers, writers]: standard deviation over tokens; 0 where the weight is the same for all."""
    unlike: Tensor
    """[readers, writers]: the part of what stands there that is no multiple of what was written (gains by channel,
    convolutions, projections); 0 where the weight says it all."""


@torch.no_grad()
def weights(seen: Seen) -> Weights:
    """Depth weights of any stream of whole vectors: the plain one has 1, histories and lanes what they have learned.

    Raises:
        UserError: a matrix stream, where `keys` and `flow` say it; a stream whose shares are not exact.
    """
    if seen.model.stream.cuts_vectors:
        raise UserError("A matrix stream does not hold what was written as a vector; use keys() or flow().")
    writers = list(dict.fromkeys(writer.whole for writer in seen.writers()))
    readers = [reader for reader in seen.readers() if reader.role in ("x", "q")]
    found = torch.full((3, len(readers), len(writers)), torch.nan, dtype=torch.float64)
    exact = Exactness()
    for read in Replay(seen, writers):
        exact.add(read)
        exact.require(seen)
        (row,) = (number for number, reader in enumerate(readers) if reader.site == read.site)
        before = read.before_norm[0] if read.before_norm else next(iter(read.inputs.values()))
        for number, writer in enumerate(writers):
            if writer.site <= read.site:
                found[:, row, number] = _weight(seen, before, writer, number)
    return Weights(writers, readers, *found)


def _weight(seen: Seen, before: Parted, writer: Writer, number: int) -> Tensor:
    """Mean and spread of the weight, and what it leaves unsaid."""
    share = None if before.shares is None else before.shares[number]
    if share is None:
        return torch.zeros(3, dtype=torch.float64)
    written = seen.exchanges[writer.site].written[int(writer.part == "position")].expand(share.shape[0], -1, -1)
    if written.shape != share.shape:
        return torch.full((3,), torch.nan, dtype=torch.float64)
    written, share = written.double(), share.double()
    weight = (share * written).sum(-1) / written.square().sum(-1).clamp_min(1e-300)
    left = (share - weight[..., None] * written).square().sum() / share.square().sum().clamp_min(1e-300)
    return torch.stack((weight.mean(), weight.std(correction=0), left.sqrt()))
