"""What a client does in a round: some epochs of SGD on its own examples, then pruning.

Pure TensorFlow and Keras; `client_work` brings it into a federated computation. All
randomness (order of the examples, augmentation, rounding) comes from the seed that the
client receives, so a round is a function of its inputs; but for what layers such as
Dropout draw.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Callable, NamedTuple

import tensorflow as tf

from tff_fedmpq.federated.messages import QuantizedWeights, assign_quantized_weights
from tff_fedmpq.federated.model_spec import float_rest_variables
from tff_fedmpq.keras.optimizer import (
    CODE_UPDATES,
    CompensatedSGD,
    IntegerSGD,
    StraightThroughSGD,
    check_can_compensate,
    check_learning_rate_unit,
)
from tff_fedmpq.keras.quantized_kernel import quantized_kernels
from tff_fedmpq.lookup import check_bool, check_count, check_name
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
      fraction: of all rounds that are over, float32[]; from 1 on, the rate is 0.
    """
    return 0.5 * (1.0 + tf.cos(math.pi * tf.minimum(fraction, 1.0)))


# How much of a learning rate is left when a fraction of all rounds is over.
DECAYS: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "none": no_decay,
    "cosine": cosine_decay,
}

# How codes are trained: by FedMPQ's integer update, by stochastically rounded SGD, by
# the integer update with its rounding errors fed back, or by SGD on float masters.
OPTIMIZERS: Mapping[str, Callable[..., IntegerSGD]] = {
    **{name: functools.partial(IntegerSGD, code_update=name) for name in CODE_UPDATES},
    "compensated": CompensatedSGD,
    "straight_through": StraightThroughSGD,
}


@dataclasses.dataclass(frozen=True)
class LocalTrainingConfig:
    """How a client trains.

    Attributes:
      epochs: passes over the client's examples per round, the paper's tau.
      batch_size: examples per step; the last step of an epoch may have fewer.
      learning_rate: eta, of quantized kernels, in the unit `learning_rate_unit`.
      float_learning_rate: of all that is not quantized (BatchNorm, biases); of all
        weights in a float model.
      momentum: of SGD.
      weight_decay: L2 coefficient.
      code_update: how codes are trained: name in `OPTIMIZERS`. The float masters of
        "straight_through" learn at `float_learning_rate`, as a float model does.
      low_bit_damping: by how much codes of few bits learn slower (`IntegerSGD`).
      learning_rate_unit: what eta is a rate of, "weight" or "code" (`IntegerSGD`).
      pruning_threshold: epsilon of MSB pruning (Eq. 13); None prunes nothing.
      saturate: whether pruning saturates (see `bit_planes.prune_msb`).
      learning_rate_decay: name in `DECAYS` of how eta falls; rounding at random makes
        noise that a constant rate never loses. Without `rounds` it cannot fall.
      float_learning_rate_decay: the same, of `float_learning_rate`.
      rounds: of the whole run, over which rates fall; None keeps them. In rounds
        after that, a rate that falls stays at 0: kernels no longer learn.

    Raises:
      ValueError: naming a setting that is out of range or unknown.
    """

    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 0.1
    float_learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    code_update: str = "integer"
    low_bit_damping: float = 0.0
    learning_rate_unit: str = "weight"
    pruning_threshold: float | None = None
    saturate: bool = True
    learning_rate_decay: str = "cosine"
    float_learning_rate_decay: str = "none"
    rounds: int | None = None

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            check_count(getattr(self, name), name)
        for name in ("learning_rate", "float_learning_rate", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} has to be 0 or more, found {value!r}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum has to be in [0, 1), found {self.momentum!r}.")
        if not math.isfinite(self.low_bit_damping):
            raise ValueError(
                f"low_bit_damping has to be finite, found {self.low_bit_damping!r}."
            )
        check_bool(self.saturate, "saturate")
        check_name(self.code_update, OPTIMIZERS, "code_update")
        check_learning_rate_unit(self.learning_rate_unit)
        if self.code_update == "compensated":
            check_can_compensate(self.momentum)
        threshold = self.pruning_threshold
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(
                f"pruning_threshold has to be None or from 0 to 1, found {threshold!r}."
            )
        for name in ("learning_rate_decay", "float_learning_rate_decay"):
            check_name(getattr(self, name), DECAYS, name)
        if self.rounds is not None:
            check_count(self.rounds, "rounds")

    def learning_rates_at(self, round_number: tf.Tensor) -> tf.Tensor:
        """Returns the rates of a round: of kernels, and of the float rest; float32[2].

        Args:
          round_number: int32[], from 0.
        """
        fraction = tf.constant(0.0)
        if self.rounds is not None:
            fraction = tf.cast(round_number, tf.float32) / self.rounds
        of_codes = DECAYS[self.learning_rate_decay](fraction)
        of_rest = DECAYS[self.float_learning_rate_decay](fraction)
        return tf.stack(
            [self.learning_rate * of_codes, self.float_learning_rate * of_rest]
        )

    def build_optimizer(self) -> IntegerSGD:
        """Returns a fresh optimizer; a client starts every round without momentum."""
        return OPTIMIZERS[self.code_update](
            learning_rate=self.learning_rate,
            float_learning_rate=self.float_learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            low_bit_damping=self.low_bit_damping,
            learning_rate_unit=self.learning_rate_unit,
        )


class TrainingSums(NamedTuple):
    """Sums over all examples that a client trained on, in all epochs.

    Attributes:
      loss: float32[], of the task loss before each step.
      correct: float32[], how many were classified rightly.
      count: float32[], how many examples.
    """

    loss: tf.Tensor
    correct: tf.Tensor
    count: tf.Tensor

    @classmethod
    def zero(cls) -> TrainingSums:
        """Returns the sums over no examples."""
        return cls(*(tf.constant(0.0) for _ in cls._fields))


class LocalTrainer:
    """Owns a Keras model and its optimizer, and trains it from given weights.

    Its variables are created by the constructor, which has to be called outside of any
    `tf.function`; `train` is one, and serves every bit-width and number of examples.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        config: LocalTrainingConfig,
        loss: tf.keras.losses.Loss,
        augment: Augment | None = None,
        on_step: OnStep | None = None,
    ):
        """Initializes the trainer.

        Args:
          model: a compiled or uncompiled Keras model that returns logits.
          config: how to train it.
          loss: of labels and logits, averaged over a batch.
          augment: applied to every batch of training images.
          on_step: called, in the graph, after every step.
        """
        self._model = model
        self._config = config
        self._loss = loss
        self._augment = augment
        self._on_step = on_step
        self._kernels = quantized_kernels(model)
        self._rest = float_rest_variables(model)
        self._optimizer = config.build_optimizer()
        self._optimizer.build(model.trainable_variables)

    @tf.function
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
          weights: to start from.
          images: [n, ...], all of the client's; n may be 0, which trains nothing.
          labels: int[n].
          seed: int32[2].
          learning_rates: of kernels and of the float rest in this round, float32[2];
            None are the configured ones.

        Returns:
          The trained weights; sums of the training's metrics; and each layer's
          top-plane density before pruning, float32[L].
        """
        assign_quantized_weights(self._model, weights)
        seeds = tf.random.split(seed, 2)
        self._optimizer.reset(seeds[0])
        if learning_rates is None:
            learning_rates = self._config.learning_rates_at(tf.constant(0))
        self._optimizer.learning_rate = learning_rates[0]
        self._optimizer.float_learning_rate = learning_rates[1]
        sums = self._run_epochs(images, labels, seeds[1])
        densities = [
            bit_planes.top_plane_density(k.representation, k.codes, k.bit_width)
            for k in self._kernels
        ]
        densities = tf.stack(densities) if densities else tf.zeros([0])
        return self._pruned_weights(), sums, densities

    def _run_epochs(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> TrainingSums:
        count, batch_size = tf.shape(images)[0], self._config.batch_size
        steps_per_epoch = (count + batch_size - 1) // batch_size
        order = tf.range(count)
        sums = TrainingSums.zero()
        for step in tf.range(self._config.epochs * steps_per_epoch):
            # Where the number of images is known to the graph, `order` begins with it.
            tf.autograph.experimental.set_loop_options(
                shape_invariants=[(order, tf.TensorShape([None]))]
            )
            begin = (step % steps_per_epoch) * batch_size
            step_seed = tf.random.fold_in(seed, step)
            # `begin == 0` compares identities, and is false, in a TFF computation.
            if tf.equal(begin, 0):
                order = tf.random.experimental.stateless_shuffle(
                    tf.range(count), step_seed
                )
            chosen = order[begin : begin + batch_size]
            batch = tf.gather(images, chosen)
            if self._augment is not None:
                batch = self._augment(batch, step_seed)
            step_sums = self.step(batch, tf.gather(labels, chosen))
            sums = TrainingSums(*(a + b for a, b in zip(sums, step_sums)))
        return sums

    def step(self, images: tf.Tensor, labels: tf.Tensor) -> TrainingSums:
        """Takes one step of SGD on a batch, and returns the sums over it.

        Args:
          images: [batch, ...].
          labels: int[batch].
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
        """Returns the model's weights, nearly empty top planes removed (Eq. 13)."""
        codes: list[tf.Tensor] = []
        scales: list[tf.Tensor] = []
        bit_widths: list[tf.Tensor] = []
        for kernel in self._kernels:
            layer = (
                kernel.codes.value(),
                kernel.scale.value(),
                kernel.bit_width.value(),
            )
            if self._config.pruning_threshold is not None:
                layer = bit_planes.prune_msb(
                    kernel.representation,
                    *layer,
                    threshold=self._config.pruning_threshold,
                    saturate=self._config.saturate,
                )
            for column, value in zip((codes, scales, bit_widths), layer):
                column.append(value)
        return QuantizedWeights(
            tuple(codes),
            tf.stack(scales) if scales else tf.zeros([0], tf.float32),
            tf.stack(bit_widths) if bit_widths else tf.zeros([0], tf.int32),
            tuple(variable.read_value() for variable in self._rest),
        )
