"""The stream of training images: shuffled and augmented as a function of (seed, position) alone.

Shapes: N images of the set, B of this rank's batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads.base import Batch, stable_seed
from workloads.data.image_set import Bytes, ImageSet
from workloads.data.order import in_order

AUGMENTATIONS = ("none", "shift", "flip", "shift+flip")
SHIFT_SHARE = 8  # images move by up to 1/8 of their side: 4 pixels of 32, He et al. 2015, arXiv:1512.03385; published


class ImageQueue:
    """An endless stream; each epoch is a permutation of the training set. `position` counts examples of all ranks."""

    def __init__(
        self, images: ImageSet, global_batch_size: int, seed: int, *, augmentation: str, rank: int, world_size: int
    ) -> None:
        if global_batch_size < 1 or global_batch_size % world_size:
            raise ValueError(
                f"global_batch_size: must be a positive multiple of world_size={world_size}, got {global_batch_size}"
            )
        self.position = 0
        self._images = images
        self._seed = seed
        self._batch = global_batch_size
        self._share = global_batch_size // world_size
        self._rank = rank
        self._augmentation = augmentation

    def __next__(self) -> Batch:
        first = self.position + self._rank * self._share
        index_B = in_order(first, self._share, len(self._images.train_labels), seed=self._seed)
        pixels_BCHW = augment(self._images.train_images[index_B], first, seed=self._seed, how=self._augmentation)
        self.position += self._batch
        return {
            "inputs": normalise(pixels_BCHW, self._images),
            "targets": torch.from_numpy(self._images.train_labels[index_B]),
        }

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.position = state["position"]


def augment(pixels_BCHW: Bytes, position: int, *, seed: int, how: str) -> Bytes:
    """Return images at `position` and on moved (the border is black) and mirrored, `how` one of AUGMENTATIONS."""
    if how == "none":
        return pixels_BCHW
    bits_B = counter_hash(stable_seed(seed, "augment"), position + np.arange(len(pixels_BCHW), dtype=np.uint64))
    if "flip" in how:
        mirror_B = (bits_B >> np.uint64(63)).astype(bool)
        pixels_BCHW = np.where(mirror_B[:, None, None, None], pixels_BCHW[..., ::-1], pixels_BCHW)
    if "shift" in how:
        rows, columns = pixels_BCHW.shape[2:]
        down_B, down = _draw(bits_B, rows // SHIFT_SHARE)
        right_B, right = _draw(bits_B >> np.uint64(24), columns // SHIFT_SHARE)
        padded = np.pad(pixels_BCHW, ((0, 0), (0, 0), (down, down), (right, right)))
        row_BH = down_B[:, None] + np.arange(rows)
        column_BW = right_B[:, None] + np.arange(columns)
        each_B = np.arange(len(padded))[:, None, None]
        pixels_BCHW = padded[each_B, :, row_BH[:, :, None], column_BW[:, None, :]].transpose(0, 3, 1, 2)
    return pixels_BCHW


def _draw(bits_B: NDArray[np.uint64], most: int) -> tuple[NDArray[np.int64], int]:
    """Return integers in [0, 2 most] from the low 24 bits, and `most`."""
    return ((bits_B & np.uint64(0xFFFFFF)) % np.uint64(2 * most + 1)).astype(np.int64), most


def normalise(pixels_BCHW: Bytes, images: ImageSet) -> Tensor:
    """Return float32 inputs with the training set's mean 0 and standard deviation 1 in each channel."""
    mean_C11 = torch.tensor(images.train_mean).view(-1, 1, 1) * 255
    scale_C11 = 1 / (torch.tensor(images.train_stddev).view(-1, 1, 1) * 255)
    return (torch.from_numpy(np.ascontiguousarray(pixels_BCHW)).float() - mean_C11) * scale_C11


def counter_hash(seed: int, counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 random bits for each counter: a function of (seed, counter) alone, in every version of numpy.

    Source: splitmix64, Steele et al. 2014, doi:10.1145/2660193.2660195, as a hash of its own counter.
    """
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
        return mixed
