"""Tests of the Tiny-ImageNet loader, on small files in the official layout.

That on real data runs where the directory `TFF_FEDMPQ_DATA_DIR` has it.
"""

import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from tff_fedmpq.simulation import data as datasets
from tff_fedmpq.simulation.data import (
    DATA_DIR_VARIABLE,
    DatasetError,
    DatasetNotFoundError,
)
from tff_fedmpq.simulation.data.augmentation import random_crop_and_flip

# Looked up before any test removes the variable.
REAL_TINY = pathlib.Path(os.environ.get(DATA_DIR_VARIABLE) or "nowhere")
WNIDS = ["n03", "n01", "n02"]


def write_tiny(parent):
    """Three classes, two training images each and three for validation."""
    folder = parent / "tiny-imagenet-200"
    rng = np.random.default_rng(0)

    def save(path, mode="RGB", size=64):
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size, size, 3) if mode == "RGB" else (size, size)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path, "JPEG")

    for wnid in WNIDS:
        save(folder / "train" / wnid / "images" / f"{wnid}_0.JPEG")
        save(folder / "train" / wnid / "images" / f"{wnid}_1.JPEG", mode="L")
    lines = []
    for number, wnid in enumerate(["n02", "n03", "n02"]):
        save(folder / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    return folder


def test_tiny_imagenet_layout(home, tmp_path):
    folder = write_tiny(tmp_path)
    dataset = datasets.load("tiny_imagenet", tmp_path)

    assert (dataset.name, dataset.source) == ("tiny_imagenet", str(folder))
    assert dataset.num_classes == 3
    assert dataset.image_shape == (64, 64, 3)
    assert (dataset.model, dataset.augment) == ("resnet44", random_crop_and_flip)
    np.testing.assert_array_equal(dataset.train_labels, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(dataset.test_labels, [2, 0, 2])
    with Image.open(folder / "train/n01/images/n01_0.JPEG") as image:
        np.testing.assert_array_equal(dataset.train_images[2], image)
    with Image.open(folder / "train/n01/images/n01_1.JPEG") as image:
        grey = np.asarray(image)
    for channel in range(3):
        np.testing.assert_array_equal(dataset.train_images[3, ..., channel], grey)


def shrink(path):
    Image.new("RGB", (32, 48)).save(path, "JPEG")


@pytest.mark.parametrize(
    "file, damage, message",
    [
        ("wnids.txt", pathlib.Path.unlink, "wnids.txt: cannot be read"),
        (
            "wnids.txt",
            lambda p: p.write_text("n03\nn01\n"),
            "the 2 lines.* 3 folders",
        ),
        (
            "wnids.txt",
            lambda p: p.write_text("n03\n" * 4),
            "the 4 lines.* 3 folders",
        ),
        ("train", shutil.rmtree, "found 0 folders and 0 to 0 images"),
        (
            "train/n01/images/n01_0.JPEG",
            pathlib.Path.unlink,
            "3 folders and 1 to 2",
        ),
        ("train/n01/images/n01_0.JPEG", shrink, "expected 64x64 .* found 32x48"),
        (
            "train/n01/images/n01_0.JPEG",
            lambda p: p.write_bytes(p.read_bytes()[:700]),
            "n01_0.JPEG: not a readable image",
        ),
        ("val/images/val_1.JPEG", pathlib.Path.unlink, "val_1.JPEG: not a readable"),
        (
            "val/val_annotations.txt",
            lambda p: p.write_text("val_0.JPEG\tn09\t0\n"),
            "line 1: expected an image and a class of wnids.txt",
        ),
        (
            "val/val_annotations.txt",
            lambda p: p.write_text("val_0.JPEG\tn02\t0\nval_1"),
            "line 2: expected an image and a class of wnids.txt",
        ),
    ],
)
def test_damaged_tiny_imagenet(home, tmp_path, file, damage, message, check_one_line):
    folder = write_tiny(tmp_path)
    damage(folder / file)
    # The folder itself is given: without wnids.txt only its name tells it.
    with pytest.raises(DatasetError, match=message) as error:
        datasets.load_tiny_imagenet(folder)
    check_one_line(error, folder)


def test_tiny_imagenet_is_not_downloaded(home):
    with pytest.raises(DatasetNotFoundError, match="unpack http://cs231n"):
        datasets.load_tiny_imagenet()


@pytest.mark.skipif(
    not (REAL_TINY / "tiny-imagenet-200").is_dir(),
    reason=f"no tiny-imagenet-200 in ${DATA_DIR_VARIABLE}",
)
def test_real_tiny_imagenet():
    dataset = datasets.load_tiny_imagenet(REAL_TINY)
    assert dataset.num_classes == 200
    for labels in (dataset.train_labels, dataset.test_labels):
        assert len(set(np.bincount(labels, minlength=200))) == 1


@pytest.mark.faults
@pytest.mark.parametrize("name", ["../../secret.JPEG", "/secret.JPEG", "..", ""])
def test_annotations_stay_in_their_folder(tmp_path, name):
    folder = write_tiny(tmp_path)
    annotations = folder / "val" / "val_annotations.txt"
    annotations.write_text(f"{name}\t{WNIDS[0]}\t0\t0\t1\t1\n")
    with pytest.raises(DatasetError, match="line 1: expected an image and a class"):
        datasets.load("tiny_imagenet", tmp_path)


@pytest.mark.faults
def test_classes_stay_in_their_folder(tmp_path):
    folder = write_tiny(tmp_path)
    (folder / "wnids.txt").write_text("../../elsewhere\n")
    with pytest.raises(DatasetError, match="wnids.txt: expected names"):
        datasets.load("tiny_imagenet", tmp_path)


@pytest.mark.faults
def test_a_large_image_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    folder = write_tiny(tmp_path)
    path = next((folder / "train" / WNIDS[0] / "images").glob("*.JPEG"))
    Image.fromarray(np.zeros([300, 200, 3], np.uint8)).save(path, "JPEG")
    decoded = []
    load = Image.Image.convert

    def convert(image, mode):
        decoded.append(image.size)
        return load(image, mode)

    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(DatasetError, match="expected 64x64 pixels, found 200x300"):
        datasets.load("tiny_imagenet", tmp_path)
    assert (200, 300) not in decoded
