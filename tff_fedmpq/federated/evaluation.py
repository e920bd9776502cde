"""Evaluation of Keras models, and of the models that devices get.

The global model has float weights and quantized activations; a device of budget v gets
it quantized to its own bit-widths, with the BatchNorm statistics that the server sends.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from tff_fedmpq.keras.model_summary import summary
from tff_fedmpq.keras.variables import float_non_trainable_variables

if TYPE_CHECKING:
    from tff_fedmpq.federated.learning_process import FederatedProcess


class Evaluation(NamedTuple):
    """Fraction of images that is classified rightly, and mean cross-entropy."""

    accuracy: float
    loss: float


@dataclasses.dataclass(eq=False)
class Evaluator:
    """Evaluates a Keras model on images [n, h, w, c] with labels int[n].

    The model returns logits; its weights may change between evaluations.
    """

    model: tf.keras.Model
    images: np.ndarray
    labels: np.ndarray
    batch_size: int = 500

    def evaluate(self) -> Evaluation:
        """Returns the present model's accuracy and loss."""
        correct, loss = 0.0, 0.0
        for begin in range(0, len(self.labels), self.batch_size):
            batch = slice(begin, begin + self.batch_size)
            examples = self.images[batch], self.labels[batch]
            sums = self._batch_sums(*map(tf.constant, examples))
            correct, loss = correct + float(sums[0]), loss + float(sums[1])
        return Evaluation(correct / len(self.labels), loss / len(self.labels))

    @tf.function(reduce_retracing=True)
    def _batch_sums(
        self, images: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        logits = self.model(images, training=False)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        predicted = tf.argmax(logits, axis=-1, output_type=labels.dtype)
        correct = tf.cast(tf.equal(predicted, labels), tf.float32)
        return tf.reduce_sum(correct), tf.reduce_sum(losses)


def assign_global_weights(model: tf.keras.Model, weights: Any) -> None:
    """Sets a global model's weights from `tff.learning.models.ModelWeights`."""
    variables = model.trainable_variables + float_non_trainable_variables(model)
    for variable, value in zip(variables, [*weights.trainable, *weights.non_trainable]):
        variable.assign(value)


@dataclasses.dataclass(eq=False)
class DeviceEvaluator:
    """Evaluates the models that devices get, one for each budget, on test images."""

    process: FederatedProcess
    images: np.ndarray
    labels: np.ndarray

    @functools.cached_property
    def _evaluator(self) -> Evaluator:
        model = self.process.scheme.build_client_model(self.process.model)
        return Evaluator(model, self.images, self.labels)

    def evaluate(self, state: Any) -> dict[str, dict[str, Any]]:
        """Returns what each budget's first client would get from a state.

        By budget: client, mean_bit_width, accuracy, loss, and num_bytes that the
        device stores; {} for a scheme that sends float weights.
        """
        if self.process.scheme.weights is None:
            return {}
        clients = dict(zip(self.process.budgets[::-1], self.process.client_ids[::-1]))
        model = self._evaluator.model
        devices = {}
        for budget, client_id in sorted(clients.items()):
            self.process.assign_device_weights(model, state, client_id)
            stored = summary(model)
            devices[f"{budget:g}"] = {
                "client": client_id,
                "mean_bit_width": stored.mean_bit_width,
                "num_bytes": stored.num_bytes,
                **self._evaluator.evaluate()._asdict(),
            }
        return devices
