"""Shapes and roles of a model's weights, known before any graph is built.

The server keeps float weights in Keras's order: `tff.learning.models.ModelWeights` of
trainable and non-trainable tensors. In the model that a client trains, some trainable
tensors, the *kernels*, are integer codes. All other weights (BatchNorm's gamma, beta
and moving statistics, biases, layers left in float) are the *float parameters*. A model
without quantized layers consists of float parameters only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import numpy as np
import tensorflow as tf

from tff_fedmpq.keras.quantized_kernel import quantized_kernels

ModelFn = Callable[[], tf.keras.Model]

_MAX_LAYER_SIZE = 2**28  # At 8 bits, 2**31 bits overflow an int32.


class FloatWeights(NamedTuple):
    """Weights of a model in float32.

    Attributes:
      kernels: Kernels of the L quantized layers.
      float_parameters: All other weights: trainable ones, then the others.
    """

    kernels: Sequence[Any]
    float_parameters: Sequence[Any]


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Shapes of a model's weights, and which of them are quantized.

    Attributes:
      kernel_names: Names of the L quantized layers.
      trainable_shapes: Shapes of all trainable weights, including kernels.
      is_kernel: Whether each trainable weight is a kernel.
      non_trainable_shapes: Shapes of all other float weights.
    """

    kernel_names: tuple[str, ...]
    trainable_shapes: tuple[tuple[int, ...], ...]
    is_kernel: tuple[bool, ...]
    non_trainable_shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def from_model(cls, model: tf.keras.Model) -> ModelSpec:
        """Returns the spec of a Keras model that clients train.

        Raises:
          ValueError: If a quantized layer is frozen, or too large for a message.
        """
        variables = model.trainable_variables
        kernels = quantized_kernels(model)
        is_kernel = tuple(hasattr(v, "quantized_kernel") for v in variables)
        if sum(is_kernel) < len(kernels):
            raise ValueError(
                "A quantized layer of the model has trainable=False. Codes are sent in "
                "every round: make it trainable, or let model_fn return it as one that "
                "stays in float, such as QuantDense(..., bit_width=None)."
            )
        for kernel in kernels:
            if kernel.size >= _MAX_LAYER_SIZE:
                raise ValueError(
                    f"{kernel.codes.name} has {_MAX_LAYER_SIZE} weights or more, too "
                    "many for a message; split the layer."
                )
        return cls(
            tuple(kernel.codes.name.split("/")[0] for kernel in kernels),
            tuple(tuple(v.shape) for v in variables),
            is_kernel,
            tuple(tuple(v.shape) for v in float_non_trainable_variables(model)),
        )

    @property
    def kernel_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the L kernels."""
        pairs = zip(self.trainable_shapes, self.is_kernel)
        return tuple(shape for shape, is_kernel in pairs if is_kernel)

    @property
    def float_parameter_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the float parameters, trainable ones first."""
        pairs = zip(self.trainable_shapes, self.is_kernel)
        trainable = tuple(shape for shape, is_kernel in pairs if not is_kernel)
        return trainable + self.non_trainable_shapes

    @property
    def layer_sizes(self) -> np.ndarray:
        """Weights per quantized layer (the paper's ``M_l``), int64[L]."""
        return np.array([np.prod(s) for s in self.kernel_shapes], np.int64)

    @property
    def num_weights(self) -> int:
        """Number of all weights, quantized or not."""
        shapes = self.trainable_shapes + self.non_trainable_shapes
        return int(sum(np.prod(shape) for shape in shapes))

    def split(
        self, trainable: Sequence[Any], non_trainable: Sequence[Any]
    ) -> FloatWeights:
        """Returns weights in Keras's order as `FloatWeights`."""
        pairs = list(zip(trainable, self.is_kernel))
        kernels = tuple(weight for weight, is_kernel in pairs if is_kernel)
        others = tuple(weight for weight, is_kernel in pairs if not is_kernel)
        return FloatWeights(kernels, others + tuple(non_trainable))

    def weights_of(self, model: tf.keras.Model) -> FloatWeights:
        """Returns the present weights of a float model, as tensors."""
        return self.split(
            [tf.constant(v.numpy()) for v in model.trainable_variables],
            [tf.constant(v.numpy()) for v in float_non_trainable_variables(model)],
        )

    def join(self, weights: FloatWeights) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Returns (trainable, non-trainable) weights in Keras's order."""
        kernels, others = iter(weights.kernels), iter(weights.float_parameters)
        trainable = tuple(next(kernels if k else others) for k in self.is_kernel)
        return trainable, tuple(others)


def float_non_trainable_variables(model: tf.keras.Model) -> list[tf.Variable]:
    """Returns the non-trainable variables that a server averages.

    These are BatchNorm's moving statistics and the like; not scales and bit-widths of
    quantized kernels, which are sent with the codes, nor integer counters and seeds.
    """
    scales = {id(kernel.scale) for kernel in quantized_kernels(model)}
    return [
        variable
        for variable in model.non_trainable_variables
        if variable.dtype.is_floating and id(variable) not in scales
    ]


def float_parameter_variables(model: tf.keras.Model) -> list[tf.Variable]:
    """Returns the variables in the order of `ModelSpec.float_parameter_shapes`."""
    trainable = [
        variable
        for variable in model.trainable_variables
        if not hasattr(variable, "quantized_kernel")
    ]
    return trainable + float_non_trainable_variables(model)
