"""Networks by name, for a data set's images. Imported without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tff_fedmpq.simulation.data import ImageDataset

if TYPE_CHECKING:
    import tensorflow as tf

# Depths of the residual networks in `keras.resnets`; `resnet8` suits the 8x8 digits.
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
    """Returns a function that builds the network, each time with the same weights.

    Args:
      name: Name in `MODEL_DEPTHS`, such as `dataset.model`.
      dataset: Data set whose image shape, classes and pixel statistics are used.
      seed: Seed of the initial weights.

    Raises:
      ValueError: There is no network of this name.
    """
    if name not in MODEL_DEPTHS:
        raise ValueError(
            f"model: expected one of {', '.join(MODEL_DEPTHS)}, found {name!r}."
        )
    statistics = tuple(s.tolist() for s in dataset.channel_statistics())

    def model_fn() -> tf.keras.Model:
        from tff_fedmpq.keras.resnets import resnet

        return resnet(
            MODEL_DEPTHS[name],
            dataset.image_shape,
            dataset.num_classes,
            pixel_statistics=statistics,
            seed=seed,
        )

    return model_fn
