"""Which parameters decay, which are hidden matrices, and the LR and decay torch is given for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NamedParameters = list[tuple[str, nn.Parameter]]


def trainable(model: nn.Module) -> NamedParameters:
    """Return the parameters that train, each once, in the model's order."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def hidden_matrices(model: nn.Module) -> set[str]:
    """Return the names of the two-dimensional parameters between the embeddings and the head.

    Embeddings are nn.Embedding's, and whatever is called `embedding`; the head is whatever is called `head`.
    """
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return {
        name
        for name, p in trainable(model)
        if p.ndim == 2 and id(p) not in tables and not {"embedding", "head"} & set(name.split("."))
    }


def _split(named: NamedParameters) -> tuple[NamedParameters, NamedParameters]:
    """Return what decays and what does not."""
    return [(n, p) for n, p in named if p.ndim >= 2], [(n, p) for n, p in named if p.ndim < 2]


def groups(named: NamedParameters, weight_decay: float) -> list[dict[str, Any]]:
    """Return torch's parameter groups, empty ones left out."""
    decayed, plain = _split(named)
    groups = [
        {"params": [p for _, p in decayed], "weight_decay": weight_decay},
        {"params": [p for _, p in plain], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def order(named: NamedParameters) -> tuple[str, ...]:
    """Return the names in the order in which `groups` numbers them."""
    decayed, plain = _split(named)
    return tuple(name for name, _ in (*decayed, *plain))


def first_lr(peak_lr: float, named: NamedParameters, *, tensor: bool) -> float | Tensor:
    """Return the LR to build with: a number, or a tensor beside the parameters."""
    return torch.tensor(peak_lr, device=named[0][1].device) if tensor else peak_lr


def effective_decay(weight_decay: float, decay: str, peak_lr: float) -> float:
    """Return torch's weight_decay, which it multiplies by the LR."""
    return weight_decay / peak_lr if decay == "independent" else weight_decay
