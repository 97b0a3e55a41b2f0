"""A stateless order: position in an epoch -> window, by a keyed permutation that stores nothing.

A Feistel network permutes the numbers below a power of four; whoever lands at or above `size` walks on along the
cycle until below it ("cycle walking"), which keeps the map a bijection on [0, size). Resuming therefore needs only
the step, and any process can compute any batch.
"""

import hashlib
from functools import lru_cache

import numpy as np

_ROUNDS = 8


@lru_cache(maxsize=64)
def _round_keys(seed: int, epoch: int) -> tuple[np.uint64, ...]:
    digest = hashlib.blake2b(f"widestream order {seed} {epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(np.frombuffer(digest, dtype="<u8"))


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every output bit depends on every input bit. Wraps modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _feistel(x: np.ndarray, half_bits: int, keys: tuple[np.uint64, ...]) -> np.ndarray:
    bits, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = x >> bits, x & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << bits) | right


def permute(positions: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Map positions of an epoch to the items visited there.

    Args:
        positions: integers in [0, size), any shape.
        size: number of items, at least 1 and at most 2^62.
        seed: seed of the run's order.
        epoch: pass over the data; every (seed, epoch) is a permutation of its own.

    Returns:
        int64 array of the same shape. Over all positions it is a bijection on [0, size).
    """
    x = np.asarray(positions).astype(np.uint64)
    assert 1 <= size <= 1 << 62, size
    assert x.size == 0 or int(x.max()) < size, "a position lies outside the epoch"
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch)
    x = _feistel(x, half_bits, keys)
    while (outside := x >= size).any():
        x[outside] = _feistel(x[outside], half_bits, keys)
    return x.astype(np.int64)
