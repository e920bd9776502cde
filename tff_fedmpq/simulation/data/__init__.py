"""Data of a simulation: from the files of a data set to the examples of each client.

    load("cifar10") --> ImageDataset --> Partition --> ClientData

cifar.py, tiny_imagenet.py, digits.py  loaders of the data sets
image_dataset.py                       what they return, and where they look for files
partitions.py                          which client has which training examples
client_data.py, array_client_data.py   their examples in files, as TFF's `ClientData`
augmentation.py                        random crops and flips

All modules but the two of client data are imported without TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from absl import logging

from tff_fedmpq.files import PathLike
from tff_fedmpq.lookup import lookup
from tff_fedmpq.simulation.data.cifar import load_cifar10, load_cifar100
from tff_fedmpq.simulation.data.digits import load_digits
from tff_fedmpq.simulation.data.image_dataset import (
    DATA_DIR_VARIABLE,
    DatasetError,
    DatasetNotFoundError,
    ImageDataset,
)
from tff_fedmpq.simulation.data.tiny_imagenet import load_tiny_imagenet

__all__ = [
    "DATA_DIR_VARIABLE",
    "LOADERS",
    "DatasetError",
    "DatasetNotFoundError",
    "ImageDataset",
    "load",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_tiny_imagenet",
]


def _load_auto(data_dir: PathLike | None) -> ImageDataset:
    """Loads CIFAR-10, or the digits where it is not found and no place is named."""
    try:
        return load_cifar10(data_dir)
    except DatasetNotFoundError as error:
        if data_dir:
            raise
        logging.warning("USING DIGITS INSTEAD OF CIFAR-10, not comparable: %s", error)
        return load_digits()


LOADERS: Mapping[str, Callable[[PathLike | None], ImageDataset]] = {
    "auto": _load_auto,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "digits": lambda data_dir: load_digits(),
    "tiny_imagenet": load_tiny_imagenet,
}


def load(name: str, data_dir: PathLike | None = None) -> ImageDataset:
    """Loads a data set by its name in `LOADERS`; `find_folder` explains `data_dir`.

    "auto" is CIFAR-10 where it is found or can be downloaded, otherwise the digits with
    a loud warning. Raises ValueError for an unknown name, `DatasetNotFoundError` where
    nothing is found or can be downloaded, `DatasetError` where the data is damaged.
    """
    return lookup(name, LOADERS, "dataset")(data_dir)
