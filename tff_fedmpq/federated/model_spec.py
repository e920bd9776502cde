"""What a round has to know about a model before any graph is built.

The server keeps float weights in Keras's order: `tff.learning.models.ModelWeights` of
trainable and non-trainable tensors. A client trains a model in which some of the
trainable tensors, the *kernels*, are integer codes; all others are the *float rest*
(BatchNorm's gamma, beta and moving statistics, biases, layers left in float). A
`ModelSpec` holds the shapes and says which is which. A model without quantized layers
has no kernels, and all of it is float rest: so the float schemes need no other code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import numpy as np
import tensorflow as tf

from tff_fedmpq.keras.quantized_kernel import quantized_kernels

ModelFn = Callable[[], tf.keras.Model]

_MAX_LAYER_SIZE = 2**28  # At 8 bits, 2**31 bits: what an int32 cannot count.


class FloatWeights(NamedTuple):
    """Weights of a model in float, apart by how they travel.

    Attributes:
      kernels: L tensors float32, one per quantized layer.
      rest: the float rest, tensors float32: trainable ones, then the others.
    """

    kernels: Sequence[Any]
    rest: Sequence[Any]


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Shapes of a model's weights, and which of them are quantized.

    Attributes:
      kernel_names: names of the L quantized layers.
      trainable_shapes: of all trainable weights, kernels among them.
      is_kernel: for each trainable weight, whether it is a kernel.
      non_trainable_shapes: of all other float weights.
      batch_statistics: for each BatchNorm layer, the places of its moving mean and
        variance in the float rest.
    """

    kernel_names: tuple[str, ...]
    trainable_shapes: tuple[tuple[int, ...], ...]
    is_kernel: tuple[bool, ...]
    non_trainable_shapes: tuple[tuple[int, ...], ...]
    batch_statistics: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_model(cls, model: tf.keras.Model) -> ModelSpec:
        """Reads the spec off a Keras model that clients train.

        Raises:
          ValueError: if a quantized layer is frozen, or too large for a message.
        """
        variables = model.trainable_variables
        num_trained = sum(hasattr(v, "quantized_kernel") for v in variables)
        if num_trained < len(quantized_kernels(model)):
            raise ValueError(
                "A quantized layer of the model has trainable=False. Codes travel with "
                "every round: make it trainable, or let model_fn return it as one that "
                "stays in float, such as QuantDense(..., bit_width=None)."
            )
        for kernel in quantized_kernels(model):
            if kernel.codes.shape.num_elements() >= _MAX_LAYER_SIZE:
                raise ValueError(
                    f"{kernel.codes.name} has {_MAX_LAYER_SIZE} weights or more, too "
                    "many for a message; split the layer."
                )
        is_kernel = tuple(hasattr(v, "quantized_kernel") for v in variables)
        return cls(
            tuple(
                kernel.codes.name.split("/")[0] for kernel in quantized_kernels(model)
            ),
            tuple(tuple(v.shape) for v in variables),
            is_kernel,
            tuple(tuple(v.shape) for v in float_non_trainable_variables(model)),
            _find_batch_statistics(model),
        )

    @property
    def kernel_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the L kernels."""
        pairs = zip(self.trainable_shapes, self.is_kernel)
        return tuple(shape for shape, is_kernel in pairs if is_kernel)

    @property
    def rest_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the float rest, trainable ones first."""
        pairs = zip(self.trainable_shapes, self.is_kernel)
        trainable = tuple(shape for shape, is_kernel in pairs if not is_kernel)
        return trainable + self.non_trainable_shapes

    @property
    def layer_sizes(self) -> np.ndarray:
        """Weights per quantized layer, the paper's ``M_l``: int64[L]."""
        return np.array([np.prod(s) for s in self.kernel_shapes], np.int64)

    @property
    def num_weights(self) -> int:
        """All weights, quantized or not."""
        shapes = self.trainable_shapes + self.non_trainable_shapes
        return int(sum(np.prod(shape) for shape in shapes))

    def split(
        self, trainable: Sequence[Any], non_trainable: Sequence[Any]
    ) -> FloatWeights:
        """Returns weights in Keras's order as `FloatWeights`."""
        pairs = list(zip(trainable, self.is_kernel))
        kernels = tuple(weight for weight, is_kernel in pairs if is_kernel)
        rest = tuple(weight for weight, is_kernel in pairs if not is_kernel)
        return FloatWeights(kernels, rest + tuple(non_trainable))

    def weights_of(self, model: tf.keras.Model) -> FloatWeights:
        """Returns the present weights of a float model, as tensors."""
        return self.split(
            [tf.constant(v.numpy()) for v in model.trainable_variables],
            [tf.constant(v.numpy()) for v in float_non_trainable_variables(model)],
        )

    def join(self, weights: FloatWeights) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Returns (trainable, non-trainable) weights in Keras's order."""
        kernels, rest = iter(weights.kernels), iter(weights.rest)
        trainable = tuple(next(kernels if k else rest) for k in self.is_kernel)
        return trainable, tuple(rest)

    def to_moments(self, rest: Sequence[Any]) -> tuple[Any, ...]:
        """Returns the float rest with E[x^2] in the place of BatchNorm's variances.

        A mean of means and a mean of such moments are the mean and moment of all
        clients' inputs together; a mean of variances leaves out how far the clients'
        means are apart (law of total variance).
        """
        moments = list(rest)
        for mean, variance in self.batch_statistics:
            moments[variance] = rest[variance] + tf.square(rest[mean])
        return tuple(moments)

    def from_moments(self, moments: Sequence[Any]) -> tuple[Any, ...]:
        """Returns the float rest of which `to_moments` made the moments."""
        rest = list(moments)
        for mean, variance in self.batch_statistics:
            # Rounding may bring the variance of a constant below zero.
            rest[variance] = tf.nn.relu(moments[variance] - tf.square(moments[mean]))
        return tuple(rest)


def _find_batch_statistics(model: tf.keras.Model) -> tuple[tuple[int, int], ...]:
    """Returns `ModelSpec.batch_statistics`."""
    places = {id(v): i for i, v in enumerate(float_rest_variables(model))}
    return tuple(
        (places[id(layer.moving_mean)], places[id(layer.moving_variance)])
        for layer in model.submodules
        if isinstance(layer, tf.keras.layers.BatchNormalization)
    )


def float_non_trainable_variables(model: tf.keras.Model) -> list[tf.Variable]:
    """Returns the non-trainable weights that a server averages.

    These are BatchNorm's moving statistics and the like: not the scale and bit-width
    of a quantized kernel, which travel with its codes, nor integer counters and seeds.
    """
    scales = {id(kernel.scale) for kernel in quantized_kernels(model)}
    return [
        variable
        for variable in model.non_trainable_variables
        if variable.dtype.is_floating and id(variable) not in scales
    ]


def float_rest_variables(model: tf.keras.Model) -> list[tf.Variable]:
    """Returns the variables of the float rest, in the order of `rest_shapes`."""
    trainable = [
        variable
        for variable in model.trainable_variables
        if not hasattr(variable, "quantized_kernel")
    ]
    return trainable + float_non_trainable_variables(model)
