"""Quantized weights of one layer: codes, scale and bit-width as variables.

There is no float copy of the weights. `codes` is a trainable uint8 variable, which gets
a straight-through gradient, float32, from reading the weights (FedMPQ, Eq. 5)::

    W = delta * (u - z),    dL/du = delta * dL/dW

`IntegerSGD` makes integer steps of it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.ops import (
    control_flow_v2_func_graphs as func_graphs,
)
from tensorflow.python.ops import (
    handle_data_util,
    resource_variable_ops,
)

from tff_fedmpq.quantization import representations
from tff_fedmpq.quantization.scales import ScaleRule, scale_of_shape

_LARGEST_WEIGHT = 1e18  # Of which squares are finite in float32.

_CONTROL_FLOW = (
    func_graphs.CondBranchFuncGraph,
    func_graphs.WhileCondFuncGraph,
    func_graphs.WhileBodyFuncGraph,
)


class OptimizerError(ValueError):
    """An optimizer cannot train codes."""

    ag_pass_through = True  # AutoGraph would add a page on where it was raised.

    def __init__(self, optimizer: str = "This optimizer"):
        super().__init__(
            f"{optimizer} cannot train integer codes: compile quantized models with "
            "tff_fedmpq.IntegerSGD, for its float weights too."
        )


class _KeyOfCodes(str):
    """Name of codes that is no key of a dictionary.

    Optimizers of Keras put their variables into one by name before the first step, in
    any model or loop. `IntegerSGD` knows codes by a plain name.
    """

    def __hash__(self) -> int:
        raise OptimizerError


@dataclasses.dataclass(eq=False)
class QuantizedKernel:
    """Integer codes of a kernel, and how to read them as weights.

    Attributes:
      codes: Trainable variable, uint8 of the kernel's shape.
      scale: Variable, float32[], or of the kernel's rank with a scale per channel.
      bit_width: Variable, int32[], 1 to 8.
      representation: Representation of weights by the codes.
      scale_rule: Choice of the scale for new weights.
      name: Name of layer and kernel.
    """

    codes: tf.Variable
    scale: tf.Variable
    bit_width: tf.Variable
    representation: representations.Representation
    scale_rule: ScaleRule
    name: str = "kernel"

    def __post_init__(self) -> None:
        # Optimizers receive variables, not layers, and find the kernel by this.
        self.codes.quantized_kernel = self
        self.codes._unique_id = _KeyOfCodes(self.codes._unique_id)
        _stop_gradients_of_loops(self.codes.handle)

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.codes.shape.num_elements()

    def step_size(self) -> tf.Tensor:
        """Returns the weight per code unit, ``delta``, float32 of the scale's shape."""
        return representations.step_size(self.scale, self.bit_width)

    def signed_levels(self) -> tf.Tensor:
        """Returns the weights in code units, ``u - z``, float32."""
        return self.representation.signed_levels(self.codes, self.bit_width)

    def step_and_levels(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `step_size` and `signed_levels`, whose product are the weights."""
        # Reads each variable once, to save small operations in the training step.
        bit_width = self.bit_width.value()
        step = representations.step_size(self.scale.value(), bit_width)
        return step, self.representation.signed_levels(self.codes.value(), bit_width)

    def value(self) -> tf.Tensor:
        """Returns the weights, float32, with the straight-through gradient."""
        step, levels = self.step_and_levels()
        return attach_code_gradient(self.codes, step * levels, step)

    def quantize(self, weights: tf.Tensor) -> None:
        """Sets scale and codes to weights, floating point of the kernel's shape."""
        weights = tf.cast(weights, tf.float32)
        check_weights(weights, self.name)
        shape = tuple(self.scale.shape)
        layer = weights, self.bit_width, self.representation
        scale = scale_of_shape(shape, self.scale_rule, *layer)
        codes = self.representation.quantize(weights, scale, self.bit_width)
        self.scale.assign(scale)
        self.codes.assign(codes)

    def set_bit_width(self, bit_width: int) -> None:
        """Requantizes the weights to 1 to 8 bits; momentum stays in old code units."""
        weights = self.value()
        self.bit_width.assign(representations.check_bit_width(bit_width))
        self.quantize(weights)


def check_weights(weights: tf.Tensor, name: str) -> None:
    """Raises ValueError for weights, known here, that are not finite or too large."""
    if tf.executing_eagerly():
        values = weights.numpy()
        unusable = values[~(np.abs(values) <= _LARGEST_WEIGHT)]
        if unusable.size:
            raise ValueError(
                f"{name} has a weight of {unusable[0]:g}; only finite ones up to "
                f"{_LARGEST_WEIGHT:g} can be quantized."
            )


def attach_code_gradient(
    codes: tf.Variable, value: tf.Tensor, gradient: tf.Tensor
) -> tf.Tensor:
    """Returns `value`, float32[...], with a gradient for the integer variable `codes`.

    The gradient of `codes` is that of `value` times `gradient`, float32. TensorFlow
    does not differentiate integer tensors, but the tape records the handle of any
    variable. Through loops and branches the gradient takes a float32 tensor of zeros.
    """
    graph = tf.compat.v1.get_default_graph()
    if not isinstance(graph, _CONTROL_FLOW):
        return _tie(codes.handle, value, gradient)
    while isinstance(graph, _CONTROL_FLOW):
        graph = graph.outer_graph
    with graph.as_default():
        source = _tie(codes.handle, tf.zeros(codes.shape), tf.constant(1.0))
    return _tie(source, value, gradient)


def _tie(source: tf.Tensor, value: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Returns `value`; the gradient of `source` is that of `value` times `factor`."""

    def backward(upstream: tf.Tensor) -> tuple[tf.Tensor, None, None]:
        return tf.convert_to_tensor(upstream) * factor, None, None

    inputs = [source, value, factor]
    # Unlike `tf.custom_gradient`, whose IdentityN passes the handle on, this leaves a
    # graph that can be differentiated in loops, and frozen: the call is inlined.
    with record.stop_recording():
        if tf.executing_eagerly():
            tied = tf.identity(value)
        else:
            graph = tf.compat.v1.get_default_graph()
            gradients = {"PartitionedCall": lambda op, upstream: backward(upstream)}
            with graph._override_gradient_function(gradients):
                (tied,) = tf.raw_ops.PartitionedCall(
                    args=inputs, Tout=[tf.float32], f=_second_of(source.dtype)
                )
            tied.set_shape(value.shape)
    record.record_operation("TieGradient", [tied], inputs, backward)
    return tied


@functools.cache
def _second_of(dtype: tf.DType) -> Any:
    """Returns a function of tensors, (dtype, float32, float32), that gives the 2nd."""
    specs = [tf.TensorSpec(None, t) for t in (dtype, tf.float32, tf.float32)]
    with tf.init_scope():
        function = tf.function(lambda *args: args[1], specs, autograph=False)
        return function.get_concrete_function()


def _stop_gradients_of_loops(handle: tf.Tensor) -> None:
    """Keeps loops from giving a variable gradients of zero, in its integer dtype.

    TensorFlow makes none for a handle that holds more than one shape and dtype.
    """
    data = resource_variable_ops.get_eager_safe_handle_data(handle)
    if len(data.shape_and_type) == 1:
        data.shape_and_type.append(data.shape_and_type[0])
        handle_data_util.set_handle_data(handle, data)


def quantized_kernels(model: tf.keras.Model) -> list[QuantizedKernel]:
    """Returns the quantized kernels of a model, in the order of its variables."""
    return [v.quantized_kernel for v in model.weights if hasattr(v, "quantized_kernel")]
