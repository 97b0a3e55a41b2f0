"""How often tokens stand in the training data of some runs, counted in their own shards."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from widestream.data.store import TokenStore
from widestream.errors import UserError
from widestream.runs.read import Run

PIECE = 1 << 22
"""Tokens that are counted at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frequencies:
    """Counts of every token."""

    folder: str
    """The prepared data."""
    counts: np.ndarray
    """int64 [vocabulary]."""

    def of(self, ids: Sequence[int]) -> float | None:
        """How common some tokens are: occurrences in a million of their geometric mean, one added to each; None without
        any.
        """
        if not ids:
            return None
        logs = np.log((self.counts[np.asarray(ids)] + 1) / self.counts.sum() * 1e6)
        return math.exp(float(logs.mean()))


def training_frequencies(models: Sequence[tuple[str, Sequence[Run]]]) -> tuple[Frequencies | None, list[str]]:
    """Count the tokens of the training data that the first model has seen.

    Returns:
        The counts, None where that data is not there any more, and notes about it.
    """
    runs, notes = [run for _, members in models for run in members], []
    first = runs[0]
    folder = Path(str(first.config.get("data", {}).get("path", "")))
    others = {run.data["fingerprint"] for run in runs} - {first.data["fingerprint"]}
    if others:
        notes.append(f"The models saw different training data; frequencies are those in {folder}, {models[0][0]}'s.")
    try:
        store = TokenStore.open(folder, "train")
    except UserError as error:
        return None, [f"Frequencies of tokens are not told, for the training data is not there: {error}"]
    if store.fingerprint != first.data["fingerprint"]:
        return None, [f"Frequencies of tokens are not told, for {folder} was prepared anew since the training."]
    return Frequencies(folder=str(folder), counts=count_tokens(store)), notes


def count_tokens(store: TokenStore) -> np.ndarray:
    """Occurrences of every token in a split, int64 [vocabulary]."""
    counts = np.zeros(store.vocab_size, dtype=np.int64)
    for start in range(0, store.tokens, PIECE):
        tokens, _ = store.window(start, min(PIECE, store.tokens - start))
        counts += np.bincount(tokens, minlength=store.vocab_size)
    return counts
