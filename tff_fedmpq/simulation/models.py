"""Models by name, for a data set's images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable

import tensorflow as tf

from tff_fedmpq.keras.resnet import resnet
from tff_fedmpq.simulation.datasets import ImageDataset

MODEL_DEPTHS: Mapping[str, int] = {
    "resnet8": 8,
    "resnet14": 14,
    "resnet20": 20,
    "resnet32": 32,
    "resnet44": 44,
    "resnet56": 56,
}


def build_model_fn(
    name: str, dataset: ImageDataset, seed: int
) -> Callable[[], tf.keras.Model]:
    """Returns a function that builds the model, each time with the same weights.

    Args:
      name: in `MODEL_DEPTHS`.
      dataset: whose shapes and pixel statistics the model takes.
      seed: of the initial weights.
    """
    statistics = tuple(s.tolist() for s in dataset.channel_statistics())

    def model_fn() -> tf.keras.Model:
        return resnet(
            MODEL_DEPTHS[name],
            dataset.image_shape,
            dataset.num_classes,
            pixel_statistics=statistics,
            seed=seed,
        )

    return model_fn
