"""The server's part of a round: messages to clients, aggregation, the next state.

    message_for    averaged bits -> b_n within the client's budget        (Alg. 2)
                   W, b_n -> quantized, packed model                      (Eq. 14)
    accumulate     client result -> decoded, added to the round's sums    (Eq. 15)
    update         sums -> next W, next averaged bits                     (Eq. 15, 16)

A client's bit-widths are computed when it is selected, from the average of the last
round, the bits that its own training pruned last, and its budget: clients that take
part for the first time also profit from what the others found. Client results are added
one at a time, so the server never holds more than one client's model beside its own.

Activations of coarser weights have other means and variances, so BatchNorm statistics
are averaged over the clients of each budget and sent to these. A budget of which no
client took part yet gets those of the nearest one that did. The global model has the
average over the clients of the last round, whatever their budget.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple

import numpy as np
import tensorflow as tf

from tff_fedmpq._tff import tff
from tff_fedmpq.federated import messages
from tff_fedmpq.federated.client_work import ClientResult
from tff_fedmpq.federated.local_training import TrainingSums, learning_rates_at
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.federated.tasks import Metrics
from tff_fedmpq.keras.variables import FloatWeights, ModelSpec

# The type of `tff.learning.templates.LearningAlgorithmState`, which has no stubs.
State = Any


class RoundSums(NamedTuple):
    """Sums and tables over the clients of a round; rows of other clients are zero."""

    weights: FloatWeights  # Sum of p_n W_n.
    weighted_bit_widths: Any  # Sum of p_n b_n, float32[L].
    total_weight: Any  # Sum of p_n, float32[].
    training: TrainingSums
    msb_densities: Any  # Sum over clients, float32[L].
    participations: Any  # How often each client took part, int32[N].
    bit_widths: Any  # Bits per weight after training, int32[N, L].
    uplink_bits: Any  # Size of what each client sent, int64[N, 4].
    downlink_bits: Any  # Size of what each client received, int64[N, 4].
    symbols: Any  # To entropy-code, int16[N, streams, symbols].
    statistics: Sequence[Any]  # Sums of p_n times statistics by budget, [G, ...] each.
    budget_weights: Any  # Sums of p_n by budget, float32[G].

    @property
    def is_empty(self) -> tf.Tensor:
        """Whether no client of the round had weight, bool[]."""
        return tf.logical_not(self.total_weight > 0)

    def mean_weights(self) -> FloatWeights:
        """Returns the average of Eq. 15; zeros for an empty round."""
        return tf.nest.map_structure(self._divide, self.weights)

    def mean_bit_widths(self) -> tf.Tensor:
        """Returns the average bit-widths, float32[L]; zeros for an empty round."""
        return self._divide(self.weighted_bit_widths)

    def _divide(self, total: tf.Tensor) -> tf.Tensor:
        return tf.math.divide_no_nan(total, self.total_weight)


def merge(a: RoundSums, b: RoundSums) -> RoundSums:
    """Returns the sums over two disjoint sets of clients."""
    return tf.nest.map_structure(tf.add, a, b)


@dataclasses.dataclass(frozen=True, eq=False)
class Server:
    """The server of a scheme; holds settings, not state."""

    scheme: Scheme
    spec: ModelSpec  # Weights of the scheme's client model.
    budgets: np.ndarray  # Bits per weight of each client, float64[N].
    seed: int  # Of all clients' training.
    population: int = 0  # Digest of client ids and budgets, in states.
    build_metrics: Callable[[], Metrics] = Metrics  # Of clients' training.
    optimizer: Any = None  # A `tff.learning.optimizers.Optimizer`; None takes averages.

    @property
    def levels(self) -> np.ndarray:
        """Budgets that have statistics of their own, ascending, float64[G]."""
        own = self.scheme.statistics_per_budget
        return np.unique(self.budgets) if own else self.budgets[:1]

    def _level_of(self, key: Any) -> tf.Tensor:
        """Returns the index of a client's budget among `levels`, int64[]."""
        if not self.scheme.statistics_per_budget:
            return tf.constant(0, tf.int64)
        return tf.gather(np.searchsorted(self.levels, self.budgets), key)

    def initial_state(
        self, trainable: Sequence[np.ndarray], non_trainable: Sequence[np.ndarray]
    ) -> State:
        """Returns the state before the first round, a `LearningAlgorithmState`.

        Its distributor holds ``round`` int32[]; ``mean_bit_widths`` float32[L], the
        average of the last round, 0 before the first; and ``bit_reductions`` int32[N,
        L], the bits that each client's training pruned when it last took part. For G
        budgets, ``statistics`` holds float32[G, ...] for each tensor of statistics, and
        ``has_statistics`` bool[G] whether a client of the budget took part.
        ``population`` int64[] is the digest of client ids and budgets. The finalizer is
        the state of the server's optimizer, () without one.
        """
        num_layers, num_budgets = len(self.spec.kernel_shapes), len(self.levels)
        copies = [np.stack(num_budgets * [value]) for value in non_trainable]
        distributor = collections.OrderedDict(
            bit_reductions=tf.zeros([len(self.budgets), num_layers], tf.int32),
            has_statistics=tf.zeros([num_budgets], tf.bool),
            mean_bit_widths=tf.zeros([num_layers]),
            population=tf.constant(self.population, tf.int64),
            round=tf.constant(0),
            statistics=list(map(tf.constant, copies)),
        )
        model = tff.learning.models.ModelWeights(
            list(map(tf.constant, trainable)), list(map(tf.constant, non_trainable))
        )
        specs = list(map(tf.TensorSpec.from_tensor, model.trainable))
        finalizer = () if self.optimizer is None else self.optimizer.initialize(specs)
        return tff.learning.templates.LearningAlgorithmState(
            model, distributor, client_work=(), aggregator=(), finalizer=finalizer
        )

    def message_for(self, state: State, key: tf.Tensor) -> messages.Message:
        """Returns the message to a client: its model, the seed and the learning rates.

        The seed is a function of the run's seed, the round and the client.
        """
        round_number = state.distributor["round"]
        round_seed = tf.random.fold_in([self.seed, 0], round_number)
        # `tff.federated_select` requires keys in alphabetical order.
        return collections.OrderedDict(
            messages.pack_model(self.model_for(state, key)),
            seed=tf.random.fold_in(round_seed, key),
            training_rates=learning_rates_at(self.scheme.training, round_number),
        )

    def model_for(self, state: State, key: Any) -> messages.QuantizedWeights:
        """Returns the model of the client of row `key`, at its own bit-widths."""
        level = self._level_of(key)
        statistics = [
            rows[level] for rows in self.statistics_of(state, self.levels, self.levels)
        ]
        trainable = tuple(state.global_model_weights.trainable)
        weights = self.spec.split(trainable, statistics)
        bit_widths = self.bit_widths(state, [key])[0]
        if self.scheme.weights is None:
            others = weights.float_parameters
            return messages.QuantizedWeights((), tf.zeros([0]), bit_widths, others)
        return messages.quantize_weights(weights, bit_widths, *self.scheme.weights)

    def bit_widths(self, state: State, keys: Any = None) -> tf.Tensor:
        """Returns the next round's bit-widths of some clients, or of all; int32[n, L].

        Before the first average, Pruning-Growing starts from whole, uniform bits.
        """
        mean = state.distributor["mean_bit_widths"]
        reductions = state.distributor["bit_reductions"]
        budgets = tf.constant(self.budgets)
        if keys is not None:
            reductions, budgets = tf.gather(reductions, keys), tf.gather(budgets, keys)
        if not self.spec.kernel_shapes:
            return tf.zeros(tf.shape(reductions), tf.int32)
        uniform = tf.cast(tf.floor(budgets), tf.float32)[:, tf.newaxis]
        means = tf.where(mean > 0, mean, uniform)
        return self.scheme.allocation(means, reductions, self.spec.layer_sizes, budgets)

    def statistics_of(
        self, state: State, known_levels: np.ndarray, levels: np.ndarray
    ) -> list[tf.Tensor]:
        """Returns what clients of some budgets are sent, float32[G, ...] each.

        `known_levels` are the budgets of the state's rows. These are the statistics of
        the nearest budget that has any, or else the global model's.
        """
        common = state.global_model_weights.non_trainable
        known = state.distributor["has_statistics"]
        distances = np.abs(levels[:, np.newaxis] - known_levels)
        nearest = tf.argmin(tf.where(known, distances, np.inf), axis=1)
        return [
            tf.where(tf.reduce_any(known), tf.gather(rows, nearest), value)
            for rows, value in zip(state.distributor["statistics"], common)
        ]

    def float_weights(self, state: State) -> FloatWeights:
        """Returns the global model of a state."""
        weights = state.global_model_weights
        return self.spec.split(tuple(weights.trainable), tuple(weights.non_trainable))

    def zero(self) -> RoundSums:
        """Returns the sums over no client."""
        spec, num_clients = self.spec, len(self.budgets)
        num_layers, num_items = len(spec.kernel_shapes), len(messages.BIT_ITEMS)
        float_parameters = tuple(map(tf.zeros, spec.float_parameter_shapes))
        return RoundSums(
            FloatWeights(tuple(map(tf.zeros, spec.kernel_shapes)), float_parameters),
            tf.zeros([num_layers]),
            tf.zeros([]),
            TrainingSums.zero(self.build_metrics().zeros()),
            tf.zeros([num_layers]),
            tf.zeros([num_clients], tf.int32),
            tf.zeros([num_clients, num_layers], tf.int32),
            tf.zeros([num_clients, num_items], tf.int64),
            tf.zeros([num_clients, num_items], tf.int64),
            tf.zeros([num_clients, *self.scheme.uplink.symbols_shape(spec)], tf.int16),
            [tf.zeros([len(self.levels), *s]) for s in spec.non_trainable_shapes],
            tf.zeros([len(self.levels)]),
        )

    def accumulate(self, sums: RoundSums, result: ClientResult) -> RoundSums:
        """Returns the sums with one more client."""
        decoded = self.scheme.uplink.decode(result.message, self.spec)
        _, statistics = self.spec.join(decoded)
        level = self._level_of(result.key)

        def add_weighted(total: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
            return total + result.weight * tf.cast(value, tf.float32)

        def add_row(table: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
            if table.shape.num_elements() == 0:
                return table  # A float model's; TensorFlow cannot update it.
            return tf.tensor_scatter_nd_add(table, [[result.key]], [row])

        return RoundSums(
            tf.nest.map_structure(add_weighted, sums.weights, decoded),
            add_weighted(sums.weighted_bit_widths, result.bit_widths),
            sums.total_weight + result.weight,
            tf.nest.map_structure(tf.add, sums.training, result.training),
            sums.msb_densities + result.msb_densities,
            add_row(sums.participations, tf.constant(1)),
            add_row(sums.bit_widths, result.bit_widths),
            add_row(sums.uplink_bits, result.uplink_bits),
            add_row(sums.downlink_bits, result.downlink_bits),
            add_row(sums.symbols, result.symbols),
            [
                tf.tensor_scatter_nd_add(rows, [[level]], [result.weight * value])
                for rows, value in zip(sums.statistics, statistics)
            ],
            tf.tensor_scatter_nd_add(sums.budget_weights, [[level]], [result.weight]),
        )

    def update(self, state: State, sums: RoundSums) -> tuple[State, Mapping[str, Any]]:
        """Returns the next state, and the round's measurements.

        A round without weight leaves the model and the averaged bit-widths as they are.
        """
        once = tf.debugging.Assert(
            tf.reduce_all(sums.participations <= 1),
            ["A client took part twice in a round:", sums.participations],
            summarize=20,
        )
        same = tf.debugging.Assert(
            tf.equal(state.distributor["population"], self.population),
            ["The state is of other clients or budgets."],
        )

        def unless_empty(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
            return tf.where(sums.is_empty, old, new)

        with tf.control_dependencies([once, same]):
            present, bits = self.float_weights(state), state.distributor
            following = self.scheme.uplink.apply(present, sums.mean_weights())
            weights = tf.nest.map_structure(unless_empty, following, present)
            means = unless_empty(sums.mean_bit_widths(), bits["mean_bit_widths"])
            took_part = sums.participations[:, tf.newaxis] > 0
            pruned = self.bit_widths(state) - sums.bit_widths
            reductions = tf.where(took_part, pruned, bits["bit_reductions"])
            rows = self._next_statistics(state, sums)
        distributor = collections.OrderedDict(
            bit_reductions=reductions,
            has_statistics=bits["has_statistics"] | (sums.budget_weights > 0),
            mean_bit_widths=means,
            population=bits["population"],
            round=bits["round"] + 1,
            statistics=rows,
        )
        shares = tf.math.divide_no_nan(sums.budget_weights, sums.total_weight)
        common = [
            unless_empty(tf.tensordot(shares, new, 1), old)
            for new, old in zip(rows, state.global_model_weights.non_trainable)
        ]
        trainable = list(self.spec.join(weights)[0])
        finalizer = state.finalizer
        if self.optimizer is not None:
            old = finalizer, list(state.global_model_weights.trainable)
            gradients = tf.nest.map_structure(tf.subtract, old[1], trainable)
            new = self.optimizer.next(*old, gradients)
            finalizer, trainable = tf.nest.map_structure(unless_empty, new, old)
        next_state = state._replace(
            global_model_weights=tff.learning.models.ModelWeights(trainable, common),
            distributor=distributor,
            finalizer=finalizer,
        )
        rates = learning_rates_at(self.scheme.training, bits["round"])
        return next_state, self.measurements(sums, self.bit_widths(next_state), rates)

    def measurements(
        self, sums: RoundSums, table: tf.Tensor, rates: tf.Tensor
    ) -> Mapping[str, Any]:
        """Returns a round's measurements.

        client_work.train: loss, metrics of the task by their names, and num_examples,
          of all steps, float32[] each; accuracy is that of classification.
        participations: 1 for the round's clients, int32[N].
        uplink_bits, downlink_bits: sizes of messages by `messages.BIT_ITEMS`, int64[N,
          4]; see `Uplink.count_bits` for entropy coding.
        uplink_symbols: symbols to entropy-code, int16[N, streams, symbols]; empty for
          schemes without entropy coding.
        mean_bit_widths: average bits per weight after training, float32[L].
        msb_densities: mean over clients, before pruning, float32[L].
        bit_widths: bits per weight in the next round (the argument `table`), int32[N,
          L].
        training_rates: learning rates of kernels and of float parameters, float32[2].
        """
        count = sums.training.count
        num_clients = tf.cast(tf.reduce_sum(sums.participations), tf.float32)
        train = collections.OrderedDict(
            loss=tf.math.divide_no_nan(sums.training.loss, count)
        )
        train.update(self.build_metrics().results(sums.training.metrics))
        train["num_examples"] = count
        return collections.OrderedDict(
            client_work=collections.OrderedDict(train=train),
            participations=sums.participations,
            uplink_bits=sums.uplink_bits,
            downlink_bits=sums.downlink_bits,
            uplink_symbols=sums.symbols,
            mean_bit_widths=sums.mean_bit_widths(),
            msb_densities=tf.math.divide_no_nan(sums.msb_densities, num_clients),
            bit_widths=table,
            training_rates=rates,
        )

    def _next_statistics(self, state: State, sums: RoundSums) -> list[tf.Tensor]:
        """Returns the statistics of each budget after a round, float32[G, ...] each."""

        def by_budget(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
            return tf.reshape(values, [-1] + [1] * (like.shape.rank - 1))

        means = [
            tf.math.divide_no_nan(rows, by_budget(sums.budget_weights, rows))
            for rows in sums.statistics
        ]
        following = self.scheme.uplink.apply(
            FloatWeights((), self.statistics_of(state, self.levels, self.levels)),
            FloatWeights((), means),
        )
        return [
            tf.where(by_budget(sums.budget_weights > 0, old), new, old)
            for new, old in zip(
                following.float_parameters, state.distributor["statistics"]
            )
        ]
