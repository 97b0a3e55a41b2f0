"""Documents to tokens, in threads, in the order of the documents.

The libraries that encode let other threads run meanwhile, so processes would gain nothing.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from widestream.data.round_trip import NOTHING, Loss, is_sampled
from widestream.data.sources import Document
from widestream.data.tokenizer_base import Tokenizer
from widestream.errors import UserError

_BATCH_BYTES = 1 << 20
_BATCH_DOCUMENTS = 4096
_HELD_BYTES = 32 << 20
"""Text that is held at a time, at most: long records wait for one another, however many threads there are."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of consecutive documents."""

    documents: list[Document]
    """The documents."""
    tokens: np.ndarray
    """All their tokens in a row, each document behind its boundary token."""
    lengths: np.ndarray
    """Tokens of each document, boundary included."""
    losses: Sequence[Loss]
    """What the tokens of each document do not tell."""


def _batches(documents: Iterator[Document]) -> Iterator[list[Document] | UserError]:
    """Documents in groups; at last, if reading ends with an error, that error."""
    batch: list[Document] = []
    size, error = 0, None
    try:
        for document in documents:
            batch.append(document)
            size += document.source_bytes
            if size >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
                yield batch
                batch, size = [], 0
    except UserError as reason:
        error = reason
    if batch:
        yield batch
    if error is not None:
        yield error


def _encode(tokenizer: Tokenizer, dtype: str, batch: list[Document], first: int) -> Encoded:
    texts = [document.text for document in batch]
    rows = tokenizer.encode_batch(texts)
    sampled = [is_sampled(number, document.digest) for number, document in enumerate(batch, start=first)]
    losses = tokenizer.losses(texts, rows, sampled) or [NOTHING] * len(texts)
    lengths = np.array([row.size + 1 for row in rows], dtype=np.int64)
    tokens = np.empty(int(lengths.sum()), dtype=np.uint32)  # a negative id becomes one beyond any vocabulary
    ends = np.cumsum(lengths)
    for row, end in zip(rows, ends.tolist(), strict=True):
        tokens[end - row.size : end] = row
    tokens[ends - lengths] = tokenizer.boundary_id
    if (largest := int(tokens.max())) >= tokenizer.vocab_size:
        raise UserError(
            f"The tokenizer made token {largest}, but its vocabulary has {tokenizer.vocab_size} ids: "
            "its tokenizer.json is inconsistent; use another."
        )
    return Encoded(batch, tokens.astype(np.dtype(dtype).newbyteorder("<")), lengths, losses)


def encode_documents(
    documents: Iterator[Document], tokenizer: Tokenizer, dtype: str, workers: int, first: int = 0
) -> Generator[Encoded, None, None]:
    """Encode a stream of documents; the result does not depend on the number of workers.

    Where the stream ends with an error, that comes after all that was read before it.

    Args:
        documents: the stream; only a few batches of about 1 MiB of text are held at a time, of longer texts as many as
            are `_HELD_BYTES` together. It is read in this thread.
        tokenizer: makes the ids.
        dtype: of the tokens, uint16 or uint32.
        workers: batches that are encoded at a time.
        first: number of the first document in its corpus.

    Raises:
        UserError: a token lies outside the vocabulary, or the stream says so.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
    most = max(_HELD_BYTES, 2 * (workers + 2) * _BATCH_BYTES)
    waiting: deque[tuple[int, Future[Encoded]]] = deque()
    held, error = 0, None
    try:
        for batch in _batches(documents):
            if isinstance(batch, UserError):
                error = batch
                break
            size = sum(document.source_bytes for document in batch)
            # One batch more than there are threads is ready when a thread is done.
            while waiting and (len(waiting) > workers or held + size > most):
                held -= waiting[0][0]
                yield waiting.popleft()[1].result()
            waiting.append((size, pool.submit(_encode, tokenizer, dtype, batch, first)))
            held, first = held + size, first + len(batch)
        while waiting:
            yield waiting.popleft()[1].result()
        if error is not None:
            raise error
    finally:
        pool.shutdown(cancel_futures=True)
