"""Documents to tokens, in threads, in the order of the documents.

The libraries that encode let other threads run meanwhile, so processes would gain nothing.
"""

import functools
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from widestream.data.sources import Document
from widestream.data.tokenizer_base import Tokenizer
from widestream.errors import UserError

_BATCH_BYTES = 1 << 20
_BATCH_DOCUMENTS = 4096


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of consecutive documents."""

    documents: list[Document]
    """The documents."""
    tokens: np.ndarray
    """All their tokens in a row, each document behind its boundary token."""
    lengths: np.ndarray
    """Tokens of each document, boundary included."""


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += document.source_bytes
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, dtype: str, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    rows = tokenizer.encode_batch(texts)
    lengths = np.array([row.size + 1 for row in rows], dtype=np.int64)
    tokens = np.empty(int(lengths.sum()), dtype=np.int64)
    ends = np.cumsum(lengths)
    for row, end in zip(rows, ends.tolist(), strict=True):
        tokens[end - row.size : end] = row
    tokens[ends - lengths] = tokenizer.boundary_id
    if int(tokens.max()) >= tokenizer.vocab_size or int(tokens.min()) < 0:
        raise UserError(
            f"The tokenizer made token {tokens.max()}, but its vocabulary has {tokenizer.vocab_size} ids: "
            "its tokenizer.json is inconsistent; use another."
        )
    return tokens.astype(np.dtype(dtype).newbyteorder("<")), lengths


def encode_documents(
    documents: Iterator[Document], tokenizer: Tokenizer, dtype: str, workers: int
) -> Generator[Encoded, None, None]:
    """Encode a stream of documents; the result does not depend on the number of workers.

    Args:
        documents: the stream; only a few batches of about 1 MiB of text are held at a time. It is read in this thread.
        tokenizer: makes the ids.
        dtype: of the tokens, uint16 or uint32.
        workers: batches that are encoded at a time.

    Raises:
        UserError: a token lies outside the vocabulary.
    """
    encode = functools.partial(_encode, tokenizer, dtype)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="encode")
    waiting: deque[tuple[list[Document], Future[tuple[np.ndarray, np.ndarray]]]] = deque()
    try:
        for batch in _batches(documents):
            waiting.append((batch, pool.submit(encode, [document.text for document in batch])))
            if len(waiting) > workers + 1:  # one more is ready when a thread is done
                done, future = waiting.popleft()
                yield Encoded(done, *future.result())
        while waiting:
            done, future = waiting.popleft()
            yield Encoded(done, *future.result())
    finally:
        pool.shutdown(cancel_futures=True)
