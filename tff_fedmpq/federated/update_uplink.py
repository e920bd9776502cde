"""What schemes of quantized updates share: which tensors, and how they are applied.

Matrices and convolution kernels are quantized; vectors (BatchNorm, biases) are few, and
their update goes up in float32, as the float rest of the other schemes does.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import tensorflow as tf

from tff_fedmpq.federated import messages
from tff_fedmpq.federated.model_spec import FloatWeights, ModelSpec
from tff_fedmpq.federated.uplink import Message, Uplink

_MIN_RANK = 2  # Of tensors that are quantized.


def tensor_shapes(spec: ModelSpec) -> list[tuple[int, ...]]:
    """Returns the shapes of the tensors that are quantized."""
    return [shape for shape in spec.rest_shapes if len(shape) >= _MIN_RANK]


class UpdateUplink(Uplink):
    """Sends ``trained - received``: quantized for tensors of rank 2 and more."""

    update_bits = "v"

    @abc.abstractmethod
    def encode_update(
        self, updates: Sequence[tf.Tensor], budget: tf.Tensor, seed: tf.Tensor
    ) -> Message:
        """Returns a message of quantized tensors (without ``rest``)."""

    @abc.abstractmethod
    def decode_update(
        self, message: Message, shapes: Sequence[tuple[int, ...]]
    ) -> list[tf.Tensor]:
        """Returns the tensors of those shapes."""

    def encode(
        self,
        trained: messages.QuantizedWeights,
        received: messages.QuantizedWeights,
        budget: tf.Tensor,
        seed: tf.Tensor,
    ) -> Message:
        updates = [new - old for new, old in zip(trained.rest, received.rest)]
        tensors = [u for u in updates if u.shape.rank >= _MIN_RANK]
        vectors = tuple(u for u in updates if u.shape.rank < _MIN_RANK)
        return {**self.encode_update(tensors, budget, seed), "rest": vectors}

    def decode(self, message: Message, spec: ModelSpec) -> FloatWeights:
        tensors = iter(self.decode_update(message, tensor_shapes(spec)))
        vectors = iter(message["rest"])
        rest = tuple(
            next(tensors if len(shape) >= _MIN_RANK else vectors)
            for shape in spec.rest_shapes
        )
        return FloatWeights((), rest)

    def apply(self, present: FloatWeights, mean: FloatWeights) -> FloatWeights:
        return tf.nest.map_structure(tf.add, present, mean)
