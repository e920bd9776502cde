"""Tiny-ImageNet, from its official folder of JPEG files."""

from __future__ import annotations

import concurrent.futures
import pathlib

import numpy as np

from tff_fedmpq.files import PathLike
from tff_fedmpq.simulation.data import image_dataset
from tff_fedmpq.simulation.data.augmentation import random_crop_and_flip
from tff_fedmpq.simulation.data.image_dataset import DatasetError, ImageDataset

_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_REMEDY = f"unpack {_URL} again, or give another data_dir"
_SIZE = 64
_Files = list[tuple[pathlib.Path, int]]  # Paths and labels.


def load_tiny_imagenet(data_dir: PathLike | None = None) -> ImageDataset:
    """Loads Tiny-ImageNet in its official layout, or a subset of it; see `load`.

    Labels are line numbers of `wnids.txt`, from 0. The test set is the official
    validation set, as labels of the test set are not public. Nothing is downloaded.
    """
    folder = image_dataset.find_folder("tiny-imagenet-200", "wnids.txt", data_dir)
    if folder is None:
        raise image_dataset.not_found_error("Tiny-ImageNet", _URL)
    wnids = _read_lines(folder / "wnids.txt")
    if not all(map(str.isalnum, wnids)):
        raise DatasetError(f"{folder / 'wnids.txt'}: expected names; {_REMEDY}.")
    train = _train_files(folder / "train", wnids)
    test = _test_files(folder / "val", wnids)
    return ImageDataset(
        "tiny_imagenet",
        str(folder),
        *_read_images(train),
        *_read_images(test),
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


def _train_files(folder: pathlib.Path, wnids: list[str]) -> _Files:
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
    return [(path, label) for label, paths in enumerate(classes) for path in paths]


def _test_files(folder: pathlib.Path, wnids: list[str]) -> _Files:
    """Lists the images of `val/val_annotations.txt` in its order."""
    annotations = folder / "val_annotations.txt"
    files = []
    for number, line in enumerate(_read_lines(annotations), start=1):
        name, *fields = line.split("\t")
        is_image = name.endswith(".JPEG") and "/" not in name
        if not is_image or not fields or fields[0] not in wnids:
            raise DatasetError(
                f"{annotations}, line {number}: expected an image and a class of "
                f"wnids.txt, found {line[:60]!r}; {_REMEDY}."
            )
        files.append((folder / "images" / name, wnids.index(fields[0])))
    return files


def _read_images(files: _Files) -> tuple[np.ndarray, np.ndarray]:
    """Reads RGB images uint8[n, 64, 64, 3], also of grey ones, and labels int32[n]."""
    from PIL import Image

    def decode(path: pathlib.Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                size = image.size  # Known before the pixels are decoded.
                if size == (_SIZE, _SIZE):
                    return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            problem = f"not a readable image ({image_dataset.one_line(error)})"
            raise DatasetError(f"{path}: {problem}; {_REMEDY}.") from error
        problem = f"expected {_SIZE}x{_SIZE} pixels, found {size[0]}x{size[1]}"
        raise DatasetError(f"{path}: {problem}; {_REMEDY}.")

    images = np.empty([len(files), _SIZE, _SIZE, 3], np.uint8)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for index, pixels in enumerate(pool.map(decode, [path for path, _ in files])):
            images[index] = pixels
    return images, np.array([label for _, label in files], np.int32)
