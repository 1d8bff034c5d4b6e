"""The one wrapper through which a run drives torch's optimizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_, whose result this is, in a third of its time


@dataclass(frozen=True, slots=True)
class Member:
    """One torch optimizer, the names of its parameters in its own order, and its LR as a multiple of the run's."""

    optimizer: torch.optim.Optimizer
    names: tuple[str, ...]
    lr_ratio: float = 1.0


class Stepper:
    """One or more torch optimizers driven as one: LR, clipping, step, and state as flat tensors."""

    def __init__(self, members: Sequence[Member], *, clip_norm: float | None) -> None:
        self.members = tuple(members)
        self._clip_norm = clip_norm
        self._steps = tuple(member.optimizer.step for member in self.members)
        self.parameters = tuple(
            p for member in self.members for group in member.optimizer.param_groups for p in group["params"]
        )

    def set_lr(self, lr: float) -> None:
        """Set the LR of the next step."""
        for member in self.members:
            value = lr * member.lr_ratio
            for group in member.optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(value)
                else:
                    group["lr"] = value

    def step(self, *, want_norm: bool) -> Tensor | None:
        """Clip if asked to, update, drop the gradients; return the unclipped norm if wanted."""
        norm = None
        if want_norm or self._clip_norm is not None:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            if self._clip_norm is not None:
                torch._foreach_mul_(gradients, (self._clip_norm / (norm + CLIP_EPS)).clamp(max=1.0))
        for step in self._steps:
            step()
        for parameter in self.parameters:
            parameter.grad = None
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the state, themselves, by "member/parameter/slot", in a fixed order."""
        return {key: value for key, value in self._slots() if isinstance(value, Tensor)}

    def numbers(self) -> dict[str, float]:
        """Return the plain numbers of the state, by the same names."""
        return {key: value for key, value in self._slots() if isinstance(value, int | float)}

    def _slots(self) -> list[tuple[str, Any]]:
        """Return every slot that torch keeps, in a fixed order."""
        return [
            (f"{k}/{member.names[index]}/{slot}", value)
            for k, member in enumerate(self.members)
            for index, slots in sorted(member.optimizer.state_dict()["state"].items())
            for slot, value in sorted(slots.items())
        ]

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        """Put back copies of what `tensors` and `numbers` returned.

        Raises:
            ValueError: a slot of a parameter that this model does not have.
        """
        found: list[dict[int, dict[str, Tensor | float]]] = [{} for _ in self.members]
        places = {
            f"{k}/{name}": (k, index)
            for k, member in enumerate(self.members)
            for index, name in enumerate(member.names)
        }
        slots_in: dict[str, Tensor | float] = {**tensors, **numbers}
        for key, value in slots_in.items():
            owner, _, slot = key.rpartition("/")
            if owner not in places:
                raise ValueError(f"optimizer: the state of {owner!r} belongs to another model or optimizer")
            k, index = places[owner]
            found[k].setdefault(index, {})[slot] = value.clone() if isinstance(value, Tensor) else value
        for member, slots in zip(self.members, found, strict=True):
            groups = member.optimizer.state_dict()["param_groups"]
            member.optimizer.load_state_dict({"state": slots, "param_groups": groups})


def first_value(key: str) -> float:
    """Return what torch fills a slot with before the first step."""
    return 1.0 if key.endswith("/mu_product") else 0.0
