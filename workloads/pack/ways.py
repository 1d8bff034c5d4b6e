"""The two ways in which a pack takes a step: its runs in turn, or stacked as one program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from workloads.base import Batch, generator
from workloads.optim.stepper import Stepper
from workloads.pack.rules import RULES
from workloads.pack.shape import why_not
from workloads.pack.stack import Stack
from workloads.run import RunSpec
from workloads.run.live import Live

# of one run's step, for each parameter tensor; measured on one core: in whole sweeps of `teacher` a stacked run took
# 0.62 to 0.76 of its time up to 0.4 of this, 0.97 at 0.8, 1.16 at 1.6 and 1.31 at 3.1 times
STACKING_FLOPS = 2e6
MOST_TENSORS = 100  # more parameter tensors than that has no model whose step is mostly calls
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Way(Protocol):
    """How the runs of a pack take a step together."""

    @property
    def idle(self) -> float:
        """The share of its work that is for runs that have left."""

    def step(self, batches: Sequence[Batch], lrs: Mapping[Live, float], *, want_norm: bool) -> None:
        """Take one step of all runs, on a batch for each row and the LR of each run that is still here."""

    def give_back(self, live: Live) -> None:
        """Let go of a run, and let its tensors be its own."""


class Turns:
    """One run after the other, as each would step by itself: equal to plain runs, to the bit."""

    idle = 0.0

    def __init__(self, lives: Sequence[Live]) -> None:
        self._rows: list[Live | None] = list(lives)

    def step(self, batches: Sequence[Batch], lrs: Mapping[Live, float], *, want_norm: bool) -> None:
        for live, batch in zip(self._rows, batches, strict=True):
            if live is not None:
                live.step_on(batch, lrs[live], want_norm=want_norm)

    def give_back(self, live: Live) -> None:
        self._rows[self._rows.index(live)] = None


def choose(lives: Sequence[Live], specs: Sequence[RunSpec], stacked: bool | None) -> Way:
    """Return the way that a shape takes, the same for any number of runs: else their bits would depend on it.

    On an accelerator whatever can be stacked is. On a CPU it pays where a step is mostly calls, not arithmetic; and
    there convolutions, bfloat16 and Muon, stacked, give a run bits that depend on its neighbours (measured), and
    compiled code might.

    Args:
        lives: of one shape.
        specs: of each.
        stacked: True or False decide; None: as is best.
    """
    if stacked is None:
        stacked = _stacks(lives[0].model, lives[0].optimizer, specs[0])
    return Stack(lives, specs) if stacked else Turns(lives)


def stacking_pays(spec: RunSpec) -> bool:
    """Return whether runs of this shape are faster stacked; makes a model of it to see."""
    if why_not(spec) is not None:
        return False
    if (
        spec.device == "cpu"
        and spec.workload.facts().flops_per_token * spec.batch_tokens > STACKING_FLOPS * MOST_TENSORS
    ):
        return False  # so large that there is no need to make one
    model = spec.workload.init_model_fn(generator("init", spec.seed))[0]
    return _stacks(model, spec.optimizer.build(model, peak_lr=spec.peak_lr), spec)


def _stacks(model: nn.Module, optimizer: Stepper, spec: RunSpec) -> bool:
    known = all(type(member.optimizer) in RULES for member in optimizer.members)
    whole = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    return known and whole and (spec.device != "cpu" or _pays(model, optimizer, spec))


def _pays(model: nn.Module, optimizer: Stepper, spec: RunSpec) -> bool:
    if spec.compile or spec.precision != "float32":
        return False
    if any(isinstance(module, CONVOLUTIONS) for module in model.modules()):
        return False
    if len(optimizer.members) > 1 or isinstance(optimizer.members[0].optimizer, torch.optim.Muon):
        return False
    tensors = sum(1 for _ in model.parameters())
    return spec.workload.facts().flops_per_token * spec.batch_tokens / tensors <= STACKING_FLOPS
