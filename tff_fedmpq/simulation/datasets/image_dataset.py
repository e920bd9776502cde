"""What every loader returns, its checks, and the errors of loaders."""

from __future__ import annotations

import dataclasses

import numpy as np

# Images that are converted to wide integers at a time by `channel_statistics`.
_CHUNK = 1024


class DatasetError(ValueError):
    """A data set is damaged, or is not what it is said to be."""


class DatasetNotFoundError(DatasetError):
    """A data set is in none of the places where it was looked for."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled images, split into a training and a test set.

    Attributes:
      name: What `load` calls it, such as `"cifar10"`.
      source: Where it came from, for people: an absolute directory, "keras
        download" or "scikit-learn digits (embedded)".
      train_images: uint8[n, h, w, 3], 0..255.
      train_labels: int32[n], 0..num_classes-1.
      test_images: uint8[m, h, w, 3], 0..255.
      test_labels: int32[m], 0..num_classes-1.
      num_classes: The number of classes.
    """

    name: str
    source: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int

    def __post_init__(self) -> None:
        where = f"{self.name} ({self.source})"
        _check_split(
            f"{where}, train", self.train_images, self.train_labels, self.num_classes
        )
        _check_split(
            f"{where}, test", self.test_images, self.test_labels, self.num_classes
        )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise DatasetError(
                f"{where}: expected training and test images of one shape, found "
                f"{self.train_images.shape[1:]} and {self.test_images.shape[1:]}; "
                "resize one of them."
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and standard deviation of each channel of the training images.

        The sums are exact integers, taken over a chunk of images at a time: no
        wider copy of all images is ever in memory.

        Returns:
          Mean and standard deviation, both float32[3], in 0..255 units. The
          deviation of a channel that never changes is given as 1, so that images
          can be divided by it.
        """
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


def _check_split(
    where: str, images: np.ndarray, labels: np.ndarray, num_classes: int
) -> None:
    """Raises unless images are uint8[n, h, w, 3], labels int32[n], and n > 0."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise DatasetError(
            f"{where}: expected images uint8[n, h, w, 3], found "
            f"{images.dtype}{list(images.shape)}; convert them first."
        )
    if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
        raise DatasetError(
            f"{where}: expected labels int32[{len(images)}], one per image, found "
            f"{labels.dtype}{list(labels.shape)}; convert them first."
        )
    if not images.size:
        raise DatasetError(f"{where}: expected at least one image, found none.")
    check_label_range(where, labels, num_classes, "correct the labels")


def check_label_range(
    where: object, labels: np.ndarray, num_classes: int, mend: str
) -> None:
    """Raises unless labels are 0..num_classes-1.

    Args:
      where: What the error begins with: a file, or a data set and its split.
      labels: Integers [n], n > 0.
      num_classes: The number of classes.
      mend: What the error ends with: how to mend it, without a full stop.

    Raises:
      DatasetError: A label is out of range.
    """
    lowest, highest = labels.min(), labels.max()
    if lowest < 0 or highest >= num_classes:
        raise DatasetError(
            f"{where}: expected labels 0..{num_classes - 1}, found "
            f"{lowest}..{highest}; {mend}."
        )


def one_line(error: Exception) -> str:
    """Returns type and message of an error without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())
