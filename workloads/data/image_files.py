"""Readers of image files: idx, plain or gzipped, and trees of pictures with a folder a class.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from workloads.base import DataError
from workloads.data.image_set import Bytes, Part

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
IDX_BYTES = 8  # the idx code of unsigned bytes: a file opens with 0, 0, this, the number of dimensions


def idx_file(folder: Path, name: str) -> Path | None:
    """Return the idx file of a name, plain or gzipped, or None."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read_idx(path: Path, dimensions: int) -> Bytes:
    """Return an idx file of unsigned bytes. Raises DataError.

    Source of the format: the page of MNIST, LeCun et al.; sizes are big-endian 32-bit integers.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"folder: cannot read {path}: {error}") from error
    header = 4 + 4 * dimensions
    if len(content) < header or tuple(content[:4]) != (0, 0, IDX_BYTES, dimensions):
        got = content[:4].hex(" ")
        raise DataError(
            f"folder: {path} must be an idx file of bytes in {dimensions} dimensions, it opens with {got!r}"
        )
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", dimensions, offset=4))
    if len(content) - header != math.prod(shape):
        raise DataError(f"folder: {path} must hold {shape} bytes, it holds {len(content) - header}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_idx_part(folder: Path, prefix: str) -> Part:
    """Return the images and labels of one part, `prefix` "train" or "t10k". Raises DataError."""
    paths = []
    for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        path = idx_file(folder, name)
        if path is None:
            raise DataError(f"folder: {folder} has no {name} (nor {name}.gz)")
        paths.append(path)
    return read_idx(paths[0], 3)[:, None], read_idx(paths[1], 1).astype(np.int64)


def class_names(folder: Path) -> list[str]:
    """Return the sub-folders, sorted: class k is the k-th. Raises DataError."""
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise DataError(f"folder: {folder} must have a sub-folder for each of at least 2 classes, got {names}")
    return names


def read_tree(folder: Path, names: Sequence[str], *, size: int, channels: int) -> Part:
    """Return all images of the class folders `names`. Raises DataError."""
    images, labels = [], []
    for label, name in enumerate(names):
        for path in sorted((folder / name).rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                images.append(read_image(path, size=size, channels=channels))
                labels.append(label)
    if not images:
        raise DataError(f"folder: no images ({', '.join(SUFFIXES)}) in the class folders of {folder}")
    return np.stack(images), np.array(labels, dtype=np.int64)


def read_image(path: Path, *, size: int, channels: int) -> Bytes:
    """Return one image file as [C, size, size]. Raises DataError."""
    from PIL import Image as Pillow  # heavy, and of no use to other sources
    from PIL import ImageOps

    try:
        with Pillow.open(path) as opened:
            image: Pillow.Image = opened
            if image.has_transparency_data:
                over = image.convert("RGBA")
                image = Pillow.alpha_composite(Pillow.new("RGBA", over.size, "white"), over)
            mode = "RGB" if channels == 3 else "L"
            fitted = ImageOps.fit(image.convert(mode), (size, size), Pillow.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
        raise DataError(f"folder: cannot read the image {path}: {error}") from error
    pixels = np.asarray(fitted, dtype=np.uint8).reshape(size, size, channels)
    return pixels.transpose(2, 0, 1)
