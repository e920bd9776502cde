"""How good the global model is, and the models that devices really get.

The global model has float weights and quantized activations. A device of budget v gets
it quantized to its own bit-widths. BatchNorm's aggregated statistics, averages over
devices of all precisions, then describe activations that neither has. So accuracy is
reported with these statistics, and with statistics estimated anew from training images
(labels are not used): `evaluate_recalibrated`, and `evaluate_tiers` for devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tff_fedmpq.federated.messages import assign_quantized_weights, quantize_weights
from tff_fedmpq.federated.model_spec import (
    FloatWeights,
    ModelFn,
    float_non_trainable_variables,
)
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.keras.quantized_kernel import quantized_kernels


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


def estimate_batch_statistics(
    model: tf.keras.Model, images: np.ndarray, batch_size: int = 256
) -> None:
    """Sets BatchNorm's moving statistics to their means over batches of `images`.

    Args:
      model: with any number of BatchNormalization layers, of models inside it too.
      images: [n, h, w, c]; the rest after whole batches is left out.
      batch_size: images per batch.
    """
    layers = [
        layer
        for layer in model.submodules
        if isinstance(layer, tf.keras.layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in layers]
    for count, batch in enumerate(_whole_batches(images, batch_size)):
        for layer in layers:
            # A moving average with this momentum is the mean of all batches so far.
            layer.momentum = count / (count + 1)
        model(batch, training=True)  # Eager: a graph would freeze the momentum.
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum


def _whole_batches(images: np.ndarray, batch_size: int) -> Iterator[tf.Tensor]:
    batch_size = min(batch_size, len(images))
    for begin in range(0, len(images) - batch_size + 1, batch_size):
        yield tf.constant(images[begin : begin + batch_size])


def evaluate_recalibrated(
    evaluator: Evaluator, weights: Any, calibration_images: np.ndarray
) -> Evaluation:
    """Evaluates a global model with BatchNorm statistics estimated anew.

    Args:
      evaluator: of global models; its model keeps the weights and the new statistics.
      weights: `tff.learning.models.ModelWeights` of the global model.
      calibration_images: training images, float[n, h, w, c].

    Returns:
      Accuracy and loss.
    """
    assign_global_weights(evaluator.model, weights)
    estimate_batch_statistics(evaluator.model, calibration_images)
    return evaluator.evaluate()


def evaluate_tiers(
    scheme: Scheme,
    model_fn: ModelFn,
    weights: FloatWeights,
    bit_widths: np.ndarray,
    budgets: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    calibration_images: np.ndarray,
) -> Mapping[str, Mapping[str, float]]:
    """Evaluates, for each budget, the model that its first client would get now.

    Args:
      scheme: says how weights are quantized; it has to quantize them.
      model_fn: of the float model.
      weights: the global model.
      bit_widths: int32[N, L], the present table.
      budgets: float[N].
      test_images: [n, h, w, c].
      test_labels: int[n].
      calibration_images: training images for BatchNorm's statistics.

    Returns:
      Budget -> client, mean_bit_width, accuracy (statistics estimated anew), loss, and
      accuracy_aggregated_statistics.
    """
    quantization = scheme.weights
    if quantization is None:
        raise ValueError(f"{scheme.name} sends float weights: it has no tiers.")
    model = scheme.build_client_model(model_fn)
    evaluator = Evaluator(model, test_images, test_labels)
    sizes = np.array([kernel.size for kernel in quantized_kernels(model)])
    tiers = {}
    for budget in sorted(set(budgets)):
        client = int(np.flatnonzero(np.asarray(budgets) == budget)[0])
        received = quantize_weights(
            weights,
            tf.constant(bit_widths[client]),
            quantization.representation,
            quantization.scale_rule,
        )
        assign_quantized_weights(model, received)
        aggregated = evaluator.evaluate()
        estimate_batch_statistics(model, calibration_images)
        estimated = evaluator.evaluate()
        tiers[f"{budget:g}"] = {
            "client": client,
            "mean_bit_width": float(bit_widths[client] @ sizes / sizes.sum()),
            "accuracy": estimated.accuracy,
            "loss": estimated.loss,
            "accuracy_aggregated_statistics": aggregated.accuracy,
        }
    return tiers
