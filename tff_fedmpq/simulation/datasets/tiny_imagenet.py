"""Tiny-ImageNet, from its official folder of JPEG files."""

from __future__ import annotations

import concurrent.futures
import pathlib
from collections.abc import Sequence

import numpy as np

from tff_fedmpq.simulation.datasets.image_dataset import (
    DatasetError,
    DatasetNotFoundError,
    ImageDataset,
    one_line,
)
from tff_fedmpq.simulation.datasets.locations import (
    DATA_DIR_VARIABLE,
    find_folder,
    keras_directory,
)
from tff_fedmpq.simulation.files import PathLike

_TINY_FOLDER = "tiny-imagenet-200"
_TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_TINY_SIZE = 64
_TINY_MEND = f"unpack {_TINY_URL} again, or give another data_dir"


def load_tiny_imagenet(data_dir: PathLike | None = None) -> ImageDataset:
    """Loads Tiny-ImageNet in its official layout, whole or a subset of its images.

    The labels count the lines of `wnids.txt`. The test set is the official
    validation set, whose labels are public; the official test set has none.

    Args:
      data_dir: Where it is; see `locations`, also for None.

    Raises:
      DatasetNotFoundError: It was not found; there is no automatic download.
      DatasetError: It was found and is damaged.
    """
    folder = find_folder(_TINY_FOLDER, "wnids.txt", data_dir)
    if folder is None:
        raise DatasetNotFoundError(
            f"Tiny-ImageNet was found neither in ${DATA_DIR_VARIABLE} nor in "
            f"{keras_directory()}; unpack {_TINY_URL} into a directory and give that "
            "as data_dir."
        )
    wnids = _read_lines(folder / "wnids.txt")
    train_paths, train_labels = _tiny_train_files(folder / "train", wnids)
    test_paths, test_labels = _tiny_test_files(folder / "val", wnids)
    return ImageDataset(
        name="tiny_imagenet",
        source=str(folder),
        train_images=_decode_images(train_paths),
        train_labels=np.asarray(train_labels, np.int32),
        test_images=_decode_images(test_paths),
        test_labels=np.asarray(test_labels, np.int32),
        num_classes=len(wnids),
    )


def _read_lines(path: pathlib.Path) -> list[str]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); {_TINY_MEND}.") from None
    return [line for line in lines if line.strip()]


def _tiny_train_files(
    folder: pathlib.Path, wnids: Sequence[str]
) -> tuple[list[pathlib.Path], list[int]]:
    """Lists `train/<wnid>/images/*.JPEG` in the order of classes, then of names."""
    present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if present != set(wnids) or len(wnids) != len(present):
        raise DatasetError(
            f"{folder}: expected one folder for each of the {len(wnids)} lines of "
            f"wnids.txt, found {len(present & set(wnids))} of them and "
            f"{len(present - set(wnids))} others; {_TINY_MEND}."
        )
    classes = [sorted((folder / wnid / "images").glob("*.JPEG")) for wnid in wnids]
    # All classes are of one size, in the official data and in its subsets alike, so
    # that a smaller one was lost on the way.
    expected = max(len(paths) for paths in classes)
    for wnid, paths in zip(wnids, classes):
        if len(paths) != expected or not paths:
            raise DatasetError(
                f"{folder / wnid / 'images'}: expected {expected or 'some'} images as "
                f"in the other classes, found {len(paths)}; {_TINY_MEND}."
            )
    labels = [label for label, paths in enumerate(classes) for _ in paths]
    return [path for paths in classes for path in paths], labels


def _tiny_test_files(
    folder: pathlib.Path, wnids: Sequence[str]
) -> tuple[list[pathlib.Path], list[int]]:
    """Returns files and labels of `val/val_annotations.txt`, in its order."""
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    annotations = folder / "val_annotations.txt"
    paths, labels = [], []
    for number, line in enumerate(_read_lines(annotations), start=1):
        name, *rest = line.split("\t")
        if not rest or rest[0] not in label_of:
            raise DatasetError(
                f"{annotations}, line {number}: expected an image and a class of "
                f"wnids.txt, found {line[:60]!r}; {_TINY_MEND}."
            )
        paths.append(folder / "images" / name)
        labels.append(label_of[rest[0]])
    return paths, labels


def _decode_images(paths: Sequence[pathlib.Path]) -> np.ndarray:
    """Decodes files to uint8[n, 64, 64, 3]; greyscale images get three channels."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "Tiny-ImageNet's JPEG files need Pillow; install it: pip install pillow."
        ) from error
    images = np.empty((len(paths), _TINY_SIZE, _TINY_SIZE, 3), np.uint8)

    def decode(index: int) -> None:
        try:
            with Image.open(paths[index]) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise DatasetError(
                f"{paths[index]}: not a readable image ({one_line(error)}); "
                f"{_TINY_MEND}."
            ) from error
        if pixels.shape != images.shape[1:]:
            raise DatasetError(
                f"{paths[index]}: expected {_TINY_SIZE}x{_TINY_SIZE} pixels, found "
                f"{pixels.shape[1]}x{pixels.shape[0]}; {_TINY_MEND}."
            )
        images[index] = pixels

    with concurrent.futures.ThreadPoolExecutor() as pool:
        for _ in pool.map(decode, range(len(paths))):
            pass
    return images
