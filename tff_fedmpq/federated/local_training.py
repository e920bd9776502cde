"""Local training: epochs of SGD on a client's examples, then MSB pruning.

Pure TensorFlow and Keras; `client_work` wraps it in a federated computation. All
randomness (order of the examples, augmentation, rounding, layers such as Dropout) comes
from the seed that the client receives.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple

import tensorflow as tf

from tff_fedmpq.federated.config import LocalTrainingConfig
from tff_fedmpq.federated.messages import QuantizedWeights, assign_quantized_weights
from tff_fedmpq.federated.tasks import Metrics, build_loss
from tff_fedmpq.keras.optimizers import IntegerSGD
from tff_fedmpq.keras.quantized_kernel import quantized_kernels
from tff_fedmpq.keras.variables import float_parameter_variables
from tff_fedmpq.lookup import lookup
from tff_fedmpq.quantization import bit_planes

# (batch of images, stateless seed int32[2]) -> batch of images
Augment = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
# (loss of a step, float32[]) -> None; for progress reports only
OnStep = Callable[[tf.Tensor], None]

_PRUNES_NOTHING = -1.0
_LAYERS = 1  # Tells the seeds of random layers from those of other uses.
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

    def rate_now(initial: Any, decay: Any) -> tf.Tensor:
        if callable(initial):
            return tf.cast(initial(round_number), tf.float32)
        factor = lookup(decay, DECAYS, "decay")(done)
        if config.learning_rate_floor is not None:
            factor = tf.maximum(factor, config.learning_rate_floor)
        return initial * factor

    return tf.stack([rate_now(*rate) for rate in config.learning_rates()])


class Pruning(NamedTuple):
    """MSB pruning after local training (Eq. 13): the options of `prune_msb`."""

    threshold: float
    saturates: bool
    end: float = 1.0  # Share of the rounds after which nothing is pruned.

    def ends(self, rounds: int | None) -> bool:
        """Returns whether pruning ends before the last of so many rounds, if known."""
        return rounds is not None and self.end < 1

    def threshold_at(
        self, round_number: tf.Tensor | int, rounds: int | None
    ) -> tf.Tensor:
        """Returns the threshold in a round, from 0; after the end nothing is below."""
        if rounds is None or not self.ends(rounds):
            return tf.constant(self.threshold)
        goes_on = tf.cast(round_number, tf.float32) < self.end * rounds
        return tf.where(goes_on, self.threshold, _PRUNES_NOTHING)


class TrainingSums(NamedTuple):
    """Sums over the examples of all epochs."""

    loss: Any  # Float32[].
    count: Any  # Number of examples, float32[].
    metrics: Sequence[Sequence[Any]] = ()  # Variables of each Keras metric.

    @classmethod
    def zero(cls, metrics: Sequence[Sequence[Any]] = ()) -> TrainingSums:
        """Returns the sums over no examples; `metrics` are those of `Metrics.zeros`."""
        return cls(tf.constant(0.0), tf.constant(0.0), metrics)


class LocalTrainer:
    """Trains a Keras model from given weights with an optimizer of its own.

    Loss and metrics are those of a `tasks.Task`. Variables are created by the
    constructor, which has to be called outside of any `tf.function`; `train` is one,
    and serves every bit-width and number of examples.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        config: LocalTrainingConfig,
        loss: Any,
        pruning: Pruning | None = None,
        augment: Augment | None = None,
        on_step: OnStep | None = None,
        metrics: Metrics | None = None,
    ):
        self._model, self._config, self._metrics = model, config, metrics
        self._loss = build_loss(loss, model.output_names, model.output)
        self._pruning, self._on_step = pruning, on_step
        self._random_layers = SeededLayers(model)
        # The user's function may contain Python control flow on tensors.
        self._augment = None if augment is None else tf.function(augment)
        self._kernels = quantized_kernels(model)
        self._float_parameters = float_parameter_variables(model)
        rates = [0.0 if callable(r) else r for r, _ in config.learning_rates()]
        of_codes: dict[str, Any] = {
            name: getattr(config, name)
            for name in ("learning_rate_unit", "step_rounding")
            if hasattr(config, name)
        }
        self._optimizer = IntegerSGD(
            rates[0], rates[1], config.momentum, config.weight_decay, **of_codes
        )
        self._optimizer.build(model.trainable_variables)

    @tf.function(autograph=False)
    def train(
        self,
        weights: QuantizedWeights,
        features: Any,
        labels: Any,
        seed: tf.Tensor,
        learning_rates: tf.Tensor | None = None,
        sample_weight: Any = None,
        deadline: tf.Tensor | None = None,
        round_number: tf.Tensor | int = 0,
    ) -> tuple[QuantizedWeights, TrainingSums, tf.Tensor]:
        """Trains for the configured epochs, then prunes.

        Examples are any structures of tensors [n, ...]; n may be 0, which trains
        nothing. `seed` is stateless, int32[2]. `learning_rates` are those of
        `learning_rates_at`. `round_number`, int32[] from 0, decides them by default,
        and whether pruning has ended. No step begins after `deadline`, a
        `tf.timestamp`, float64[]. Returns trained weights, sums, and the layers' MSB
        densities before pruning, float32[L].
        """
        assign_quantized_weights(self._model, weights)
        seeds = tf.random.split(seed, 2)
        self._optimizer.reset(seeds[0])
        if learning_rates is None:
            learning_rates = learning_rates_at(self._config, round_number)
        self._optimizer.learning_rate = learning_rates[0]
        self._optimizer.float_learning_rate = learning_rates[1]
        if self._metrics is not None:
            self._metrics.reset()
        examples = features, labels, sample_weight
        sums = self._run_epochs(examples, seeds[1], deadline)
        if self._metrics is not None:
            sums = sums._replace(metrics=self._metrics.values())
        densities = [
            bit_planes.msb_density(k.representation, k.codes, k.bit_width)
            for k in self._kernels
        ]
        densities = tf.convert_to_tensor(densities, tf.float32)
        return self._pruned_weights(round_number), sums, densities

    def _run_epochs(
        self, examples: Any, seed: tf.Tensor, deadline: tf.Tensor | None
    ) -> TrainingSums:
        count, batch_size = count_examples(examples), self._config.batch_size
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
            batch, labels, sample_weight = tf.nest.map_structure(
                lambda tensor: None if tensor is None else tf.gather(tensor, chosen),
                examples,
            )
            if self._augment is not None:
                batch = self._augment(batch, step_seed)
            self._random_layers.seed = step_seed
            step_sums = self.step(batch, labels, sample_weight)
            sums = tf.nest.map_structure(tf.add, sums, step_sums)
            return step + 1, order, sums

        def goes_on(step, *_):
            if deadline is None:
                return step < num_steps
            return (step < num_steps) & (tf.timestamp() < deadline)

        first = (tf.constant(0), indices, TrainingSums.zero())
        scalar, vector = tf.TensorShape([]), tf.TensorShape([None])
        # Where the graph knows the number of images, `order` begins with it.
        shapes = (scalar, vector, TrainingSums(scalar, scalar))
        return tf.while_loop(goes_on, take_step, first, shape_invariants=shapes)[2]

    def step(
        self, features: Any, labels: Any, sample_weight: Any = None
    ) -> TrainingSums:
        """Takes a step of SGD on a batch of n examples; returns its sums."""
        variables = self._model.trainable_variables
        for layer in self._model._flatten_layers():
            # In graphs of TensorFlow 1, as TFF's are, Keras keeps those of other calls.
            del layer._losses[:]
        with tf.GradientTape() as tape:
            outputs = self._model(features, training=True)
            task_loss = tf.cast(self._loss(labels, outputs, sample_weight), tf.float32)
            # In a mixed policy a layer's own loss has the type of its output.
            of_layers = [tf.cast(loss, tf.float32) for loss in self._model.losses]
            # Keras minimizes the sum of a loss that nothing reduced.
            total_loss = tf.add_n([tf.reduce_sum(task_loss), *of_layers])
        gradients = tape.gradient(total_loss, variables)
        self._optimizer.apply_gradients(zip(gradients, variables))
        mean_loss = tf.reduce_mean(task_loss)
        if self._on_step is not None:
            self._on_step(mean_loss)
        if self._metrics is not None:
            self._metrics.update(labels, outputs, sample_weight)
        count = tf.cast(count_examples(labels), tf.float32)
        return TrainingSums(mean_loss * count, count)

    def _pruned_weights(self, round_number: tf.Tensor | int) -> QuantizedWeights:
        """Returns the model's weights without nearly empty top planes (Eq. 13)."""
        pruning, layers = self._pruning, []
        for k in self._kernels:
            layer = k.codes.value(), k.scale.value(), k.bit_width.value()
            if pruning is not None:
                threshold = pruning.threshold_at(round_number, self._config.rounds)
                layer = bit_planes.prune_msb(
                    k.representation, *layer, threshold, pruning.saturates
                )
            layers.append(layer)
        return QuantizedWeights(
            tuple(codes for codes, _, _ in layers),
            tf.convert_to_tensor([scale for _, scale, _ in layers], tf.float32),
            tf.convert_to_tensor([bit_width for *_, bit_width in layers], tf.int32),
            tuple(variable.read_value() for variable in self._float_parameters),
        )


class SeededLayers:
    """Makes the randomness of a model's layers a function of `seed`, int32[2]."""

    def __init__(self, model: tf.keras.Model):
        self.seed = tf.constant([0, 0])
        layers = [x for x in model._flatten_layers() if hasattr(x, "_random_generator")]
        for index, layer in enumerate(layers):
            # Keras's own stateless generators draw the same numbers in every step.
            generator = layer._random_generator
            generator._rng_type, generator._built = generator.RNG_STATELESS, True
            generator.make_seed_for_stateless_op = functools.partial(self._next, index)

    def _next(self, index: int) -> tf.Tensor:
        return tf.random.fold_in(tf.random.fold_in(self.seed, _LAYERS), index)


def count_examples(examples: Any) -> tf.Tensor:
    """Returns the number of examples in a batch, int32[]."""
    return tf.shape(tf.nest.flatten(examples)[0])[0]
