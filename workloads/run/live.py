"""The moving parts of a started run, and one optimizer step of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, distributed, nn

from workloads.base import Batch, ForwardPassMode, InputQueue, JsonDict, Workload, generator
from workloads.optim.stepper import Stepper, first_value
from workloads.run.feed import Feed
from workloads.run.graph import StepGraph
from workloads.run.spec import RunSpec


class Live:
    """Model, optimizer, data and random stream of a started run.

    Attributes:
        release: gives this run's tensors and data back to it, where a pack holds them; None where none does.
        graph: of the whole step, once captured; to be dropped where a tensor of the run moves.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._workload = spec.workload
        self._device = torch.device(spec.device)
        if self._device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        examples, self.accumulation = _shares(spec)
        self.model = spec.workload.init_model_fn(generator("init", spec.seed))[0].to(self._device)
        self.model.train()
        self.optimizer: Stepper = spec.optimizer.build(self.model, peak_lr=spec.peak_lr, capturable=spec.cuda_graph)
        queue = spec.workload.build_input_queue("train", examples, spec.seed, rank=spec.rank, world_size=spec.world)
        self.queue: InputQueue = queue if self._device.type == "cpu" else Feed(queue, self._device)
        self.rng = generator("dropout", spec.seed, spec.rank, device=self._device)
        self._loss = torch.compile(self._forward) if spec.compile else self._forward
        self.graph: StepGraph | None = None
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        self.norm = torch.zeros((), device=self._device)
        self.lr = math.nan
        self.release: Callable[[], None] | None = None

    def train_step(self, lr: float, *, want_norm: bool) -> None:
        """Take one optimizer step on the next batch."""
        self._leave_pack()
        self.step_on(next(self.queue), lr, want_norm=want_norm)

    def step_on(self, batch: Batch, lr: float, *, want_norm: bool) -> None:
        """Take one optimizer step on a batch."""
        if lr != self.lr:
            self.optimizer.set_lr(lr)
            self.lr = lr
        if self._spec.cuda_graph:
            self._replay(batch)
        else:
            self._update(batch, want_norm=want_norm)

    def _update(self, batch: Batch, *, want_norm: bool) -> None:
        """Forward, backward and update."""
        for part in self.parts(batch):
            with self.autocast():
                loss = self._loss(part)
            torch.autograd.backward(loss)
            self.loss_sum.add_(loss.detach())
        if self._spec.world > 1:
            self._average_gradients()
        norm = self.optimizer.step(want_norm=want_norm)
        if norm is not None and want_norm:
            self.norm.copy_(norm)

    def _replay(self, batch: Batch) -> None:
        """Do as `_update`, by a graph that is captured at the first step."""
        if self.graph is None:
            kept = {name: value.clone() for name, value in self._tensors().items()}
            rng = self.rng.get_state()

            def restore() -> None:
                for name, value in self._tensors().items():
                    value.copy_(kept[name]) if name in kept else value.fill_(first_value(name))
                self.rng.set_state(rng)

            self.graph = StepGraph(
                lambda inputs: self._update(inputs, want_norm=True), batch, restore=restore, generator=self.rng
            )
        self.graph(batch)

    def _tensors(self) -> dict[str, Tensor]:
        """Return every tensor that a step changes, itself, by its name in a checkpoint."""
        tensors = {f"model/{name}": value.detach() for name, value in self.model.state_dict().items()}
        tensors |= {f"optimizer/{name}": value for name, value in self.optimizer.tensors().items()}
        return tensors | {"train/loss_sum": self.loss_sum}

    def _forward(self, batch: Batch) -> Tensor:
        """Return the mean loss of a micro-batch, divided by the number of them in a step."""
        return mean_loss(self._workload, self.model, batch, self.rng, self.accumulation)

    def parts(self, batch: Batch) -> list[Batch]:
        """Return the micro-batches of this rank's share."""
        if self.accumulation == 1:
            return [batch]
        split = {name: value.chunk(self.accumulation) for name, value in batch.items()}
        return [{name: parts[i] for name, parts in split.items()} for i in range(self.accumulation)]

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context of a forward pass."""
        if self._spec.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)

    def _average_gradients(self) -> None:
        """Replace each gradient by its mean over the ranks."""
        for parameter in self.optimizer.parameters:
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad)
                parameter.grad.div_(self._spec.world)

    def _leave_pack(self) -> None:
        if self.release is not None:
            self.release()

    def total_loss(self) -> float:
        """Return the sum of all steps' training losses, the mean over ranks; waits for the device."""
        total = self.loss_sum
        if self._spec.world > 1:
            total = total.clone()
            distributed.all_reduce(total)
        return total.item() / self._spec.world

    def evaluate(self) -> dict[str, float]:
        """Return the workload's metrics on its held-out set."""
        self.model.eval()
        with torch.no_grad(), self.autocast():
            metrics = dict(self._workload.eval_model(self.model, self._device))
        self.model.train()
        return metrics

    def state(self) -> tuple[dict[str, Tensor], JsonDict]:
        """Return copies of all tensors, on the CPU, and the data position."""
        tensors = self._tensors() | {"rng/dropout": self.rng.get_state()}
        copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
        return copies, {"queue": self.queue.state_dict(), "optimizer": self.optimizer.numbers()}

    def load(self, tensors: Mapping[str, Tensor], meta: JsonDict) -> None:
        """Put back what `state` returned."""
        self._leave_pack()
        self.model.load_state_dict(_under("model/", tensors))
        self.optimizer.load(_under("optimizer/", tensors), meta["optimizer"])
        self.rng.set_state(tensors["rng/dropout"].clone())
        self.loss_sum.copy_(tensors["train/loss_sum"])
        self.queue.load_state_dict(meta["queue"])
        self.lr = math.nan
        self.graph = None  # it holds the optimizer's former tensors


def mean_loss(workload: Workload, model: nn.Module, batch: Batch, rng: torch.Generator | None, parts: int) -> Tensor:
    """Return the mean training loss of a micro-batch, divided by the number of them in a step."""
    logits, _ = workload.model_fn(model, batch, None, ForwardPassMode.TRAIN, rng, True)
    losses = workload.loss_fn(batch["targets"], logits, batch.get("weights"))
    return losses["summed"] / (losses["n_valid_examples"] * parts)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names open with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _shares(spec: RunSpec) -> tuple[int, int]:
    """Return the examples of a global batch and the micro-batches of a rank in a step.

    Raises:
        ValueError: the batch does not divide evenly.
    """
    size = spec.workload.facts().tokens_per_example
    if spec.batch_tokens % (size * spec.world):
        raise ValueError(
            f"batch_tokens: must be a multiple of {size * spec.world} "
            f"({size} tokens per example x {spec.world} ranks), got {spec.batch_tokens}"
        )
    share = spec.batch_tokens // spec.world
    micro = spec.micro_batch_tokens or share
    if micro % size or share % micro:
        raise ValueError(
            f"micro_batch_tokens: must be whole examples of {size} tokens and divide a rank's {share}, got {micro}"
        )
    return spec.batch_tokens // size, share // micro
