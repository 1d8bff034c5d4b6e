"""The two networks of the image workload, sized by width and depth.

Every weight is drawn from the generator that is passed in; building a network touches no global random state.
Shapes: B images, C channels, H rows, W columns, T patches, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": functional.tanh,
}
NORMS = ("group", "batch", "layer")
GROUP_CHANNELS = 8  # of a group norm; 16 is best in Wu & He 2018, arXiv:1803.08494, table 3; half of it at our widths
BATCH_NORM_MOMENTUM = 0.1  # weight of the newest batch; torch's default; assumed
POSITION_SD = 0.02  # of ViT's position embedding; Dosovitskiy et al. 2021, arXiv:2010.11929; published


@dataclass(frozen=True, slots=True)
class Shape:
    """What a network must know of its data."""

    channels: int
    rows: int
    columns: int
    classes: int


class BatchNorm(nn.Module):
    """Batch norm whose running statistics change only in training and while `update` is True.

    The statistics of a training step are those of one forward pass: here a micro-batch changes the curve.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.update = True
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        use = self.update or not self.training
        return functional.batch_norm(
            x_BCHW,
            self.running_mean if use else None,
            self.running_var if use else None,
            self.weight,
            self.bias,
            self.training,
            BATCH_NORM_MOMENTUM,
        )


def norm_layer(name: str, channels: int) -> nn.Module:
    """Return the norm of a name in NORMS; "layer" is over channels and positions of one image."""
    if name == "batch":
        return BatchNorm(channels)
    fits = name == "group" and channels % GROUP_CHANNELS == 0
    return nn.GroupNorm(channels // GROUP_CHANNELS if fits else 1, channels)


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2015, arXiv:1512.03385, figure 2)."""

    def __init__(self, incoming: int, width: int, stride: int, norm: str, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv1 = nn.Conv2d(incoming, width, 3, stride, padding=1, bias=False)
        self.norm1 = norm_layer(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = norm_layer(norm, width)
        same = stride == 1 and incoming == width
        self.shortcut = nn.Identity() if same else nn.Conv2d(incoming, width, 1, stride, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.activation(self.norm1(self.conv1(x_BCHW)))
        y_BCHW: Tensor = self.activation(self.norm2(self.conv2(h_BCHW)) + self.shortcut(x_BCHW))
        return y_BCHW


class ResNet(nn.Module):
    """A 3 x 3 stem of stride 2, then two stages of `depth` blocks: `width` channels, 2 `width` at half the size."""

    def __init__(self, shape: Shape, *, width: int, depth: int, norm: str, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.stem = nn.Conv2d(shape.channels, width, 3, stride=2, padding=1, bias=False)
        self.norm = norm_layer(norm, width)
        self.blocks = nn.ModuleList()
        incoming = width
        for stage, channels in enumerate((width, 2 * width)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(Block(incoming, channels, stride, norm, activation))
                incoming = channels
        self.head = nn.Linear(incoming, shape.classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.activation(self.norm(self.stem(x_BCHW)))
        for block in self.blocks:
            h_BCHW = block(h_BCHW)
        logits_BK: Tensor = self.head(h_BCHW.mean(dim=(2, 3)))
        return logits_BK

    def reset(self, rng: torch.Generator) -> None:
        """Draw all weights from `rng`."""
        _reset(self, rng)

    def embedding_parameters(self) -> int:
        """The parameters that the N of a law leaves out: the head."""
        return _count(self.head)


class Encoder(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.heads, self.activation = heads, ACTIVATIONS[activation]
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x_BTD)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_BTD = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_BTD = x_BTD + self.out(mixed_BTD)
        y_BTD: Tensor = x_BTD + self.down(self.activation(self.up(self.norm2(x_BTD))))
        return y_BTD


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) with mean pooling and learnt positions."""

    def __init__(self, shape: Shape, *, width: int, depth: int, heads: int, patch: int, activation: str) -> None:
        super().__init__()
        self.patch = nn.Conv2d(shape.channels, width, patch, stride=patch)
        self.position = nn.Embedding((shape.rows // patch) * (shape.columns // patch), width)
        self.blocks = nn.Sequential(*(Encoder(width, heads, activation) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, shape.classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BTD = self.patch(x_BCHW).flatten(2).transpose(1, 2) + self.position.weight
        logits_BK: Tensor = self.head(self.norm(self.blocks(h_BTD)).mean(dim=1))
        return logits_BK

    def reset(self, rng: torch.Generator) -> None:
        """Draw all weights from `rng`."""
        _reset(self, rng)
        nn.init.normal_(self.position.weight, std=POSITION_SD, generator=rng)

    def embedding_parameters(self) -> int:
        """The parameters that the N of a law leaves out: patch embedding, positions and head."""
        return _count(self.patch) + _count(self.position) + _count(self.head)


def _reset(model: nn.Module, rng: torch.Generator) -> None:
    """Convolutions by He's rule, linear maps with sd 1/sqrt(fan in), biases 0, norms 1."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=rng)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=rng)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm | BatchNorm):
            nn.init.ones_(module.weight)
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(bias)
        if isinstance(module, BatchNorm):
            module.running_mean.zero_()
            module.running_var.fill_(1.0)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
