"""Image data sets: CIFAR-10, CIFAR-100, Tiny-ImageNet and embedded digits.

Every loader returns an `ImageDataset` in one format (uint8 RGB images, int32 labels)
that says where it came from.

image_dataset.py                       what is returned, and the errors
locations.py                           where files are looked for
cifar.py, tiny_imagenet.py, digits.py  the data sets
registry.py                            the same by name
"""

from tff_fedmpq.simulation.datasets.cifar import load_cifar10, load_cifar100
from tff_fedmpq.simulation.datasets.digits import load_digits
from tff_fedmpq.simulation.datasets.image_dataset import (
    DatasetError,
    DatasetNotFoundError,
    ImageDataset,
)
from tff_fedmpq.simulation.datasets.locations import DATA_DIR_VARIABLE
from tff_fedmpq.simulation.datasets.registry import LOADERS, load
from tff_fedmpq.simulation.datasets.tiny_imagenet import load_tiny_imagenet

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
