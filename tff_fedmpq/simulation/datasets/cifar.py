"""CIFAR-10 and CIFAR-100, from the official files or through Keras' download.

The official files are pickles, which can run any code when read; they are read with
an unpickler that knows NumPy arrays and nothing else.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import pickle
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tff_fedmpq.simulation.datasets.image_dataset import (
    DatasetError,
    DatasetNotFoundError,
    ImageDataset,
    check_label_range,
    one_line,
)
from tff_fedmpq.simulation.datasets.locations import (
    DATA_DIR_VARIABLE,
    find_folder,
    keras_directory,
)
from tff_fedmpq.simulation.files import PathLike

# How long to wait for a sign of life from a download server.
_CONNECT_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class _Cifar:
    """The official "python version" of a CIFAR.

    Attributes:
      name: Of the data set, for `load` and in `tf.keras.datasets`.
      title: Of the data set, for people.
      folder: Name of the official folder.
      train_files: Pairs of file name and number of images.
      test_file: The same for the test set.
      label_key: Key of the labels in the files.
      num_classes: The number of classes.
      url: Of the official archive.
    """

    name: str
    title: str
    folder: str
    train_files: tuple[tuple[str, int], ...]
    test_file: tuple[str, int]
    label_key: str
    num_classes: int
    url: str


_CIFAR10 = _Cifar(
    name="cifar10",
    title="CIFAR-10",
    folder="cifar-10-batches-py",
    train_files=tuple((f"data_batch_{i}", 10_000) for i in range(1, 6)),
    test_file=("test_batch", 10_000),
    label_key="labels",
    num_classes=10,
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
_CIFAR100 = _Cifar(
    name="cifar100",
    title="CIFAR-100",
    folder="cifar-100-python",
    train_files=(("train", 50_000),),
    test_file=("test", 10_000),
    label_key="fine_labels",
    num_classes=100,
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
)

# NumPy's array constructor is private and has moved between NumPy's versions; an
# array's own reduction names the one of the version that is installed.
_RECONSTRUCT: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
_PICKLE_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads Python's plain values and NumPy arrays; refuses every other object."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _PICKLE_GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no official file does, refused"
            ) from None


def load_cifar10(data_dir: PathLike | None = None) -> ImageDataset:
    """Loads CIFAR-10: 50,000 training and 10,000 test images of 32x32, 10 classes.

    Args:
      data_dir: Where it is; see `locations`, also for None.

    Raises:
      DatasetNotFoundError: It was not found and could not be downloaded.
      DatasetError: It was found and is damaged.
    """
    return _load_cifar(_CIFAR10, data_dir)


def load_cifar100(data_dir: PathLike | None = None) -> ImageDataset:
    """Loads CIFAR-100 with its 100 fine labels; otherwise as `load_cifar10`."""
    return _load_cifar(_CIFAR100, data_dir)


def _load_cifar(cifar: _Cifar, data_dir: PathLike | None) -> ImageDataset:
    folder = find_folder(cifar.folder, cifar.test_file[0], data_dir)
    if folder is None:
        return _download_cifar(cifar)
    parts = [_read_cifar(folder / name, n, cifar) for name, n in cifar.train_files]
    test_images, test_labels = _read_cifar(
        folder / cifar.test_file[0], cifar.test_file[1], cifar
    )
    return ImageDataset(
        name=cifar.name,
        source=str(folder),
        train_images=np.concatenate([images for images, _ in parts]),
        train_labels=np.concatenate([labels for _, labels in parts]),
        test_images=test_images,
        test_labels=test_labels,
        num_classes=cifar.num_classes,
    )


def _read_cifar(
    path: pathlib.Path, count: int, cifar: _Cifar
) -> tuple[np.ndarray, np.ndarray]:
    """Reads images uint8[count, 32, 32, 3] and labels int32[count] of one file."""
    mend = f"unpack {cifar.url} again, or give another data_dir"
    data, labels = _unpickle_cifar(path, cifar, mend)
    if data.dtype != np.uint8 or data.shape != (count, 3 * 32 * 32):
        raise DatasetError(
            f"{path}: expected images uint8[{count}, 3072], found "
            f"{data.dtype}{list(data.shape)}; {mend}."
        )
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise DatasetError(
            f"{path}: expected {count} integer labels, found "
            f"{labels.dtype}{list(labels.shape)}; {mend}."
        )
    check_label_range(path, labels, cifar.num_classes, mend)
    images = data.reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.int32)


def _unpickle_cifar(
    path: pathlib.Path, cifar: _Cifar, mend: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels and labels of a file as they stand in it, unchecked."""
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
        # Keys are bytes in the official files, which Python 2 wrote, and strings in
        # files of the same layout written since.
        fields = {os.fsdecode(key): value for key, value in content.items()}
        return np.asarray(fields["data"]), np.asarray(fields[cifar.label_key])
    except FileNotFoundError:
        raise DatasetError(
            f"{path}: expected a file of {cifar.title}, found none; {mend}."
        ) from None
    except Exception as error:
        # A damaged pickle can raise nearly anything, a MemoryError included.
        raise DatasetError(
            f"{path}: not a readable file of {cifar.title} ({one_line(error)}); {mend}."
        ) from error


def _download_cifar(cifar: _Cifar) -> ImageDataset:
    """Downloads with Keras, after a short look whether the server answers at all."""
    archive = keras_directory() / f"{cifar.folder}.tar.gz"
    # With the archive at hand Keras needs no network.
    obstacle = None if archive.is_file() else _connection_obstacle(cifar.url)
    if obstacle is None:
        logging.info("Downloading %s with Keras.", cifar.title)
        try:
            train, test = getattr(tf.keras.datasets, cifar.name).load_data()
        except Exception as error:  # Keras raises a bare Exception.
            obstacle = one_line(error)
    if obstacle is not None:
        raise DatasetNotFoundError(
            f"{cifar.title} was found neither in ${DATA_DIR_VARIABLE} nor in "
            f"{keras_directory()}, and its download failed ({obstacle}); unpack "
            f"{cifar.url} into a directory and give that as data_dir."
        )
    return ImageDataset(
        name=cifar.name,
        source="keras download",
        train_images=train[0],
        train_labels=train[1].reshape(-1).astype(np.int32),
        test_images=test[0],
        test_labels=test[1].reshape(-1).astype(np.int32),
        num_classes=cifar.num_classes,
    )


def _connection_obstacle(url: str) -> str | None:
    """Returns why `url` cannot be reached, or None where its server answers.

    Keras downloads without any time limit. The look happens in a thread of its own
    because looking up a name has no time limit either.
    """
    answers: list[str | None] = []

    def knock() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=_CONNECT_SECONDS).close()
        except urllib.error.HTTPError:
            answers.append(None)  # Somebody answers; Keras will say what is wrong.
        except (OSError, ValueError) as error:
            answers.append(f"cannot reach {url}: {error}")
        else:
            answers.append(None)

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    return answers[0] if answers else f"no answer from {url}"
