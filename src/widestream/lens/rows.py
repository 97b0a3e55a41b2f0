"""Key rows of a matrix stream: what readers find in a row of D_k, and what happens without it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from widestream.errors import UserError
from widestream.model.decoder import Decoder
from widestream.streams.matrix.rmt import MatrixBase


@contextmanager
def silence_rows(model: Decoder, rows: Sequence[int], sites: Sequence[int] | None = None) -> Iterator[None]:
    """Readers find nothing in these rows of the state (of D_k), in all passes inside.

    The rows' entries of read keys are zero for as long as this lasts; norms keep the scale of the whole state, and what
    was written stays in it.

    Args:
        model: with a matrix stream.
        rows: numbers from 0 to D_k - 1.
        sites: whose readers; None: all.

    Raises:
        UserError: the stream has no rows, or not these, or not these sites.
    """
    stream = model.stream
    if not isinstance(stream, MatrixBase) or type(stream).read is not MatrixBase.read:
        raise UserError(f"A {model.config.stream.kind} stream has no rows that all readers read by keys of their own.")
    unknown = [row for row in rows if not 0 <= row < stream.key_dim]
    if unknown:
        raise UserError(f"Row {unknown[0]} is none of the {stream.key_dim} rows of this stream.")
    sites = range(len(stream.readers)) if sites is None else sites
    if any(not 0 <= site < len(stream.readers) for site in sites):
        raise UserError(f"Sites are 0 to {len(stream.readers) - 1}.")
    columns = torch.tensor(list(rows), dtype=torch.long)
    kept: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for site in sites:
            keys = stream.get_parameter(f"read_{site}")
            kept.append((keys, keys[:, columns].clone()))
            keys[:, columns] = 0.0
    try:
        yield
    finally:
        with torch.no_grad():
            for keys, values in kept:
                keys[:, columns] = values
