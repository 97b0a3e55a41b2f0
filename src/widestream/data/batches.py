"""Windows and batches. Both are functions of numbers: nothing here has an iterator to save or restore.

Window i covers tokens [i*T, i*T + T]: the first T are inputs, the last T targets, so that neighbouring windows share
one token and every token of a split but the first is a target exactly once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from widestream.data.order import permute
from widestream.data.store import TokenStore
from widestream.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """B windows of T tokens."""

    tokens: torch.Tensor
    """int64 [B, T], inputs."""
    targets: torch.Tensor
    """int64 [B, T], the token after each input."""
    segments: torch.Tensor
    """int32 [B, T], the document of each input, counted from 0 in every window."""
    weights: torch.Tensor | None = None
    """float32 [B, T], 0 where a target does not count; None: all count."""

    @property
    def has_boundaries(self) -> bool:
        """Whether any window holds more than one document. Asked of a batch on a GPU, the host would wait for it."""
        return bool((self.segments != self.segments[:, :1]).any())

    def ready_for(self, device: torch.device) -> "Batch":
        """The batch in memory from which `to` copies it to `device` while host and device go on; on a CPU itself."""
        if device.type != "cuda":
            return self
        return self._each(torch.Tensor.pin_memory)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        tokens, targets, segments = map(move, (self.tokens, self.targets, self.segments))
        weights = None if self.weights is None else move(self.weights)
        return Batch(tokens=tokens, targets=targets, segments=segments, weights=weights)


class TrainBatches:
    """Training batches in a seeded order, addressed by step.

    Every epoch visits each window once, in a permutation of its own; batches run on across epochs. The tokens after
    the last full window (fewer than T) are not visited.

    Attributes:
        windows_per_epoch: number of windows of T + 1 tokens.
    """

    def __init__(self, store: TokenStore, sequence_length: int, batch_size: int, seed: int):
        """Address the batches of a store.

        Args:
            store: the training split.
            sequence_length: T.
            batch_size: windows in a global batch, over all ranks.
            seed: seed of the order.

        Raises:
            UserError: the split is shorter than one window.
        """
        assert min(sequence_length, batch_size) >= 1, (sequence_length, batch_size)
        if store.tokens < sequence_length + 1:
            raise UserError(
                f"The {store.split} split of {store.folder} has {store.tokens} tokens, one window needs "
                f"{sequence_length + 1}: prepare more text, or set data.sequence_length to {store.tokens - 1} or less."
            )
        self.windows_per_epoch = (store.tokens - 1) // sequence_length
        self._store = store
        self._length = sequence_length
        self._batch_size = batch_size
        self._seed = seed

    def window_indices(self, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """Which windows a rank sees at a step, int64 [batch_size / world]."""
        if self._batch_size % world:
            raise UserError(
                f"A batch of {self._batch_size} windows cannot be shared by {world} processes: make it a multiple."
            )
        assert 0 <= rank < world, (rank, world)
        assert step >= 0, step
        share = self._batch_size // world
        first = step * self._batch_size + rank * share
        epochs, positions = np.divmod(np.arange(first, first + share), self.windows_per_epoch)
        indices = np.empty(share, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = permute(positions[here], self.windows_per_epoch, self._seed, int(epoch))
        return indices

    def at(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of a step, counted from 0.

        Args:
            step: optimizer step.
            rank: which process asks.
            world: number of processes. Ranks 0, 1, ... hold the rows of the same global batch, in this order.

        Raises:
            UserError: the batch cannot be divided evenly.
        """
        rows = [
            self._store.window(int(index) * self._length, self._length + 1)
            for index in self.window_indices(step, rank, world)
        ]
        tokens = torch.from_numpy(np.stack([tokens for tokens, _ in rows]))
        segments = torch.from_numpy(np.stack([segments for _, segments in rows]))
        return Batch(
            tokens=tokens[:, :-1].contiguous(),
            targets=tokens[:, 1:].contiguous(),
            segments=segments[:, :-1].contiguous(),
        )


def divide_windows(store: TokenStore, sequence_length: int, selection: float) -> tuple[list[int], list[int]]:
    """The windows of a split that results are reported on, and those that settings are chosen on, evenly spread.

    Args:
        store: the split.
        sequence_length: T.
        selection: share of the second, at least 0 and below 1.

    Raises:
        UserError: the split is so short that one of the two is empty.
    """
    count = _count_windows(store, sequence_length)
    steps = [int(index * selection) for index in range(count + 1)]
    chosen = [index for index in range(count) if steps[index + 1] > steps[index]]
    reported = [index for index in range(count) if steps[index + 1] == steps[index]]
    if selection and not (reported and chosen):
        raise UserError(
            f"The {store.split} split of {store.folder} has {count} window{'s' if count > 1 else ''} of "
            f"{sequence_length} tokens, of which no {selection:g} can be kept for choosing; prepare more text, or set "
            "train.selection to 0."
        )
    return reported, chosen


def eval_batches(
    store: TokenStore,
    sequence_length: int,
    batch_size: int,
    limit: int | None = None,
    among: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Go through a split in order: every token but its first is a target exactly once.

    All batches have the same shape; what is missing at the end is filled with boundary tokens of weight 0, in a
    segment of their own.

    Args:
        store: the split.
        sequence_length: T.
        batch_size: windows in a batch.
        limit: only so many windows, spread evenly over the split.
        among: only of these windows; default: of all.

    Raises:
        UserError: the split has no target (fewer than two tokens).
    """
    assert min(sequence_length, batch_size) >= 1, (sequence_length, batch_size)
    among = range(_count_windows(store, sequence_length)) if among is None else among
    shown = len(among) if limit is None else min(limit, len(among))
    windows = [among[index * len(among) // shown] for index in range(shown)]
    starts = range(0, shown, batch_size)
    return (_eval_batch(store, sequence_length, windows[i : i + batch_size], batch_size) for i in starts)


def _count_windows(store: TokenStore, sequence_length: int) -> int:
    if store.tokens < 2:
        raise UserError(f"The {store.split} split of {store.folder} has {store.tokens} token(s): prepare more text.")
    return -(-(store.tokens - 1) // sequence_length)


def _eval_batch(store: TokenStore, length: int, windows: list[int], rows: int) -> Batch:
    tokens = np.full((rows, length + 1), store.boundary_id, dtype=np.int64)
    segments = np.zeros((rows, length), dtype=np.int32)
    weights = np.zeros((rows, length), dtype=np.float32)
    for row, index in enumerate(windows):
        targets = min(length, store.tokens - 1 - index * length)
        tokens[row, : targets + 1], found = store.window(index * length, targets + 1)
        segments[row, :targets] = found[:targets]
        segments[row, targets:] = found[-1] + 1
        weights[row, :targets] = 1
    return Batch(
        tokens=torch.from_numpy(tokens[:, :-1].copy()),
        targets=torch.from_numpy(tokens[:, 1:].copy()),
        segments=torch.from_numpy(segments),
        weights=torch.from_numpy(weights),
    )
