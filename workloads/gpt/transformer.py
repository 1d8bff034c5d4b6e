"""The transformer behind the language model.

# B examples, T tokens of context, W width, H heads, D width of a head, F hidden width, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from workloads.gpt.workload import Gpt


def _squared_relu(x: Tensor) -> Tensor:
    positive = functional.relu(x)
    return positive * positive  # the backward of square() is ten times slower on a CPU; measured


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "relu2": _squared_relu,  # So et al. 2021, arXiv:2109.08668
    "silu": functional.silu,
    "swiglu": functional.silu,  # gated: Shazeer 2020, arXiv:2002.05202
    "geglu": functional.gelu,
}
GATED = ("swiglu", "geglu")


def _norm(x: Tensor) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:])


class Block(nn.Module):
    """Attention, then the feed-forward part, each added to the residual stream.

    Attributes:
        queries_keys_values: [3 W, W].
        attention_out: [W, W].
        feed_forward_in: [F, W], or [2 F, W] where gated: gate, then value.
        feed_forward_out: [W, F].
    """

    def __init__(self, config: Gpt, rng: torch.Generator) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden
        self.config = config
        self.gated = config.activation in GATED
        self.activation = ACTIVATIONS[config.activation]
        out_scale = config.init_scale * (0.0 if config.residual_init == "zero" else (2 * config.depth) ** -0.5)
        self.queries_keys_values = _matrix(3 * width, width, config.init_scale, rng)
        self.attention_out = _matrix(width, width, out_scale, rng)
        self.feed_forward_in = _matrix((1 + self.gated) * hidden, width, config.init_scale, rng)
        self.feed_forward_out = _matrix(width, hidden, out_scale, rng)

    def forward(self, x_BTW: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.config.norm_position == "pre":
            x_BTW = x_BTW + self._attention(_norm(x_BTW), cos, sin)
            return x_BTW + self._feed_forward(_norm(x_BTW))
        x_BTW = _norm(x_BTW + self._attention(x_BTW, cos, sin))
        return _norm(x_BTW + self._feed_forward(x_BTW))

    def _attention(self, x_BTW: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = self.config.heads
        joint = functional.linear(x_BTW, self.queries_keys_values).view(*x_BTW.shape[:2], 3 * heads, -1)
        rotated, values = torch.split(joint, [2 * heads, heads], dim=-2)
        if self.config.qk_norm:
            rotated = _norm(rotated)
        queries, keys = torch.split(_rotated(rotated, cos, sin).to(values.dtype).transpose(1, 2), heads, dim=1)
        mixed = functional.scaled_dot_product_attention(queries, keys, values.transpose(1, 2), is_causal=True)
        return functional.linear(mixed.transpose(1, 2).flatten(2), self.attention_out)

    def _feed_forward(self, x_BTW: Tensor) -> Tensor:
        hidden = functional.linear(x_BTW, self.feed_forward_in)
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            return functional.linear(self.activation(gate) * value, self.feed_forward_out)
        return functional.linear(self.activation(hidden), self.feed_forward_out)


class Transformer(nn.Module):
    """Token ids [B, T] to logits [B, T, V]; its rotary tables are made, not state."""

    def __init__(self, config: Gpt, vocabulary: int, rng: torch.Generator) -> None:
        super().__init__()
        self.final_norm = config.norm_position == "pre"
        width = config.width
        self.embedding = _matrix(vocabulary, width, config.init_scale, rng)
        self.blocks = nn.ModuleList(Block(config, rng) for _ in range(config.depth))
        self.head = None if config.tied_embeddings else _matrix(vocabulary, width, config.init_scale, rng)
        angles = _angles(config.context, width // config.heads, config.rope_base).to(rng.device)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        cos, sin = self.get_buffer("cos"), self.get_buffer("sin")
        length = tokens_BT.shape[1]
        x_BTW = functional.embedding(tokens_BT, self.embedding)
        for block in self.blocks:
            x_BTW = block(x_BTW, cos[:length], sin[:length])
        if self.final_norm:
            x_BTW = _norm(x_BTW)
        return functional.linear(x_BTW, self.embedding if self.head is None else self.head)


def _matrix(rows: int, columns: int, scale: float, rng: torch.Generator) -> nn.Parameter:
    """Return a matrix of normal numbers of standard deviation scale / sqrt(columns)."""
    return nn.Parameter(torch.randn(rows, columns, generator=rng, device=rng.device) * (scale * columns**-0.5))


def _angles(context: int, head_width: int, base: float) -> Tensor:
    """Return the rotary angle of each position and pair, shape [T, 1, D / 2]."""
    frequency = base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    return torch.outer(torch.arange(context, dtype=torch.float64), frequency).float()[:, None, :]


def _rotated(x_BTHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of each head by the angle of their position."""
    first, second = x_BTHD.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
