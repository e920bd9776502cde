"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable

from absl import logging

from tff_fedmpq.simulation.datasets.cifar import load_cifar10, load_cifar100
from tff_fedmpq.simulation.datasets.digits import load_digits
from tff_fedmpq.simulation.datasets.image_dataset import (
    DatasetNotFoundError,
    ImageDataset,
)
from tff_fedmpq.simulation.datasets.tiny_imagenet import load_tiny_imagenet
from tff_fedmpq.simulation.files import PathLike


def _load_embedded(data_dir: PathLike | None) -> ImageDataset:
    del data_dir  # The digits come with scikit-learn.
    return load_digits()


def _load_auto(data_dir: PathLike | None) -> ImageDataset:
    """Loads CIFAR-10, or the digits where it is nowhere and none was asked for."""
    try:
        return load_cifar10(data_dir)
    except DatasetNotFoundError as error:
        if data_dir:
            raise
        logging.warning(
            "USING DIGITS INSTEAD OF CIFAR-10, results are not comparable: %s", error
        )
        return load_digits()


LOADERS: dict[str, Callable[[PathLike | None], ImageDataset]] = {
    "auto": _load_auto,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "digits": _load_embedded,
    "tiny_imagenet": load_tiny_imagenet,
}


def load(name: str, data_dir: PathLike | None = None) -> ImageDataset:
    """Loads a data set by its name.

    Args:
      name: A key of `LOADERS`. "auto" is CIFAR-10 where it is found or can be
        downloaded, else the digits with a loud warning.
      data_dir: Where it is; see `locations`, also for None. The digits need none.

    Raises:
      ValueError: There is no data set of this name.
      DatasetError: It was not found, or is damaged.
    """
    if name not in LOADERS:
        raise ValueError(
            f"dataset: expected one of {', '.join(sorted(LOADERS))}, found {name!r}."
        )
    return LOADERS[name](data_dir)
