"""Tokens as one long stream, and the seeded queue of training windows cut from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads.base import DataError
from workloads.data.order import in_order

BLOCK_WINDOWS = 4096  # positions whose order is worked out at once, at most one pass: for speed, no effect on the order

TokenArray = NDArray[np.unsignedinteger[Any]]


def fingerprint_of(*parts: bytes) -> str:
    """Return one SHA-256 of several byte strings, 64 hex digits; where one ends and the next begins counts too."""
    digests = [hashlib.sha256(part).digest() for part in parts]
    return hashlib.sha256(b"".join(digests)).hexdigest()


@dataclass(frozen=True, eq=False)
class TokenStream:
    """Arrays of tokens read as if they were one: in memory, or memory-mapped shards of a folder.

    Attributes:
        arrays: one-dimensional, of one unsigned type.
    """

    arrays: Sequence[TokenArray]

    @cached_property
    def ends(self) -> list[int]:
        """Where each array ends in the stream."""
        return list(accumulate(len(array) for array in self.arrays))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Return the tokens [start, start + length) of each start, shape [len(starts), length]."""
        if len(self.arrays) == 1:
            rows: NDArray[np.int64] = self.arrays[0][starts[:, None] + np.arange(length)].astype(np.int64)
            return rows
        rows = np.empty((len(starts), length), dtype=np.int64)
        first = np.searchsorted(self.ends, starts, side="right")
        for row, start, shard in zip(rows, starts.tolist(), first.tolist(), strict=True):
            self._fill(row, start, shard)
        return rows

    def _fill(self, row: NDArray[np.int64], start: int, shard: int) -> None:
        """Copy tokens from `start`, which lies in array `shard`, into the row, over as many arrays as it takes."""
        done = 0
        while done < len(row):
            array = self.arrays[shard]
            offset = start + done - (self.ends[shard] - len(array))
            piece = array[offset : offset + len(row) - done]
            row[done : done + len(piece)] = piece
            done += len(piece)
            shard += 1


@dataclass(frozen=True, eq=False)
class Corpus:
    """Real text as tokens, split into training and held-out documents.

    Attributes:
        train, held_out: the two streams; no document is in both.
        vocabulary: how many different tokens there can be.
        unit: what one token is, for display: "byte" or "token".
        fingerprint: hash of the tokens, the split and the vocabulary.
    """

    train: TokenStream
    held_out: TokenStream
    vocabulary: int
    unit: str
    fingerprint: str

    def training_windows(self, context: int) -> int:
        """Return how many windows one pass over the training stream has."""
        windows = (len(self.train) - 1) // context
        if windows < 1:
            raise DataError(
                f"context: must be below the {len(self.train)} training tokens of the corpus, got {context}"
            )
        return windows

    def validation_windows(self, context: int, tokens: int) -> NDArray[np.int64]:
        """Return `tokens // context` windows spread evenly over the held-out stream, shape [windows, context + 1].

        The windows do not overlap but for the token that is the last target of one and the first input of the next.
        """
        room = (len(self.held_out) - 1) // context
        count = tokens // context
        if not 1 <= count <= room:
            raise DataError(
                f"validation_tokens: must be from {context} (one context) to {max(0, room * context)} "
                f"(all held-out text), got {tokens}"
            )
        starts = np.arange(count, dtype=np.int64) * room // count * context
        return self.held_out.windows(starts, context + 1)


class TokenQueue:
    """An endless, seeded stream of batches of training windows: {"inputs", "targets"}, int64 [examples, context].

    Window i of the stream is tokens [i * context, (i + 1) * context] of the corpus: inputs are all but the last,
    targets all but the first, so that each token but the first is a target once in each pass. Which window comes at a
    position depends on the seed and the position alone (`order.in_order`).
    """

    def __init__(
        self, corpus: Corpus, context: int, batch: int, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch % world_size:
            raise ValueError(f"global_batch_size: must be a multiple of the {world_size} ranks, got {batch}")
        self._corpus, self._context, self._seed = corpus, context, seed
        self._windows = corpus.training_windows(context)
        self._batch, self._share, self._rank = batch, batch // world_size, rank
        self._position = 0
        self._block_windows = min(BLOCK_WINDOWS, self._windows)
        self._block: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._block_number = -1

    def _order_at(self, position: int, count: int) -> NDArray[np.int64]:
        """Return the windows at [position, position + count), from blocks worked out once each."""
        parts = []
        while count > 0:
            number, offset = divmod(position, self._block_windows)
            if number != self._block_number:
                self._block_number, first = number, number * self._block_windows
                self._block = in_order(first, self._block_windows, self._windows, seed=self._seed)
            parts.append(self._block[offset : offset + count])
            position, count = position + len(parts[-1]), count - len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def __iter__(self) -> TokenQueue:
        return self

    def __next__(self) -> dict[str, Tensor]:
        windows = self._order_at(self._position + self._rank * self._share, self._share)
        self._position += self._batch
        tokens = torch.from_numpy(self._corpus.train.windows(windows * self._context, self._context + 1))
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}

    def state_dict(self) -> dict[str, int]:
        """Return {"position": global examples drawn so far}."""
        return {"position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a position, which may have been reached at another batch size."""
        self._position = int(state["position"])
