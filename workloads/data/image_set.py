"""A labelled set of images as uint8 arrays, checked, and split the same way every time.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from workloads.base import DataError
from workloads.data.order import permuted

Bytes = NDArray[np.uint8]
Labels = NDArray[np.int64]
Part = tuple[Bytes, Labels]  # images_NCHW, labels_N


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A labelled training and validation set.

    Attributes:
        train_images, validation_images: uint8 [N, C, H, W], contiguous.
        train_labels, validation_labels: int64 [N], in [0, classes).
        classes: number of classes.
    """

    train_images: Bytes
    train_labels: Labels
    validation_images: Bytes
    validation_labels: Labels
    classes: int

    @cached_property
    def train_mean(self) -> tuple[float, ...]:
        """The mean of each channel of the training images, in [0, 1]."""
        return tuple(float(c.mean(dtype=np.float64)) / 255 for c in self.train_images.swapaxes(0, 1))

    @cached_property
    def train_stddev(self) -> tuple[float, ...]:
        """The standard deviation of each channel, in [0, 1]; 1 for a channel that never varies."""
        return tuple(float(c.std(dtype=np.float64)) / 255 or 1.0 for c in self.train_images.swapaxes(0, 1))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shapes, pixels and labels of both parts."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.validation_images, self.validation_labels):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def split(images_NCHW: Bytes, labels_N: Labels, *, fraction: float, seed: int, where: str) -> ImageSet:
    """Return the set with `fraction` of each class held out, the same share of every class. Raises DataError."""
    _check_part("training", (images_NCHW, labels_N), where)
    held_N = np.zeros(len(labels_N), dtype=bool)
    order = permuted(np.arange(len(labels_N)), len(labels_N), seed, "split")
    for label in np.unique(labels_N):
        members = order[labels_N[order] == label]
        if len(members) < 2:
            raise DataError(f"{where}: every class needs 2 images, one to train and one to validate; {label} has 1")
        held_N[members[: min(max(round(fraction * len(members)), 1), len(members) - 1)]] = True
    return join_parts((images_NCHW[~held_N], labels_N[~held_N]), (images_NCHW[held_N], labels_N[held_N]), where)


def join_parts(train: Part, validation: Part, where: str) -> ImageSet:
    """Return the set of two parts. Raises DataError where they do not fit each other."""
    _check_part("training", train, where)
    _check_part("validation", validation, where)
    if train[0].shape[1:] != validation[0].shape[1:]:
        shapes = f"{train[0].shape[1:]} and {validation[0].shape[1:]}"
        raise DataError(f"{where}: training and validation images must have one shape (C, H, W), got {shapes}")
    seen = np.unique(train[1])
    classes = int(seen[-1]) + 1
    if classes < 2 or len(seen) != classes:
        raise DataError(f"{where}: labels must be 0, 1, ... with no gap, at least 2 classes, got {seen.tolist()[:20]}")
    if int(validation[1].max()) >= classes:
        raise DataError(f"{where}: the validation part has label {int(validation[1].max())}, training only {classes}")
    return ImageSet(
        train_images=np.ascontiguousarray(train[0]),
        train_labels=train[1],
        validation_images=np.ascontiguousarray(validation[0]),
        validation_labels=validation[1],
        classes=classes,
    )


def _check_part(name: str, part: Part, where: str) -> None:
    images, labels = (len(array) for array in part)
    if images != labels:
        raise DataError(f"{where}: the {name} part has {images} images and {labels} labels")
    if images == 0:
        raise DataError(f"{where}: the {name} part has no images")
