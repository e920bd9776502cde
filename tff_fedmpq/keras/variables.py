"""Shapes and roles of a model's weights, known before any graph is built.

The server keeps float weights in Keras's order: `tff.learning.models.ModelWeights` of
trainable and non-trainable tensors. In the model that a client trains, some trainable
tensors, the *kernels*, are integer codes. All other weights (BatchNorm's gamma, beta
and moving statistics, biases, layers left in float) are the *float parameters*.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import numpy as np
import tensorflow as tf

from tff_fedmpq.keras.quantized_kernel import quantized_kernels

ModelFn = Callable[[], tf.keras.Model]

_MAX_LAYER_SIZE = 2**28  # At 8 bits, 2**31 bits overflow an int32.


class FloatWeights(NamedTuple):
    """Weights of a model in float32."""

    kernels: Sequence[Any]  # Of the L quantized layers.
    float_parameters: Sequence[Any]  # All other weights, trainable ones first.


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Shapes of a model's weights, and which of them are quantized."""

    kernel_names: tuple[str, ...]  # Of the L quantized layers.
    trainable_shapes: tuple[tuple[int, ...], ...]  # Including kernels.
    is_kernel: tuple[bool, ...]  # Whether each trainable weight is a kernel.
    non_trainable_shapes: tuple[tuple[int, ...], ...]  # Of all other float weights.

    @classmethod
    def from_model(cls, model: tf.keras.Model) -> ModelSpec:
        """Returns the spec of a model; ValueError for frozen or too large kernels."""
        variables = model.trainable_variables
        kernels = quantized_kernels(model)
        is_kernel = tuple(hasattr(v, "quantized_kernel") for v in variables)
        if sum(is_kernel) < len(kernels):
            raise ValueError(
                "Codes are sent in every round, but a quantized layer of the model has "
                "trainable=False: make it trainable, or let model_fn return it as one "
                "that stays in float, such as QuantDense(..., bit_width=None)."
            )
        large = [k.codes.name for k in kernels if k.size >= _MAX_LAYER_SIZE]
        if large:
            raise ValueError(
                f"{large} reach {_MAX_LAYER_SIZE} weights; split the layer."
            )
        if any(kernel.scale.shape.rank for kernel in kernels):
            raise ValueError(
                "Messages hold one scale per kernel: set per_channel=False."
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
        return tuple(itertools.compress(self.trainable_shapes, self.is_kernel))

    @property
    def float_parameter_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the float parameters, trainable ones first."""
        weights = self.split(self.trainable_shapes, self.non_trainable_shapes)
        return tuple(weights.float_parameters)

    @property
    def layer_sizes(self) -> np.ndarray:
        """Weights per quantized layer (the paper's ``M_l``), int64[L]."""
        return np.array([np.prod(s) for s in self.kernel_shapes], np.int64)

    @property
    def num_weights(self) -> int:
        """Number of all weights, quantized or not."""
        shapes = self.trainable_shapes + self.non_trainable_shapes
        return int(sum(np.prod(shape) for shape in shapes))

    @property
    def num_statistics(self) -> int:
        """Number of the weights that do not train."""
        return int(sum(np.prod(shape) for shape in self.non_trainable_shapes))

    def split(self, trainable: Sequence, non_trainable: Sequence) -> FloatWeights:
        """Returns weights in Keras's order as `FloatWeights`."""
        kernels = tuple(itertools.compress(trainable, self.is_kernel))
        others = (w for w, is_kernel in zip(trainable, self.is_kernel) if not is_kernel)
        return FloatWeights(kernels, (*others, *non_trainable))

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

    def flatten(self, weights: FloatWeights) -> tf.Tensor:
        """Returns weights as a vector in Keras's order, float32[num_weights]."""
        trainable, others = self.join(weights)
        return tf.concat([tf.reshape(t, [-1]) for t in (*trainable, *others)], 0)

    def spread(self, of_kernels: tf.Tensor, of_others: Any) -> tf.Tensor:
        """Returns a number per weight, as `flatten` orders them; float32[num_weights].

        These are `of_kernels`, float32[L], by kernel, and `of_others`, float32[].
        """
        kernels = iter(tf.unstack(of_kernels, len(self.kernel_shapes)))
        flags = *self.is_kernel, *(False for _ in self.non_trainable_shapes)
        values = [next(kernels) if flag else of_others for flag in flags]
        shapes = self.trainable_shapes + self.non_trainable_shapes
        return tf.repeat(tf.stack(values), [int(np.prod(shape)) for shape in shapes])

    def restore(self, flat: tf.Tensor) -> FloatWeights:
        """Returns the weights of a vector of `flatten`."""
        shapes = self.trainable_shapes + self.non_trainable_shapes
        parts = tf.split(flat, [int(np.prod(shape)) for shape in shapes])
        weights = list(map(tf.reshape, parts, shapes))
        num_trainable = len(self.trainable_shapes)
        return self.split(weights[:num_trainable], weights[num_trainable:])


def float_non_trainable_variables(model: tf.keras.Model) -> list[tf.Variable]:
    """Returns the non-trainable variables to average, such as BatchNorm's."""
    # Scales and bit-widths are sent with the codes; counters and seeds are integers.
    scales = {id(kernel.scale) for kernel in quantized_kernels(model)}
    variables = model.non_trainable_variables
    return [v for v in variables if v.dtype.is_floating and id(v) not in scales]


def float_parameter_variables(model: tf.keras.Model) -> list[tf.Variable]:
    """Returns the variables in the order of `ModelSpec.float_parameter_shapes`."""
    variables = model.trainable_variables
    trainable = [v for v in variables if not hasattr(v, "quantized_kernel")]
    return trainable + float_non_trainable_variables(model)
