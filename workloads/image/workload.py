"""The image workload: classification of small images, in AlgoPerf's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from workloads.base import Batch, DataError, Facts, ForwardPassMode
from workloads.data.image_set import ImageSet
from workloads.data.images import IMAGES, ImageSource, Mnist5k, load_images
from workloads.data.order import permuted
from workloads.image.models import ACTIVATIONS, NORMS, BatchNorm, ResNet, Shape, ViT
from workloads.image.queue import AUGMENTATIONS, ImageQueue, normalise

MODELS = ("resnet", "vit")
EVAL_BATCH_SIZE = 500
LARGEST = {"width": 65_536, "depth": 1000, "heads": 65_536, "patch": 65_536}  # what a network is built of; choices


@dataclass(frozen=True)
class Image:
    """Image classification by a small ResNet or ViT; a token is an image.

    Attributes:
        model: "resnet" or "vit".
        width: channels of the ResNet's first stage, or the ViT's width.
        depth: blocks of each of the ResNet's two stages, or blocks of the ViT.
        heads, patch: of the ViT; the patch must divide the image.
        norm: of the ResNet, "group", "batch" or "layer"; the ViT has layer norm throughout.
        activation: one of ACTIVATIONS.
        augmentation: "none", "shift" (by up to 1/8 of the side), "flip" (left to right) or "shift+flip".
        label_smoothing: of the training loss; the validation loss has none.
        validation_target_value: the validation accuracy to reach, or None.
        validation_examples: the size of a fixed part of the held-out set to evaluate on; None: all of it.
        data: one of the sources in workloads/data/images.py.
    """

    model: str = "resnet"
    width: int = 16
    depth: int = 1
    heads: int = 4
    patch: int = 7
    norm: str = "group"
    activation: str = "relu"
    augmentation: str = "none"
    label_smoothing: float = 0.0
    validation_target_value: float | None = 0.95
    validation_examples: int | None = None
    data: ImageSource = field(default_factory=Mnist5k)

    version: ClassVar[int] = 1
    target_metric_name: ClassVar[str] = "accuracy"
    metric_mode: ClassVar[str] = "max"
    TABLES: ClassVar[Mapping[str, Mapping[str, type[ImageSource]]]] = {"data": IMAGES}
    OUTSIDE: ClassVar[tuple[str, ...]] = ("validation_target_value",)  # not part of a trial's identity

    def __post_init__(self) -> None:
        for name, valid in (
            ("model", MODELS),
            ("norm", NORMS),
            ("activation", tuple(ACTIVATIONS)),
            ("augmentation", AUGMENTATIONS),
        ):
            if getattr(self, name) not in valid:
                raise ValueError(f"{name}: must be one of {', '.join(valid)}, got {getattr(self, name)!r}")
        for name in ("width", "depth", "heads", "patch"):
            if not 1 <= getattr(self, name) <= LARGEST[name]:
                raise ValueError(f"{name}: must be at least 1 and at most {LARGEST[name]:,}, got {getattr(self, name)}")
        if self.model == "vit" and self.width % self.heads:
            raise ValueError(f"heads: must divide width={self.width}, got {self.heads}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: must be at least 0 and below 1, got {self.label_smoothing}")
        if self.validation_target_value is not None and not 0 < self.validation_target_value <= 1:
            raise ValueError(
                f"validation_target_value: must be above 0 and at most 1, got {self.validation_target_value}"
            )
        if self.validation_examples is not None and self.validation_examples < 1:
            raise ValueError(f"validation_examples: must be at least 1, got {self.validation_examples}")

    def facts(self) -> Facts:
        """Return the facts. Raises DataError."""
        images = load_images(self.data)
        with torch.device("meta"):
            model = self._network()
        parameters = sum(p.numel() for p in model.parameters())
        return Facts(
            parameters=parameters,
            non_embedding_parameters=parameters - model.embedding_parameters(),
            flops_per_token=_training_flops(model, images),
            tokens_per_example=1,
            unit="image",
            train_tokens=len(images.train_labels),
            data_fingerprint=images.fingerprint,
        )

    def init_model_fn(self, rng: torch.Generator) -> tuple[nn.Module, None]:
        """Return a freshly initialised model, and None. Raises DataError."""
        with torch.device("meta"):  # no memory, and no draw from the global generator
            model = self._network()
        model = model.to_empty(device="cpu")
        model.reset(rng)
        return model, None

    def _network(self) -> ResNet | ViT:
        images = load_images(self.data)
        channels, rows, columns = images.train_images.shape[1:]
        shape = Shape(channels, rows, columns, images.classes)
        if self.model == "resnet":
            return ResNet(shape, width=self.width, depth=self.depth, norm=self.norm, activation=self.activation)
        if shape.rows % self.patch or shape.columns % self.patch:
            raise DataError(f"patch: must divide images of {shape.rows} x {shape.columns}, got {self.patch}")
        return ViT(
            shape,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            patch=self.patch,
            activation=self.activation,
        )

    def model_fn(
        self,
        params: nn.Module,
        augmented_and_preprocessed_input_batch: Batch,
        model_state: None,
        mode: ForwardPassMode,
        rng: torch.Generator | None,
        update_batch_norm: bool,
    ) -> tuple[Tensor, None]:
        """Return the logits [B, classes]."""
        del model_state, rng
        training = mode is ForwardPassMode.TRAIN
        if params.training != training:
            params.train(training)
        if self.norm == "batch":
            for module in params.modules():
                if isinstance(module, BatchNorm):
                    module.update = update_batch_norm
        logits_BK: Tensor = params(augmented_and_preprocessed_input_batch["inputs"])
        return logits_BK, None

    def loss_fn(
        self,
        label_batch: Tensor,
        logits_batch: Tensor,
        mask_batch: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, Tensor]:
        """Return the training loss, softmax cross-entropy in nats.

        `label_smoothing` 0 stands for the workload's own. The mask holds 1 for the examples that count.
        """
        smoothing = label_smoothing or self.label_smoothing
        per_example = functional.cross_entropy(
            logits_batch.float(), label_batch, reduction="none", label_smoothing=smoothing
        )
        if mask_batch is None:
            mask_batch = torch.ones_like(per_example)
        per_example = per_example * mask_batch
        return {"summed": per_example.sum(), "n_valid_examples": mask_batch.sum(), "per_example": per_example}

    def build_input_queue(
        self, split: str, global_batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> ImageQueue:
        """Return the stream of the split "train". Raises DataError."""
        if split != "train":
            raise ValueError(f"split: must be 'train', got {split!r}")
        return ImageQueue(
            load_images(self.data),
            global_batch_size,
            seed,
            augmentation=self.augmentation,
            rank=rank,
            world_size=world_size,
        )

    def eval_model(self, params: nn.Module, device: torch.device) -> dict[str, float]:
        """Return "validation/loss" (nats) and "validation/accuracy" (a fraction) on the held-out images."""
        images = load_images(self.data)
        size = len(images.validation_labels)
        index_N = permuted(np.arange(min(self.validation_examples or size, size)), size, "validation")
        loss, right = 0.0, 0
        was_training = params.training
        params.eval()
        with torch.no_grad():
            for start in range(0, len(index_N), EVAL_BATCH_SIZE):
                index_B = index_N[start : start + EVAL_BATCH_SIZE]
                inputs = normalise(images.validation_images[index_B], images).to(device)
                labels_B = torch.from_numpy(images.validation_labels[index_B]).to(device)
                logits_BK = params(inputs).float()
                loss += float(functional.cross_entropy(logits_BK, labels_B, reduction="sum"))
                right += int((logits_BK.argmax(dim=1) == labels_B).sum())
        params.train(was_training)
        return {"validation/loss": loss / len(index_N), "validation/accuracy": right / len(index_N)}

    def has_reached_validation_target(self, eval_result: Mapping[str, float]) -> bool:
        """Whether the accuracy is at its target or above."""
        target = self.validation_target_value
        return target is not None and eval_result["validation/accuracy"] >= target


def _training_flops(model: nn.Module, images: ImageSet) -> float:
    """Return the FLOPs of one image forward and backward by torch's counter: of matrix products, on shapes alone."""
    inputs = torch.zeros((1, *images.train_images.shape[1:]), device="meta")
    model.eval()  # a batch norm would not train on one image
    with FlopCounterMode(display=False) as counter:
        model(inputs).sum().backward()
    return float(counter.get_total_flops())
