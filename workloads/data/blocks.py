"""An endless stream of made-up examples, drawn in blocks that depend on (seed, position) alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from workloads.base import Batch


class BlockQueue:
    """The input queue of a synthetic workload: block k of the stream is `draw(k)`, whatever the batch size.

    Args:
        draw: block number -> `block` examples.
        block: examples in a block.
        batch: examples of the global batch, a multiple of `world`.
        rank, world: the slice of each global batch that this queue returns.
    """

    def __init__(self, draw: Callable[[int], Batch], *, block: int, batch: int, rank: int = 0, world: int = 1) -> None:
        if batch < 1 or batch % world:
            raise ValueError(f"global_batch_size: must be a positive multiple of world_size {world}, got {batch}")
        self._draw = draw
        self._block = block
        self._batch = batch
        self._share = batch // world
        self._offset = rank * self._share
        self._position = 0
        self._blocks: dict[int, Batch] = {}
        self._held: Batch = {}
        self._first = self._end = 0  # global indices of the examples held

    def __next__(self) -> Batch:
        start = self._position + self._offset
        end = start + self._share
        if start < self._first or end > self._end:
            self._fetch(start, end)
        self._position += self._batch
        low, high = start - self._first, end - self._first
        return {name: value[low:high] for name, value in self._held.items()}

    def _fetch(self, start: int, end: int) -> None:
        """Hold the blocks that cover [start, end), and no others."""
        numbers = range(start // self._block, (end - 1) // self._block + 1)
        self._blocks = {k: self._blocks[k] if k in self._blocks else self._draw(k) for k in numbers}
        parts = list(self._blocks.values())
        self._held = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self._first, self._end = numbers[0] * self._block, (numbers[-1] + 1) * self._block

    def state_dict(self) -> dict[str, int]:
        return {"position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._position = state["position"]
