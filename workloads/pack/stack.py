"""K runs as one program: stacked parameters and optimizer state, one forward, one backward, one update.

# K runs, N numbers of a run
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from workloads.base import Batch
from workloads.optim.stepper import CLIP_EPS
from workloads.pack.layout import lay_out, named, put
from workloads.run import RunSpec
from workloads.run.graph import StepGraph
from workloads.run.live import Live, mean_loss

Gradients = Callable[[list[Tensor], dict[str, Tensor], Batch], tuple[Tensor, list[Tensor]]]


class Stack:
    """Started runs of one shape in lockstep. Their tensors become rows of stacked ones, until given back.

    The model, optimizer state, sum of losses and gradient norm of each `Live` are views from then on: it evaluates and
    tells its state by itself. A row that was given back goes on idle, at LR 0.

    Args:
        lives: of runs whose shape keys are equal, all at one step.
        specs: of each.
    """

    def __init__(self, lives: Sequence[Live], specs: Sequence[RunSpec]) -> None:
        self._lives: list[Live | None] = list(lives)
        self._spec, self._first = specs[0], lives[0]
        self._rows = lay_out(lives)
        self._fixed = {
            name: torch.stack([named(live.model)[name].detach() for live in lives])
            for name in named(self._first.model)
            if name not in self._rows.theta_of
        }
        self._loss_sum_K = torch.stack([live.loss_sum for live in lives])
        self._norm_K = torch.stack([live.norm for live in lives])
        clip_norms = [getattr(spec.optimizer, "clip_norm", None) for spec in specs]
        self._clip_K = None if None in clip_norms else self._norm_K.new_tensor(clip_norms)
        coefficients = sum(block.rule.coefficients for block in self._rows.blocks)
        self._numbers = self._norm_K.new_zeros(coefficients, len(lives), 1)
        self._loss = _Loss(self._spec, self._first)
        self._losses = (
            torch.compile(self._stacked_losses, dynamic=False) if self._spec.compile else self._stacked_losses
        )
        self._applies = [
            torch.compile(block.rule.apply, dynamic=False) if self._spec.compile else block.rule.apply
            for block in self._rows.blocks
        ]
        self._gradients: Gradients | None = None
        self._graph: StepGraph | None = None
        for row, live in enumerate(lives):
            for name, stacked in (self._rows.theta_of | self._fixed).items():
                put(live.model, name, stacked[row])
            live.loss_sum, live.norm, live.graph = self._loss_sum_K[row], self._norm_K[row], None

    @property
    def idle(self) -> float:
        """The share of rows that were given back."""
        return self._lives.count(None) / len(self._lives)

    def give_back(self, live: Live) -> None:
        """Give a run its own copy of all that is its."""
        self._lives[self._lives.index(live)] = None
        for name, tensor in named(live.model).items():
            put(live.model, name, tensor.detach().clone())
        for member in live.optimizer.members:
            for slots in member.optimizer.state.values():
                slots.update({name: value.clone() for name, value in slots.items() if isinstance(value, Tensor)})
        live.loss_sum, live.norm = live.loss_sum.clone(), live.norm.clone()
        live.optimizer.set_lr(live.lr)

    def step(self, batches: Sequence[Batch], lrs: Mapping[Live, float], *, want_norm: bool) -> None:
        """Take one step of all runs.

        Args:
            batches: of each row.
            lrs: of each run that is still here.
            want_norm: whether each run's gradient norm is to be known.
        """
        for live, lr in lrs.items():
            live.lr = lr
        rates = [0.0 if live is None else lrs[live] for live in self._lives]
        numbers = [block.rule.prepare([rate * block.ratio for rate in rates]) for block in self._rows.blocks]
        told = torch.tensor([row for rows in numbers for row in rows])[:, :, None]
        self._numbers.copy_(told.pin_memory() if self._numbers.is_cuda else told, non_blocking=True)
        stacked = {name: torch.stack([batch[name] for batch in batches]) for name in batches[0]}
        if self._spec.cuda_graph:
            self._replay(stacked)
        else:
            self._update(stacked, want_norm=want_norm)

    def _update(self, batch: Batch, *, want_norm: bool) -> None:
        """Forward, backward and update, on tensors that stay where they are."""
        gradient_KN = self._rows.gradient
        goals, leaves = list(self._rows.gradient_of.values()), list(self._rows.theta_of.values())
        for index, part in enumerate(self._micro_batches(batch)):
            if self._gradients is None:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")  # attention on a CPU: run by run
                    self._gradients = self._prepared(leaves, part)
            with torch.no_grad():
                losses_K, gradients = self._gradients(leaves, self._fixed, part)
            (torch._foreach_add_ if index else torch._foreach_copy_)(goals, gradients)
            self._loss_sum_K.add_(losses_K)
        if want_norm or self._clip_K is not None:
            torch.linalg.vector_norm(gradient_KN, dim=1, out=self._norm_K)
        if self._clip_K is not None:
            gradient_KN.mul_((self._clip_K / (self._norm_K + CLIP_EPS)).clamp_(max=1.0)[:, None])
        first = 0
        for block, apply in zip(self._rows.blocks, self._applies, strict=True):
            apply(block.rows, self._numbers[first : first + block.rule.coefficients])
            first += block.rule.coefficients

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        count = self._first.accumulation
        if count == 1:
            return [batch]
        split = {name: value.chunk(count, dim=1) for name, value in batch.items()}
        return [{name: parts[i] for name, parts in split.items()} for i in range(count)]

    def _stacked_losses(self, leaves: list[Tensor], fixed: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return each run's loss, [K]."""

        def one(leaves: list[Tensor], fixed: dict[str, Tensor], batch: Batch) -> Tensor:
            tensors = {**dict(zip(self._rows.theta_of, leaves, strict=True)), **fixed}
            loss: Tensor = functional_call(self._loss, {f"model.{name}": x for name, x in tensors.items()}, (batch,))
            return loss

        with self._first.autocast():
            losses_K: Tensor = vmap(one)(leaves, fixed, batch)
        return losses_K

    def _eager(self, leaves: list[Tensor], fixed: dict[str, Tensor], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Return each run's loss and gradients: no run's loss depends on another's parameters, so one sum serves."""
        with torch.enable_grad():
            leaves = [leaf.detach().requires_grad_() for leaf in leaves]
            losses_K = self._losses(leaves, fixed, batch)
            return losses_K.detach(), list(torch.autograd.grad(losses_K.sum(), leaves))

    def _prepared(self, leaves: list[Tensor], batch: Batch) -> Gradients:
        """Return `_eager`, compiled by now if it is to be; on a CPU as a list of operations.

        There vmap and autograd, which take longer than a small step's arithmetic, then cost nothing a step.
        """
        kept = {name: value.clone() for name, value in self._fixed.items()}
        gradients: Gradients = self._eager
        if self._norm_K.is_cuda or self._spec.compile:
            gradients(leaves, self._fixed, batch)
        else:
            traced = make_fx(lambda *tensors: self._eager(*tensors))(leaves, self._fixed, batch)
            traced.graph.eliminate_dead_code()
            traced.recompile()
            gradients = traced
        for name, value in kept.items():
            self._fixed[name].copy_(value)  # running statistics have seen this batch
        return gradients

    def _replay(self, batch: Batch) -> None:
        """Do as `_update`, by a graph that is captured at the first step."""
        if self._graph is None:
            state = [*self._rows.theta_of.values(), self._loss_sum_K, *self._fixed.values()]
            state += [x for b in self._rows.blocks for x in (*b.rows.slots.values(), *b.rows.scalars.values())]
            kept = [value.clone() for value in state]

            def restore() -> None:
                torch._foreach_copy_(state, kept)

            self._graph = StepGraph(
                lambda inputs: self._update(inputs, want_norm=True),
                batch,
                restore=restore,
                generator=self._first.rng,
            )
        self._graph(batch)


class _Loss(nn.Module):
    """The mean loss of a micro-batch as a module, so that a call can put other tensors in the place of the model's.

    It draws no random numbers: a workload that does is refused by vmap, for runs would share what they must not.
    """

    def __init__(self, spec: RunSpec, live: Live) -> None:
        super().__init__()
        self.model = live.model
        self._workload = spec.workload
        self._micro_batches = live.accumulation

    def forward(self, batch: Batch) -> Tensor:
        return mean_loss(self._workload, self.model, batch, None, self._micro_batches)
