"""Evaluation of Keras models, and of the models that devices get.

The global model has float weights and quantized activations; a device of budget v gets
it quantized to its own bit-widths, with the BatchNorm statistics that the server sends.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from tff_fedmpq.keras.model_summary import summary
from tff_fedmpq.keras.variables import float_non_trainable_variables

if TYPE_CHECKING:
    from tff_fedmpq.federated.process import FederatedProcess


class Evaluation(NamedTuple):
    """Result of an evaluation.

    Attributes:
      accuracy: fraction that is classified rightly.
      loss: mean cross-entropy.
    """

    accuracy: float
    loss: float


class Evaluator:
    """Evaluates a Keras model on a fixed set of images."""

    def __init__(
        self,
        model: tf.keras.Model,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int = 500,
    ):
        """Initializes the evaluator.

        Args:
          model: returns logits; its weights may change between evaluations.
          images: [n, h, w, c].
          labels: int[n].
          batch_size: images per step.
        """
        self.model = model
        self._images = images
        self._labels = labels
        self._batch_size = batch_size
        self._step = tf.function(self._batch_sums, reduce_retracing=True)

    def evaluate(self) -> Evaluation:
        """Returns the present model's accuracy and loss."""
        correct, loss = 0.0, 0.0
        for begin in range(0, len(self._labels), self._batch_size):
            batch = slice(begin, begin + self._batch_size)
            sums = self._step(
                tf.constant(self._images[batch]), tf.constant(self._labels[batch])
            )
            correct, loss = correct + float(sums[0]), loss + float(sums[1])
        return Evaluation(correct / len(self._labels), loss / len(self._labels))

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
    non_trainable = float_non_trainable_variables(model)
    pairs = [
        *zip(model.trainable_variables, weights.trainable),
        *zip(non_trainable, weights.non_trainable),
    ]
    for variable, value in pairs:
        variable.assign(value)


class DeviceEvaluator:
    """Evaluates the models that devices get, one for each budget."""

    def __init__(
        self, process: FederatedProcess, images: np.ndarray, labels: np.ndarray
    ):
        """Initializes the evaluator.

        Args:
          process: Process of a scheme.
          images: Test images, [n, h, w, c].
          labels: Their classes, int[n].
        """
        self._process = process
        self._images = images
        self._labels = labels

    @functools.cached_property
    def _evaluator(self) -> Evaluator:
        model = self._process.scheme.build_client_model(self._process.model)
        return Evaluator(model, self._images, self._labels)

    def evaluate(self, state: Any) -> dict[str, dict[str, Any]]:
        """Returns what each budget's first client would get now, and its accuracy.

        Args:
          state: State of the process.

        Returns:
          For each budget: client, mean_bit_width, accuracy, loss, and num_bytes that
          the device stores; {} for a scheme that sends float weights.
        """
        process = self._process
        if process.scheme.weights is None:
            return {}
        clients = dict(zip(process.budgets[::-1], process.client_ids[::-1]))
        devices = {}
        for budget, client_id in sorted(clients.items()):
            process.assign_device_weights(self._evaluator.model, state, client_id)
            stored = summary(self._evaluator.model)
            devices[f"{budget:g}"] = {
                "client": client_id,
                "mean_bit_width": stored.mean_bit_width,
                "num_bytes": stored.num_bytes,
                **self._evaluator.evaluate()._asdict(),
            }
        return devices
