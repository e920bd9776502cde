"""`ImageDataset`, and what its loaders share: errors, checks, the search for files."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tff_fedmpq.files import PathLike

DATA_DIR_VARIABLE = "TFF_FEDMPQ_DATA_DIR"
KERAS_DIRECTORY = "~/.keras/datasets"
_CHUNK = 1024  # Number of images that are converted to wide integers at a time.


class DatasetError(ValueError):
    """A data set is damaged or inconsistent."""


class DatasetNotFoundError(DatasetError):
    """A data set is in none of the places that were searched."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled training and test images, and how a network is trained on them.

    Attributes:
      name: Name of the data set in `load`, such as "cifar10".
      source: Origin of the images: an absolute directory, "keras download" or
        "scikit-learn digits (embedded)".
      train_images: Images uint8[n, h, w, c], 0..255.
      train_labels: Class numbers int32[n], 0..num_classes-1.
      test_images: Images uint8[m, h, w, c], 0..255.
      test_labels: Class numbers int32[m], 0..num_classes-1.
      num_classes: Number of classes.
      model: Name of the default network in `simulation.models`.
      augment: Augmentation of training images, (images [n, h, w, c], stateless seed
        int32[2]) -> images; None where these images are not augmented.
      differing_files: Names of files that are not those that were published.
    """

    name: str
    source: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    model: str = "resnet20"
    augment: Callable[..., Any] | None = None
    differing_files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        train, test, remedy = self.train_images, self.test_images, "correct the arrays"
        where, num_classes = f"{self.name} ({self.source})", self.num_classes
        check_examples(f"{where}, train", train, self.train_labels, num_classes, remedy)
        check_examples(f"{where}, test", test, self.test_labels, num_classes, remedy)
        if train.shape[1:] != test.shape[1:]:
            raise DatasetError(
                f"{where}: expected training and test images of one shape, found "
                f"{train.shape[1:]} and {test.shape[1:]}; resize one of them."
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and standard deviation of the training images, float32[c] each.

        Both are in 0..255 units. A constant channel has the deviation 1, to divide by.
        """
        # Exact sums of integers, without a wider copy of all images.
        total = np.zeros(self.train_images.shape[-1], np.int64)
        squares = np.zeros_like(total)
        for start in range(0, len(self.train_images), _CHUNK):
            chunk = self.train_images[start : start + _CHUNK].astype(np.int32)
            total += chunk.sum(axis=(0, 1, 2), dtype=np.int64)
            squares += np.square(chunk).sum(axis=(0, 1, 2), dtype=np.int64)
        count = self.train_images.size // self.train_images.shape[-1]
        mean = total / count
        variance = np.maximum(squares / count - np.square(mean), 0.0)
        deviation = np.where(variance > 0.0, np.sqrt(variance), 1.0)
        return mean.astype(np.float32), deviation.astype(np.float32)


def check_examples(
    where: object, images: np.ndarray, labels: np.ndarray, num_classes: int, remedy: str
) -> None:
    """Raises a `DatasetError` unless images and labels are as in `ImageDataset`."""
    problem = None
    if images.dtype != np.uint8 or images.ndim != 4:
        problem = f"images uint8[n, h, w, c], found {describe(images)}"
    elif labels.dtype != np.int32 or labels.shape != images.shape[:1]:
        problem = f"labels int32[{len(images)}], found {describe(labels)}"
    elif not images.size:
        problem = "at least one image, found none"
    elif labels.min() < 0 or labels.max() >= num_classes:
        problem = f"labels 0..{num_classes - 1}, found {labels.min()}..{labels.max()}"
    if problem:
        raise DatasetError(f"{where}: expected {problem}; {remedy}.")


def describe(array: np.ndarray) -> str:
    """Returns dtype and shape, such as "uint8[20, 3072]"."""
    return f"{array.dtype}{list(array.shape)}"


def one_line(error: Exception) -> str:
    """Returns type and message of an error without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def find_folder(
    folder: str, marker: str, data_dir: PathLike | None
) -> pathlib.Path | None:
    """Returns the absolute directory of a data set, or None where it is not found.

    `folder` is its official name; a file `marker` in it tells it if it was renamed.
    With `data_dir`, the folder or the directory that contains it, no other place is
    searched, and it is a `DatasetNotFoundError` if this has none. Otherwise the places
    are the directory named by the environment variable `TFF_FEDMPQ_DATA_DIR`, which has
    to exist (else `DatasetError`), then `KERAS_DIRECTORY`.
    """
    named = os.environ.get(DATA_DIR_VARIABLE)
    if named and not data_dir and not pathlib.Path(named).expanduser().is_dir():
        raise DatasetError(
            f"{DATA_DIR_VARIABLE}={named}: expected a directory, found none; correct "
            "the environment variable or unset it."
        )
    places = [data_dir] if data_dir else [named or KERAS_DIRECTORY, KERAS_DIRECTORY]
    for place in (pathlib.Path(place).expanduser() for place in places):
        if (place / folder).is_dir():
            return (place / folder).absolute()
        if place.is_dir() and (place.name == folder or (place / marker).is_file()):
            return place.absolute()
    if data_dir:
        raise DatasetNotFoundError(
            f"{os.fspath(data_dir)}: expected the folder {folder} in it, found none; "
            "give the directory that contains it, or leave data_dir out."
        )
    return None


def not_found_error(title: str, url: str, details: str = "") -> DatasetNotFoundError:
    """Returns the error for a data set that `find_folder` did not find."""
    return DatasetNotFoundError(
        f"{title} was found neither in ${DATA_DIR_VARIABLE} nor in {KERAS_DIRECTORY}"
        f"{details}; unpack {url} into a directory and give that as data_dir."
    )
