"""CIFAR-10 and CIFAR-100, from the official files or downloaded by Keras.

The official files are pickles, which can run any code when read; see `array_pickle`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import urllib.error
import urllib.request
from typing import NamedTuple

import numpy as np
from absl import logging

from tff_fedmpq.files import PathLike
from tff_fedmpq.simulation.data import array_pickle, image_dataset
from tff_fedmpq.simulation.data.augmentation import random_crop_and_flip
from tff_fedmpq.simulation.data.image_dataset import DatasetError, ImageDataset

_URL = "https://www.cs.toronto.edu/~kriz/cifar-{}-python.tar.gz"
_CONNECT_SECONDS = 10.0


class _Cifar(NamedTuple):
    """The files of an official "python version"."""

    num_classes: int
    folder: str
    train_files: tuple[str, ...]
    test_file: str
    label_key: str
    md5: tuple[str, ...]  # As published, of the files in this order.

    @property
    def title(self) -> str:
        return f"CIFAR-{self.num_classes}"

    @property
    def url(self) -> str:
        return _URL.format(self.num_classes)


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_CIFAR10 = _Cifar(
    10,
    "cifar-10-batches-py",
    _BATCHES,
    "test_batch",
    "labels",
    (
        "c99cafc152244af753f735de768cd75f",
        "d4bba439e000b95fd0a9bffe97cbabec",
        "54ebc095f3ab1f0389bbae665268c751",
        "634d18415352ddfa80567beed471001a",
        "482c414d41f54cd18b22e5b47cb7c3cb",
        "40351d587109b95175f43aff81a1287e",
    ),
)
_CIFAR100 = _Cifar(
    100,
    "cifar-100-python",
    ("train",),
    "test",
    "fine_labels",
    ("16019d7e3df5f24257cddd939b257f8d", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
)


def load_cifar10(data_dir: PathLike | None = None) -> ImageDataset:
    """Loads CIFAR-10: 50,000 training and 10,000 test images of 32x32; see `load`."""
    return _load_cifar(_CIFAR10, data_dir)


def load_cifar100(data_dir: PathLike | None = None) -> ImageDataset:
    """Loads CIFAR-100 with its 100 fine labels; else as `load_cifar10`."""
    return _load_cifar(_CIFAR100, data_dir)


def _load_cifar(cifar: _Cifar, data_dir: PathLike | None) -> ImageDataset:
    folder = image_dataset.find_folder(cifar.folder, cifar.test_file, data_dir)
    differing: list[str] = []
    if folder is None:
        train, test = _download(cifar)
    else:
        parts = [_read_file(folder / name, cifar) for name in cifar.train_files]
        images, labels = zip(*parts)
        train = np.concatenate(images), np.concatenate(labels)
        test = _read_file(folder / cifar.test_file, cifar)
        differing = _differing_files(folder, cifar)
    return ImageDataset(
        f"cifar{cifar.num_classes}",
        str(folder or "keras download"),
        *train,
        *test,
        num_classes=cifar.num_classes,
        model="resnet20",
        augment=random_crop_and_flip,
        differing_files=tuple(differing),
    )


def _differing_files(folder: pathlib.Path, cifar: _Cifar) -> list[str]:
    """Returns the names of files that are not the published ones, and warns of them."""
    names = *cifar.train_files, cifar.test_file
    contents = ((folder / name).read_bytes() for name in names)
    found = [hashlib.md5(content, usedforsecurity=False) for content in contents]
    triples = zip(names, found, cifar.md5)
    differing = [name for name, md5, known in triples if md5.hexdigest() != known]
    if differing:
        logging.warning(
            "%s: not as %s was published, by their MD5: %s.",
            folder,
            cifar.title,
            ", ".join(differing),
        )
    return differing


def _read_file(path: pathlib.Path, cifar: _Cifar) -> tuple[np.ndarray, np.ndarray]:
    """Reads images uint8[n, 32, 32, 3] and labels int32[n] of one file."""
    remedy = f"unpack {cifar.url} again, or give another data_dir"
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")
        content = array_pickle.load(path.read_bytes())
        # Keys are bytes in the official files, of Python 2, and strings in later ones.
        fields = {os.fsdecode(key): value for key, value in content.items()}
        data = array_pickle.as_array(fields["data"])
        labels = array_pickle.as_array(fields[cifar.label_key])
    except FileNotFoundError:
        raise DatasetError(
            f"{path}: expected a file of {cifar.title}, found none; {remedy}."
        ) from None
    except Exception as error:  # A damaged pickle can raise nearly any error.
        problem = image_dataset.one_line(error)
        raise DatasetError(
            f"{path}: not a readable file of {cifar.title} ({problem}); {remedy}."
        ) from error
    if data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
        found = image_dataset.describe(data)
        raise DatasetError(f"{path}: expected uint8[n, 3072], found {found}; {remedy}.")
    images = np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    if labels.dtype.kind in "iu":
        labels = labels.astype(np.int32)
    image_dataset.check_examples(path, images, labels, cifar.num_classes, remedy)
    return images, labels


def _download(cifar: _Cifar) -> list[tuple[np.ndarray, np.ndarray]]:
    """Downloads with Keras, after a check that the server answers."""
    archive = pathlib.Path(image_dataset.KERAS_DIRECTORY, f"{cifar.folder}.tar.gz")
    try:
        if not archive.expanduser().is_file():
            # Keras has no time limit. An HTTP error is an answer, which Keras reports.
            with contextlib.suppress(urllib.error.HTTPError):
                request = urllib.request.Request(cifar.url, method="HEAD")
                urllib.request.urlopen(request, timeout=_CONNECT_SECONDS).close()
        logging.info("Downloading %s with Keras.", cifar.title)
        import tensorflow as tf

        splits = getattr(tf.keras.datasets, f"cifar{cifar.num_classes}").load_data()
    except Exception as error:  # Keras raises a bare Exception.
        details = f", and its download failed ({image_dataset.one_line(error)})"
        raise image_dataset.not_found_error(cifar.title, cifar.url, details) from error
    return [(images, labels.reshape(-1).astype(np.int32)) for images, labels in splits]
