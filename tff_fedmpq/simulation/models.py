"""Networks by name, for a data set's images. Imported without TensorFlow."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tff_fedmpq.lookup import check_name
from tff_fedmpq.simulation.data import ImageDataset

if TYPE_CHECKING:
    import tensorflow as tf

# Depths of the residual networks in `keras.resnets`; `resnet8` suits the 8x8 digits.
MODEL_DEPTHS: Mapping[str, int] = {
    f"resnet{depth}": depth for depth in (8, 14, 20, 32, 44, 56)
}


def build_model_fn(
    name: str | Callable[[ImageDataset, int], tf.keras.Model],
    dataset: ImageDataset,
    seed: int,
) -> Callable[[], tf.keras.Model]:
    """Returns a function that builds the network, each time with the same weights.

    Image shape, classes and pixel statistics are the data set's, the initial weights
    are drawn by the seed, unless `name` is a function, which decides them. Raises
    ValueError for a name that `MODEL_DEPTHS` lacks.
    """
    if callable(name):
        return functools.partial(name, dataset, seed)
    check_name(name, MODEL_DEPTHS, "model")
    size = MODEL_DEPTHS[name], dataset.image_shape, dataset.num_classes
    statistics = tuple(s.tolist() for s in dataset.channel_statistics())

    def model_fn() -> tf.keras.Model:
        from tff_fedmpq.keras.resnets import resnet

        return resnet(*size, pixel_statistics=statistics, seed=seed)

    return model_fn
