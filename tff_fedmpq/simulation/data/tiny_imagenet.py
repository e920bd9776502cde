"""Tiny-ImageNet, from its official folder of JPEG files."""

from __future__ import annotations

import concurrent.futures
import pathlib
from collections.abc import Sequence

import numpy as np

from tff_fedmpq.files import PathLike
from tff_fedmpq.simulation.data import image_dataset
from tff_fedmpq.simulation.data.augmentation import random_crop_and_flip
from tff_fedmpq.simulation.data.image_dataset import DatasetError, ImageDataset

_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_REMEDY = f"unpack {_URL} again, or give another data_dir"
_SIZE = 64


def load_tiny_imagenet(data_dir: PathLike | None = None) -> ImageDataset:
    """Loads Tiny-ImageNet in its official layout, or a subset of its images.

    Labels are line numbers of `wnids.txt`, from 0. The test set is the official
    validation set, because the labels of the official test set are not public.
    It is not downloaded; `data_dir` and errors are those of `simulation.data.load`.
    """
    folder = image_dataset.find_folder("tiny-imagenet-200", "wnids.txt", data_dir)
    if folder is None:
        raise image_dataset.not_found_error("Tiny-ImageNet", _URL)
    wnids = _read_lines(folder / "wnids.txt")
    train_paths, train_labels = _train_files(folder / "train", wnids)
    test_paths, test_labels = _test_files(folder / "val", wnids)
    return ImageDataset(
        name="tiny_imagenet",
        source=str(folder),
        train_images=_decode_images(train_paths),
        train_labels=np.asarray(train_labels, np.int32),
        test_images=_decode_images(test_paths),
        test_labels=np.asarray(test_labels, np.int32),
        num_classes=len(wnids),
        model="resnet44",
        augment=random_crop_and_flip,
    )


def _read_lines(path: pathlib.Path) -> list[str]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); {_REMEDY}.") from None
    return [line for line in lines if line.strip()]


def _train_files(
    folder: pathlib.Path, wnids: Sequence[str]
) -> tuple[list[pathlib.Path], list[int]]:
    """Lists `train/<wnid>/images/*.JPEG` in the order of classes, then of names."""
    classes = [sorted((folder / wnid / "images").glob("*.JPEG")) for wnid in wnids]
    # In the official data and in its subsets, all classes are equally large.
    sizes = {len(paths) for paths in classes}
    num_folders = len(list(folder.glob("*")))
    if len(sizes) != 1 or 0 in sizes or num_folders != len(wnids):
        raise DatasetError(
            f"{folder}: expected a folder for each of the {len(wnids)} lines of "
            f"wnids.txt, with equally many images, found {num_folders} folders and "
            f"{min(sizes, default=0)} to {max(sizes, default=0)} images; {_REMEDY}."
        )
    labels = [label for label, paths in enumerate(classes) for _ in paths]
    return [path for paths in classes for path in paths], labels


def _test_files(
    folder: pathlib.Path, wnids: Sequence[str]
) -> tuple[list[pathlib.Path], list[int]]:
    """Returns files and labels of `val/val_annotations.txt`, in its order."""
    annotations = folder / "val_annotations.txt"
    paths, labels = [], []
    for number, line in enumerate(_read_lines(annotations), start=1):
        name, *fields = line.split("\t")
        if not fields or fields[0] not in wnids:
            raise DatasetError(
                f"{annotations}, line {number}: expected an image and a class of "
                f"wnids.txt, found {line[:60]!r}; {_REMEDY}."
            )
        paths.append(folder / "images" / name)
        labels.append(wnids.index(fields[0]))
    return paths, labels


def _decode_images(paths: Sequence[pathlib.Path]) -> np.ndarray:
    """Decodes files to uint8[n, 64, 64, 3]; greyscale images get three channels."""
    from PIL import Image

    def decode(path: pathlib.Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            problem = image_dataset.one_line(error)
            raise DatasetError(
                f"{path}: not a readable image ({problem}); {_REMEDY}."
            ) from error
        if pixels.shape != (_SIZE, _SIZE, 3):
            raise DatasetError(
                f"{path}: expected {_SIZE}x{_SIZE} pixels, found "
                f"{pixels.shape[1]}x{pixels.shape[0]}; {_REMEDY}."
            )
        return pixels

    images = np.empty((len(paths), _SIZE, _SIZE, 3), np.uint8)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for index, pixels in enumerate(pool.map(decode, paths)):
            images[index] = pixels
    return images
