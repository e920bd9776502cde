"""Local training: epochs of SGD on a client's examples, then MSB pruning.

Pure TensorFlow and Keras; `client_work` wraps it in a federated computation. All
randomness (order of the examples, augmentation, rounding) comes from the seed that the
client receives, except that of layers such as Dropout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple

import tensorflow as tf

from tff_fedmpq.federated.config import LocalTrainingConfig
from tff_fedmpq.federated.messages import QuantizedWeights, assign_quantized_weights
from tff_fedmpq.keras.optimizers import IntegerSGD
from tff_fedmpq.keras.quantized_kernel import quantized_kernels
from tff_fedmpq.keras.variables import float_parameter_variables
from tff_fedmpq.lookup import lookup
from tff_fedmpq.quantization import bit_planes

# (batch of images, stateless seed int32[2]) -> batch of images
Augment = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
# (loss of a step, float32[]) -> None; for progress reports only
OnStep = Callable[[tf.Tensor], None]

# Factor of a learning rate by the fraction of the rounds that are done, float32[].
DECAYS: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "none": tf.ones_like,
    "cosine": lambda done: 0.5 * (1.0 + tf.cos(math.pi * tf.minimum(done, 1.0))),
}


def learning_rates_at(
    config: LocalTrainingConfig, round_number: tf.Tensor
) -> tf.Tensor:
    """Returns the rates of kernels and of float parameters, float32[2].

    `round_number`, int32[], counts from 0.
    """
    done = tf.constant(0.0)
    if config.rounds is not None:
        done = tf.cast(round_number, tf.float32) / config.rounds

    def rate_now(initial: float, decay: Any) -> tf.Tensor:
        return initial * lookup(decay, DECAYS, "decay")(done)

    return tf.stack([rate_now(*rate) for rate in config.learning_rates()])


class Pruning(NamedTuple):
    """MSB pruning after local training (Eq. 13): the options of `prune_msb`."""

    threshold: float
    saturates: bool


class TrainingSums(NamedTuple):
    """Sums over the examples of all epochs: loss, right predictions, 1; float32[]."""

    loss: tf.Tensor
    correct: tf.Tensor
    count: tf.Tensor

    @classmethod
    def zero(cls) -> TrainingSums:
        """Returns the sums over no examples."""
        return cls(*(tf.constant(0.0) for _ in cls._fields))


class LocalTrainer:
    """Trains a Keras model from given weights with an optimizer of its own.

    The model returns logits; the loss, of labels and logits, is averaged over a batch.
    Variables are created by the constructor, which has to be called outside of any
    `tf.function`; `train` is one, and serves every bit-width and number of examples.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        config: LocalTrainingConfig,
        loss: tf.keras.losses.Loss,
        pruning: Pruning | None = None,
        augment: Augment | None = None,
        on_step: OnStep | None = None,
    ):
        self._model, self._config, self._loss = model, config, loss
        self._pruning, self._on_step = pruning, on_step
        # The user's function may contain Python control flow on tensors.
        self._augment = None if augment is None else tf.function(augment)
        self._kernels = quantized_kernels(model)
        self._float_parameters = float_parameter_variables(model)
        rates = (rate.initial for rate in config.learning_rates())
        unit = getattr(config, "learning_rate_unit", "weight")
        self._optimizer = IntegerSGD(*rates, config.momentum, config.weight_decay, unit)
        self._optimizer.build(model.trainable_variables)

    @tf.function(autograph=False)
    def train(
        self,
        weights: QuantizedWeights,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        learning_rates: tf.Tensor | None = None,
    ) -> tuple[QuantizedWeights, TrainingSums, tf.Tensor]:
        """Trains for the configured epochs, then prunes.

        Examples are images [n, ...] and classes int[n]; n may be 0, which trains
        nothing. `seed` is stateless, int32[2]. `learning_rates` are those of
        `learning_rates_at`, by default the first round's. Returns trained weights,
        sums, and the layers' MSB densities before pruning, float32[L].
        """
        assign_quantized_weights(self._model, weights)
        seeds = tf.random.split(seed, 2)
        self._optimizer.reset(seeds[0])
        if learning_rates is None:
            learning_rates = learning_rates_at(self._config, tf.constant(0))
        self._optimizer.learning_rate = learning_rates[0]
        self._optimizer.float_learning_rate = learning_rates[1]
        sums = self._run_epochs(images, labels, seeds[1])
        densities = [
            bit_planes.msb_density(k.representation, k.codes, k.bit_width)
            for k in self._kernels
        ]
        densities = tf.convert_to_tensor(densities, tf.float32)
        return self._pruned_weights(), sums, densities

    def _run_epochs(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> TrainingSums:
        count, batch_size = tf.shape(images)[0], self._config.batch_size
        steps_per_epoch = (count + batch_size - 1) // batch_size
        num_steps = self._config.epochs * steps_per_epoch
        shuffle, indices = tf.random.experimental.stateless_shuffle, tf.range(count)

        def take_step(step, order, sums):
            begin = (step % steps_per_epoch) * batch_size
            step_seed = tf.random.fold_in(seed, step)
            order = tf.cond(
                tf.equal(begin, 0), lambda: shuffle(indices, step_seed), lambda: order
            )
            chosen = order[begin : begin + batch_size]
            batch = tf.gather(images, chosen)
            if self._augment is not None:
                batch = self._augment(batch, step_seed)
            step_sums = self.step(batch, tf.gather(labels, chosen))
            sums = tf.nest.map_structure(tf.add, sums, step_sums)
            return step + 1, order, sums

        first = (tf.constant(0), indices, TrainingSums.zero())
        scalar, vector = tf.TensorShape([]), tf.TensorShape([None])
        # Where the graph knows the number of images, `order` begins with it.
        shapes = (scalar, vector, TrainingSums(scalar, scalar, scalar))
        return tf.while_loop(
            lambda step, *_: step < num_steps, take_step, first, shape_invariants=shapes
        )[2]

    def step(self, images: tf.Tensor, labels: tf.Tensor) -> TrainingSums:
        """Takes a step of SGD on a batch [n, ...], labels int[n]; returns its sums."""
        variables = self._model.trainable_variables
        with tf.GradientTape() as tape:
            logits = self._model(images, training=True)
            task_loss = tf.cast(self._loss(labels, logits), tf.float32)
            # In a mixed policy a layer's own loss has the type of its output.
            of_layers = [tf.cast(loss, tf.float32) for loss in self._model.losses]
            total_loss = tf.add_n([task_loss, *of_layers])
        gradients = tape.gradient(total_loss, variables)
        self._optimizer.apply_gradients(zip(gradients, variables))
        if self._on_step is not None:
            self._on_step(task_loss)
        count = tf.cast(tf.shape(images)[0], tf.float32)
        predicted = tf.argmax(logits, axis=-1, output_type=tf.int32)
        is_correct = tf.equal(predicted, tf.cast(labels, tf.int32))
        correct = tf.reduce_sum(tf.cast(is_correct, tf.float32))
        return TrainingSums(task_loss * count, correct, count)

    def _pruned_weights(self) -> QuantizedWeights:
        """Returns the model's weights without nearly empty top planes (Eq. 13)."""
        layers = []
        for k in self._kernels:
            layer = k.codes.value(), k.scale.value(), k.bit_width.value()
            if self._pruning is not None:
                layer = bit_planes.prune_msb(k.representation, *layer, *self._pruning)
            layers.append(layer)
        return QuantizedWeights(
            tuple(codes for codes, _, _ in layers),
            tf.convert_to_tensor([scale for _, scale, _ in layers], tf.float32),
            tf.convert_to_tensor([bit_width for *_, bit_width in layers], tf.int32),
            tuple(variable.read_value() for variable in self._float_parameters),
        )
