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


def no_decay(fraction: tf.Tensor) -> tf.Tensor:
    """Returns 1."""
    return tf.ones_like(fraction)


def cosine_decay(fraction: tf.Tensor) -> tf.Tensor:
    """Returns 1 falling to 0 along half a cosine.

    Args:
      fraction: Fraction of the rounds that are done, float32[]; the factor is 0 from 1
        on.
    """
    return 0.5 * (1.0 + tf.cos(math.pi * tf.minimum(fraction, 1.0)))


# Factor of a learning rate at a fraction of the run.
DECAYS: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "none": no_decay,
    "cosine": cosine_decay,
}


def _decay(identifier: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    return lookup(identifier, DECAYS, "decay")


def learning_rates_at(
    config: LocalTrainingConfig, round_number: tf.Tensor
) -> tf.Tensor:
    """Returns a round's rates of kernels and of float parameters, float32[2].

    Args:
      config: Settings of local training.
      round_number: Number of the round, int32[], from 0.
    """
    fraction = tf.constant(0.0)
    if config.rounds is not None:
        fraction = tf.cast(round_number, tf.float32) / config.rounds
    return tf.stack(
        [
            rate.initial * _decay(rate.decay)(fraction)
            for rate in config.learning_rates()
        ]
    )


class Pruning(NamedTuple):
    """MSB pruning after local training (Eq. 13).

    Attributes:
      threshold: Density epsilon up to which a top plane is pruned.
      saturates: Whether weights that held the bit saturate (`bit_planes.prune_msb`).
    """

    threshold: float
    saturates: bool


class TrainingSums(NamedTuple):
    """Sums over all examples that a client trained on, in all epochs.

    Attributes:
      loss: Task loss before each step, float32[].
      correct: Number of correct predictions, float32[].
      count: Number of examples, float32[].
    """

    loss: tf.Tensor
    correct: tf.Tensor
    count: tf.Tensor

    @classmethod
    def zero(cls) -> TrainingSums:
        """Returns the sums over no examples."""
        return cls(*(tf.constant(0.0) for _ in cls._fields))


class LocalTrainer:
    """Trains a Keras model from given weights with an optimizer of its own.

    Its variables are created by the constructor, which has to be called outside of any
    `tf.function`; `train` is one, and serves every bit-width and number of examples.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        config: LocalTrainingConfig,
        loss: tf.keras.losses.Loss,
        *,
        pruning: Pruning | None = None,
        augment: Augment | None = None,
        on_step: OnStep | None = None,
    ):
        """Initializes the trainer.

        Args:
          model: Keras model that returns logits.
          config: Settings of the training.
          loss: Loss of labels and logits, averaged over a batch.
          pruning: MSB pruning after training; None prunes nothing.
          augment: Augmentation of every training batch.
          on_step: Function that is called, in the graph, after every step.
        """
        self._model = model
        self._config = config
        self._loss = loss
        self._pruning = pruning
        # The user's function may contain Python control flow on tensors.
        self._augment = None if augment is None else tf.function(augment)
        self._on_step = on_step
        self._kernels = quantized_kernels(model)
        self._float_parameters = float_parameter_variables(model)
        of_kernels, of_float_parameters = config.learning_rates()
        self._optimizer = IntegerSGD(
            of_kernels.initial,
            of_float_parameters.initial,
            config.momentum,
            config.weight_decay,
            learning_rate_unit=getattr(config, "learning_rate_unit", "weight"),
        )
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

        Args:
          weights: Initial weights.
          images: All of the client's examples, [n, ...]; n may be 0, which trains
            nothing.
          labels: Their classes, int[n].
          seed: Stateless seed, int32[2].
          learning_rates: Rates of kernels and of float parameters, float32[2]; None
            takes those of the first round.

        Returns:
          The trained weights; sums of the training metrics; and the MSB density of
          each layer before pruning, float32[L].
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
        densities = tf.stack(densities) if densities else tf.zeros([0])
        return self._pruned_weights(), sums, densities

    def _run_epochs(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> TrainingSums:
        count, batch_size = tf.shape(images)[0], self._config.batch_size
        steps_per_epoch = (count + batch_size - 1) // batch_size
        num_steps = self._config.epochs * steps_per_epoch

        def shuffle(step_seed: tf.Tensor) -> tf.Tensor:
            return tf.random.experimental.stateless_shuffle(tf.range(count), step_seed)

        def take_step(step, order, sums):
            begin = (step % steps_per_epoch) * batch_size
            step_seed = tf.random.fold_in(seed, step)
            order = tf.cond(
                tf.equal(begin, 0), lambda: shuffle(step_seed), lambda: order
            )
            chosen = order[begin : begin + batch_size]
            batch = tf.gather(images, chosen)
            if self._augment is not None:
                batch = self._augment(batch, step_seed)
            step_sums = self.step(batch, tf.gather(labels, chosen))
            sums = tf.nest.map_structure(tf.add, sums, step_sums)
            return step + 1, order, sums

        first = (tf.constant(0), tf.range(count), TrainingSums.zero())
        return tf.while_loop(
            lambda step, order, sums: step < num_steps,
            take_step,
            first,
            # Where the graph knows the number of images, `order` begins with it.
            shape_invariants=(
                tf.TensorShape([]),
                tf.TensorShape([None]),
                TrainingSums(*(tf.TensorShape([]) for _ in TrainingSums._fields)),
            ),
        )[2]

    def step(self, images: tf.Tensor, labels: tf.Tensor) -> TrainingSums:
        """Takes one step of SGD on a batch, and returns the sums over it.

        Args:
          images: Examples, [batch, ...].
          labels: Their classes, int[batch].
        """
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
        correct = tf.equal(predicted, tf.cast(labels, tf.int32))
        return TrainingSums(
            task_loss * count, tf.reduce_sum(tf.cast(correct, tf.float32)), count
        )

    def _pruned_weights(self) -> QuantizedWeights:
        """Returns the model's weights without nearly empty top planes (Eq. 13)."""
        codes: list[tf.Tensor] = []
        scales: list[tf.Tensor] = []
        bit_widths: list[tf.Tensor] = []
        for kernel in self._kernels:
            layer = (
                kernel.codes.value(),
                kernel.scale.value(),
                kernel.bit_width.value(),
            )
            if self._pruning is not None:
                layer = bit_planes.prune_msb(
                    kernel.representation,
                    *layer,
                    threshold=self._pruning.threshold,
                    saturate=self._pruning.saturates,
                )
            for column, value in zip((codes, scales, bit_widths), layer):
                column.append(value)
        return QuantizedWeights(
            tuple(codes),
            tf.stack(scales) if scales else tf.zeros([0], tf.float32),
            tf.stack(bit_widths) if bit_widths else tf.zeros([0], tf.int32),
            tuple(variable.read_value() for variable in self._float_parameters),
        )
