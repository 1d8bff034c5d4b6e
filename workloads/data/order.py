"""A seeded order over any number of things, in constant memory.

A keyed Feistel network permutes the numbers below a power of two, and cycle walking restricts it to those below n:
an encrypted value that is n or more is encrypted again until it falls inside. Source: Black and Rogaway, "Ciphers
with arbitrary finite domains", CT-RSA 2002, sections 4 (cycle walking) and 5 (Feistel). The round function is the
finaliser of SplitMix64 (Steele et al. 2014), which mixes well and makes no claim to secrecy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workloads.base import stable_seed

ROUNDS = 6  # four suffice for a pseudo-random permutation of a balanced network (Luby and Rackoff 1988)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)  # SplitMix64
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mixed(value: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    value = (value ^ key) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))


def _encrypted(value: NDArray[np.uint64], bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    low_bits = np.uint64(bits // 2)
    low_mask, high_mask = np.uint64((1 << (bits // 2)) - 1), np.uint64((1 << (bits - bits // 2)) - 1)
    low, high = value & low_mask, value >> low_bits
    for turn, key in enumerate(keys):
        if turn % 2:
            low = low ^ (_mixed(high, key) & low_mask)
        else:
            high = high ^ (_mixed(low, key) & high_mask)
    return (high << low_bits) | low


def permuted(index: NDArray[np.int64], size: int, *words: object) -> NDArray[np.int64]:
    """Return where each index goes under the permutation of range(size) that the words name.

    Args:
        index: values in [0, size), any shape.
        size: how many things there are, at least 1.
        words: name the permutation, such as a seed and an epoch.
    """
    bits = max(2, (size - 1).bit_length())
    keys = np.array([stable_seed("order", turn, *words) for turn in range(ROUNDS)], dtype=np.uint64)
    value = _encrypted(index.astype(np.uint64), bits, keys)
    outside = value >= size
    while outside.any():
        value[outside] = _encrypted(value[outside], bits, keys)
        outside = value >= size
    return value.astype(np.int64)


def in_order(start: int, count: int, size: int, *, seed: int) -> NDArray[np.int64]:
    """Return which of `size` things come at positions [start, start + count) of the endless order of a seed.

    Each thing comes once before any comes again: every pass is a permutation of its own. Shape [count].
    """
    position = np.arange(start, start + count, dtype=np.int64)
    epoch, index = np.divmod(position, size)
    value = np.empty(count, dtype=np.int64)
    for each in range(int(epoch[0]), int(epoch[-1]) + 1) if count else ():
        here = epoch == each
        value[here] = permuted(index[here], size, seed, each)
    return value
