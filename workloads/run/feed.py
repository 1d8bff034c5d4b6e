"""An input queue for an accelerator: batches cross over several at a time, so that no step waits for the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from workloads.base import Batch, InputQueue

AHEAD = 16  # batches that cross at once


class Feed:
    """An `InputQueue` over another one; its position is that of the batches handed out, not of those read ahead."""

    def __init__(self, queue: InputQueue, device: torch.device) -> None:
        self._queue = queue
        self._device = device
        self._ready: deque[tuple[Batch, dict[str, int]]] = deque()
        self._position = queue.state_dict()

    def __next__(self) -> Batch:
        if not self._ready:
            self._read_ahead()
        batch, self._position = self._ready.popleft()
        return batch

    def _read_ahead(self) -> None:
        batches, positions = [], []
        for _ in range(AHEAD):
            batches.append(next(self._queue))
            positions.append(self._queue.state_dict())
        across = {name: self._across([batch[name] for batch in batches]) for name in batches[0]}
        self._ready.extend(
            ({name: stacked[k] for name, stacked in across.items()}, position) for k, position in enumerate(positions)
        )

    def _across(self, parts: list[Tensor]) -> Tensor:
        stacked = torch.stack(parts)
        if self._device.type == "cuda":
            stacked = stacked.pin_memory()  # only from pinned memory does a copy not wait
        return stacked.to(self._device, non_blocking=True)

    def state_dict(self) -> dict[str, int]:
        return dict(self._position)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._queue.load_state_dict(state)
        self._ready.clear()
        self._position = self._queue.state_dict()
