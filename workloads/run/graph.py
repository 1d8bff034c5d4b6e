"""A whole optimizer step as one CUDA graph: one launch where a small model would need hundreds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workloads.base import Batch

WARM_UP_STEPS = 3  # before a capture: kernels are chosen, workspaces and optimizer state come to be


class StepGraph:
    """A captured step; calling it with a batch replays it. What the step changes, it changes in place.

    Args:
        step: works on the batch it is given and on tensors that stay where they are; no host reads its results.
        batch: any batch of the shapes to come, on the device.
        restore: undoes the warm-up's changes to all state, in place.
        generator: the random stream that the step draws from.
    """

    def __init__(
        self,
        step: Callable[[Batch], None],
        batch: Batch,
        *,
        restore: Callable[[], None],
        generator: torch.Generator,
    ) -> None:
        self._inputs: dict[str, Tensor] = {name: value.clone() for name, value in batch.items()}
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(generator)
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP_STEPS):
                step(self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(self._graph):
            step(self._inputs)
        restore()

    def __call__(self, batch: Batch) -> None:
        for name, value in self._inputs.items():
            value.copy_(batch[name])
        self._graph.replay()
