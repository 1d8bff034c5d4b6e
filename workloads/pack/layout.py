"""Where each tensor of a run lies in the rows of a stack.

# K runs, N numbers of a run
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workloads.optim import Member
from workloads.optim.stepper import first_value
from workloads.pack.rules import RULES, Place, Rows, Rule
from workloads.run.live import Live

ALIGNED = 64  # numbers, to a multiple of which each parameter starts: whole vectors, so that a run's bits are its own
DECAYED = 2  # dimensions from which on a parameter decays, as in workloads.optim


@dataclass(frozen=True, slots=True)
class Block:
    """The columns of one torch optimizer: its rule, what it works on, and its LR as a multiple of the run's."""

    rule: Rule
    rows: Rows
    ratio: float


@dataclass(frozen=True, slots=True)
class Layout:
    """The rows of a stack.

    Attributes:
        blocks: of the optimizers, one beside the other.
        gradient: all of it, [K, N].
        theta_of, gradient_of: views by the names of parameters, each [K, *shape].
    """

    blocks: tuple[Block, ...]
    gradient: Tensor
    theta_of: dict[str, Tensor]
    gradient_of: dict[str, Tensor]


def lay_out(lives: Sequence[Live]) -> Layout:
    """Return rows that hold the parameters and optimizer state of runs of one shape.

    The runs' optimizers keep views of the rows from then on; the models still hold tensors of their own.
    """
    groups = [_places(member, lives[0].model) for member in lives[0].optimizer.members]
    ends = [sum(_end(places) for places in groups[: i + 1]) for i in range(len(groups))]
    theta_KN = torch.zeros(len(lives), ends[-1], device=lives[0].loss_sum.device)
    gradient_KN = torch.zeros_like(theta_KN)
    blocks: list[Block] = []
    theta_of: dict[str, Tensor] = {}
    gradient_of: dict[str, Tensor] = {}
    for index, places in enumerate(groups):
        columns = slice(ends[index] - _end(places), ends[index])
        block = _block(lives, index, places, theta_KN[:, columns], gradient_KN[:, columns])
        blocks.append(block)
        theta_of |= {place.name: place.of(block.rows.theta) for place in places}
        gradient_of |= {place.name: place.of(block.rows.gradient) for place in places}
    for name, stacked in theta_of.items():
        stacked.copy_(torch.stack([live.model.get_parameter(name).detach() for live in lives]))
    return Layout(tuple(blocks), gradient_KN, theta_of, gradient_of)


def _places(member: Member, model: nn.Module) -> tuple[Place, ...]:
    """Return the places of an optimizer's parameters among its own columns, in its order: what decays comes first."""
    places, start = [], 0
    for name in member.names:
        shape = model.get_parameter(name).shape
        places.append(Place(name, shape, start))
        start += _padded(shape)
    return tuple(places)


def _padded(shape: torch.Size) -> int:
    return -(-shape.numel() // ALIGNED) * ALIGNED


def _end(places: Sequence[Place]) -> int:
    return places[-1].start + _padded(places[-1].shape)


def _block(
    lives: Sequence[Live], index: int, places: tuple[Place, ...], theta_KN: Tensor, gradient_KN: Tensor
) -> Block:
    """Return the columns of the optimizer of that index, its state taken over from all runs."""
    members = [live.optimizer.members[index] for live in lives]
    settings = [{**member.optimizer.defaults, **member.optimizer.param_groups[0]} for member in members]
    rule = RULES[type(members[0].optimizer)](settings)
    decayed = sum(_padded(place.shape) for place in places if len(place.shape) >= DECAYED)
    slots_KN = {slot: torch.zeros_like(theta_KN) for slot in rule.slots}
    scalars_K = {name: torch.full_like(theta_KN[:, 0], first_value(f"/{name}")) for name in rule.scalars}
    rows = Rows(theta_KN, gradient_KN, slots_KN, scalars_K, decayed, places)
    for row, (live, member) in enumerate(zip(lives, members, strict=True)):
        state = member.optimizer.state
        for place in places:
            parameter = live.model.get_parameter(place.name)
            kept = state[parameter]
            views = {slot: place.of(stacked)[row] for slot, stacked in slots_KN.items()}
            views |= {name: stacked[row] for name, stacked in scalars_K.items()}
            for name, view in views.items():
                if name in kept:
                    view.copy_(kept[name])
            state[parameter] = views
    rule.resume([{name: stacked[row].item() for name, stacked in scalars_K.items()} for row in range(len(lives))])
    return Block(rule, rows, members[0].lr_ratio)


def named(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and those of its buffers that are state, by name, each once."""
    kept = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return {**dict(model.named_parameters()), **buffers}


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Let a model's parameter or buffer be this tensor."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    present = getattr(owner, leaf)
    if isinstance(present, nn.Parameter):
        present.data = tensor
    else:
        setattr(owner, leaf, tensor)
