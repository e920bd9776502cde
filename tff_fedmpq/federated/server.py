"""The server's part of a round: messages to clients, aggregation, the next state.

    message_for    averaged bits -> b_n within the client's budget        (Alg. 2)
                   W, b_n -> quantized, packed model                      (Eq. 14)
    accumulate     client result -> checked, decoded, added to the sums   (Eq. 15)
    update         sums -> next W, next averaged bits                     (Eq. 15, 16)

A client's bit-widths are computed when it is selected, from the average of the last
round, the bits that its own training pruned last, and its budget: clients that take
part for the first time also profit from what the others found. Client results are added
one at a time, so the server never holds more than one client's model beside its own.

Activations of coarser weights have other means and variances, so BatchNorm statistics
are averaged over the clients of each budget, and a client is sent what a fit over all
budgets gives for its own (`budget_statistics`); the global model has that for float
weights.

A result that fails a check of `acceptance` adds nothing to any sum; its reason is in
the measurements. A round of fewer contributions than `min_clients`, or whose next state
would hold a number that is not finite, is abandoned.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from tff_fedmpq._tff import tff
from tff_fedmpq.federated import acceptance, messages
from tff_fedmpq.federated.acceptance import Check, Rejection, Ticket
from tff_fedmpq.federated.aggregation import Aggregated, Aggregation
from tff_fedmpq.federated.answer_checks import AnswerChecks
from tff_fedmpq.federated.budget_statistics import (
    FLOAT_BUDGET,
    mean_statistics,
    statistics_shares,
)
from tff_fedmpq.federated.client_work import ClientResult
from tff_fedmpq.federated.local_training import TrainingSums, learning_rates_at
from tff_fedmpq.federated.round_sums import (
    Contribution,
    RoundSums,
    either,
    only_of_round,
)
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.federated.tasks import Metrics
from tff_fedmpq.keras.variables import FloatWeights, ModelSpec

# The type of `tff.learning.templates.LearningAlgorithmState`, which has no stubs.
State = Any


def _draw_secret() -> tuple[int, int]:
    """Returns the key of a server's tickets, on which no result depends."""
    return secrets.randbits(63), secrets.randbits(63)


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
    is_variance: Sequence[bool] = ()  # Of each tensor of statistics.
    per_client: bool = False  # Whether training is measured of each client too.
    aggregation: Aggregation | None = None  # None takes weighted means.
    secret: tuple[int, int] = dataclasses.field(
        default_factory=_draw_secret, repr=False
    )

    @property
    def levels(self) -> np.ndarray:
        """Budgets that have statistics of their own, ascending, float64[G].

        What a scheme cannot use of a budget has no effect on activations.
        """
        usable = self._usable_budgets
        return np.unique(usable) if self.scheme.statistics_per_budget else usable[:1]

    @property
    def _usable_budgets(self) -> np.ndarray:
        return self.scheme.usable_budgets(self.budgets)

    @property
    def _checks(self) -> AnswerChecks:
        return AnswerChecks(
            self.scheme, self.spec, self.budgets, self.is_variance, self.secret
        )

    def _level_of(self, key: Any) -> tf.Tensor:
        """Returns the index of a client's budget among `levels`, int64[]."""
        if not self.scheme.statistics_per_budget:
            return tf.constant(0, tf.int64)
        return tf.gather(np.searchsorted(self.levels, self._usable_budgets), key)

    def initial_state(
        self, trainable: Sequence[np.ndarray], non_trainable: Sequence[np.ndarray]
    ) -> State:
        """Returns the state before the first round, a `LearningAlgorithmState`.

        Its distributor holds ``round`` int32[]; ``mean_bit_widths`` float32[L], the
        average of the last round, 0 before the first; and ``bit_reductions`` int32[N,
        L], the bits that each client's training pruned when it last took part. For G
        budgets, ``statistics`` holds float32[G, ...] for each tensor of statistics, and
        ``statistics_weights`` float32[G] the sum of p_n over the clients that they are
        of, 0 where none took part yet.
        ``population`` int64[] is the digest of client ids and budgets. The finalizer is
        the state of the server's optimizer, () without one; the aggregator's is added
        by the process.
        """
        num_layers, num_budgets = len(self.spec.kernel_shapes), len(self.levels)
        copies = [np.stack(num_budgets * [value]) for value in non_trainable]
        distributor = collections.OrderedDict(
            bit_reductions=tf.zeros([len(self.budgets), num_layers], tf.int32),
            mean_bit_widths=tf.zeros([num_layers]),
            population=tf.constant(self.population, tf.int64),
            round=tf.constant(0),
            statistics=list(map(tf.constant, copies)),
            statistics_weights=tf.zeros([num_budgets]),
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
        seed = tf.random.fold_in(round_seed, key)
        rates = learning_rates_at(self.scheme.training, round_number)
        model = messages.pack_model(self.model_for(state, key))
        (flat,) = acceptance.joined([model["scales"], *model["float_parameters"]])
        statistics = flat[tf.size(flat) - self.spec.num_statistics :]
        headers = [seed, rates, *([round_number] if self.scheme.needs_round else [])]
        ticket = Ticket(
            tf.convert_to_tensor(key),
            round_number,
            seed,
            model["bit_widths"],
            model["scales"],
            tf.maximum(tf.reduce_max(tf.abs(flat)), 1.0),
            self._checks.variances(statistics),
            messages.count_model_bits(model, headers),
            acceptance.fingerprint(model, self.secret),
            tag=(),
        )
        # `tff.federated_select` requires keys in alphabetical order.
        return collections.OrderedDict(
            model,
            seed=seed,
            ticket=acceptance.sign(ticket, self.secret),
            training_rates=rates,
        )

    def model_for(self, state: State, key: Any) -> messages.QuantizedWeights:
        """Returns the model of the client of row `key`, at its own bit-widths."""
        statistics = self.statistics_of(state, self._level_of(key))
        trainable = tuple(state.global_model_weights.trainable)
        weights = self.spec.split(trainable, statistics)
        bit_widths = self.bit_widths(state, [key])[0]
        if self.scheme.weights is None:
            others = weights.float_parameters
            return messages.QuantizedWeights((), tf.zeros([0]), bit_widths, others)
        return messages.quantize_weights(weights, bit_widths, *self.scheme.weights)

    def bit_widths(self, state: State, keys: Any = None) -> tf.Tensor:
        """Returns the next round's bit-widths of some clients, or of all; int32[n, L].

        Before the first average an allocation starts from whole, uniform bits, or from
        one: of equal budgets, whose clients have all of theirs used, whole bits leave
        nothing to prune or grow, in this round and in all others.
        """
        mean = state.distributor["mean_bit_widths"]
        reductions = state.distributor["bit_reductions"]
        budgets = tf.constant(self.budgets)
        if keys is not None:
            reductions, budgets = tf.gather(reductions, keys), tf.gather(budgets, keys)
        if not self.spec.kernel_shapes:
            return tf.zeros(tf.shape(reductions), tf.int32)
        first = tf.cast(tf.floor(budgets), tf.float32)[:, tf.newaxis]
        if self.scheme.starts_from_one_bit:
            first = tf.ones_like(first)
        means = tf.where(mean > 0, mean, first)
        return self.scheme.allocation(means, reductions, self.spec.layer_sizes, budgets)

    def statistics_of(self, state: State, level: Any = None) -> list[tf.Tensor]:
        """Returns what clients are sent, for each tensor of statistics.

        For all `levels`, float32[G, ...], or for one, float32[...]. Where nobody took
        part yet these are the global model's.
        """
        weights = state.distributor["statistics_weights"]
        shares = statistics_shares(self.levels, self.levels, weights)
        shares = shares if level is None else tf.gather(shares, level)
        means = mean_statistics(state.distributor["statistics"], shares)
        is_known = tf.reduce_any(weights > 0)
        common = state.global_model_weights.non_trainable
        return [tf.where(is_known, *pair) for pair in zip(means, common)]

    def float_weights(self, state: State) -> FloatWeights:
        """Returns the global model of a state."""
        weights = state.global_model_weights
        return self.spec.split(tuple(weights.trainable), tuple(weights.non_trainable))

    def zero(self) -> RoundSums:
        """Returns the sums over no client."""
        return RoundSums.zero(
            self.spec,
            len(self.budgets),
            len(self.levels),
            self.scheme.uplink.symbols_shape(self.spec),
            TrainingSums.zero(self.build_metrics().zeros()),
            self.per_client,
        )

    def accumulate(
        self, sums: RoundSums, result: ClientResult, ticket: Ticket
    ) -> RoundSums:
        """Returns the sums with one more client, which answers to `ticket`.

        Of a result that fails a check only that is noted.
        """
        checks, uplink = self._checks, self.scheme.uplink
        is_genuine = checks.is_genuine(ticket)
        latest = tf.where(is_genuine, tf.maximum(sums.round, ticket.round), sums.round)
        sums = only_of_round(sums, latest)
        of_ticket: list[Check] = [
            (lambda: is_genuine, Rejection.TICKET),
            (lambda: tf.equal(ticket.round, latest), Rejection.ROUND),
        ]
        training, like = map(tf.nest.flatten, (result.training, sums.training))
        of_training: Check = (
            lambda: acceptance.have_shapes(training, [t.shape for t in like]),
            Rejection.SHAPES,
        )
        of_result = [*of_ticket, *checks.of_result(result, ticket), of_training]
        fault = acceptance.first_fault(of_result)
        can_read = tf.equal(fault, 0)
        contribution = tf.cond(
            can_read,
            lambda: Contribution.of(result, uplink, self.spec),
            lambda: Contribution.of_nothing(sums.training, uplink, self.spec),
        )
        of_weights = list(checks.of_weights(contribution.weights, ticket))
        fault = tf.where(can_read, acceptance.first_fault(of_weights), fault)
        is_good = tf.equal(fault, 0)
        key = tf.where(is_genuine, ticket.key, 0)
        row = key, self._level_of(key), ticket.downlink_bits
        added = sums.add(contribution, *row, is_good)
        # It takes part, with weight zero.
        is_empty = is_good & tf.equal(contribution.num_examples, 0)
        fault = tf.where(is_empty, int(Rejection.NO_EXAMPLES), fault)
        return added.note(key, fault, is_genuine)

    def change(
        self, result: ClientResult, ticket: Ticket, model: Any, round_number: tf.Tensor
    ) -> tuple[Mapping[str, Any], tf.Tensor]:
        """Returns what a client alone would change in the model of a state.

        `model` is the state's `tff.learning.models.ModelWeights`. The second result is
        the client's weight p_n, 0 for one that is left out, which changes nothing.
        """
        sums = self.accumulate(self.zero(), result, ticket)
        sums = only_of_round(sums, round_number)
        present = self.spec.split(tuple(model.trainable), tuple(model.non_trainable))
        trained = self.scheme.uplink.apply(present, sums.mean_weights(self.spec))
        changes = [
            [
                either(sums.is_empty, tf.zeros_like(old), new - old)
                for new, old in zip(*pair)
            ]
            for pair in zip(self.spec.join(trained), self.spec.join(present))
        ]
        parts = collections.OrderedDict(zip(("weights", "statistics"), changes))
        return parts, sums.total_weight

    def update(
        self, state: State, sums: RoundSums, aggregated: Aggregated | None = None
    ) -> tuple[State, Mapping[str, Any]]:
        """Returns the next state, and the round's measurements.

        With an aggregator, `aggregated` takes the place of the sums of weights. An
        abandoned round leaves all of the state but the round's number as it is.
        """
        sums = only_of_round(sums, state.distributor["round"])
        once = tf.debugging.Assert(
            tf.reduce_all(sums.participations <= 1),
            ["A client took part twice in a round:", sums.participations],
            summarize=20,
        )
        same = tf.debugging.Assert(
            tf.equal(state.distributor["population"], self.population),
            ["The state is of other clients or budgets."],
        )
        with tf.control_dependencies([once, same]):
            following = self._following(state, sums, aggregated)
        min_clients = self.scheme.training.min_clients
        is_kept = sums.num_contributions >= min_clients
        is_kept &= acceptance.all_finite(following)
        flat = [
            either(is_kept, new, old)
            for new, old in zip(tf.nest.flatten(following), tf.nest.flatten(state))
        ]
        next_state = tf.nest.pack_sequence_as(following, flat)
        next_state.distributor["round"] = state.distributor["round"] + 1
        table = self.bit_widths(next_state)
        rates = learning_rates_at(self.scheme.training, state.distributor["round"])
        metrics = self.build_metrics()
        measured = sums.measurements(metrics, table, rates, ~is_kept)
        if aggregated is not None:
            measured["aggregator"] = aggregated.measurements
        return next_state, measured

    def _following(
        self, state: State, sums: RoundSums, aggregated: Aggregated | None
    ) -> State:
        """Returns the next state of a round that is not abandoned."""
        bits = state.distributor
        took_part = sums.participations[:, tf.newaxis] > 0
        pruned = self.bit_widths(state) - sums.bit_widths
        mean_bit_widths = sums.mean_bit_widths()
        weights = sums.budget_weights
        if self.aggregation is not None and self.aggregation.is_private:
            # Averages and weights depend on numbers of examples.
            mean_bit_widths = bits["mean_bit_widths"]
            weights = tf.sign(weights)
        weights = tf.where(weights > 0, weights, bits["statistics_weights"])
        trainable, rows = self._next_weights(state, sums, aggregated)
        shares = statistics_shares(np.array([FLOAT_BUDGET]), self.levels, weights)
        common = mean_statistics(rows, shares[0])
        distributor = collections.OrderedDict(
            bit_reductions=tf.where(took_part, pruned, bits["bit_reductions"]),
            mean_bit_widths=mean_bit_widths,
            population=bits["population"],
            round=bits["round"],
            statistics=rows,
            statistics_weights=weights,
        )
        finalizer = state.finalizer
        if self.optimizer is not None:
            old = list(state.global_model_weights.trainable)
            gradients = tf.nest.map_structure(tf.subtract, old, trainable)
            finalizer, trainable = self.optimizer.next(finalizer, old, gradients)
        model = tff.learning.models.ModelWeights(trainable, common)
        following = state._replace(
            global_model_weights=model, distributor=distributor, finalizer=finalizer
        )
        if aggregated is not None:
            following = following._replace(aggregator=aggregated.state)
        return following

    def _next_weights(
        self, state: State, sums: RoundSums, aggregated: Aggregated | None
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Returns trainable weights, and statistics of each budget."""
        if aggregated is None:
            present = self.float_weights(state)
            weights = self.scheme.uplink.apply(present, sums.mean_weights(self.spec))
            return list(self.spec.join(weights)[0]), self._next_statistics(state, sums)
        model, changes = state.global_model_weights, aggregated.changes
        trainable = list(map(tf.add, model.trainable, changes["weights"]))
        common = list(map(tf.add, model.non_trainable, changes.get("statistics", [])))
        # Noise may take variances below zero.
        flags = self.is_variance or itertools.repeat(False)
        common = [tf.maximum(t, 0) if v else t for t, v in zip(common, flags)]
        return trainable, [value[tf.newaxis] for value in common]

    def _next_statistics(self, state: State, sums: RoundSums) -> list[tf.Tensor]:
        """Returns the statistics of each budget after a round, float32[G, ...] each."""

        def by_budget(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
            return tf.reshape(values, [-1] + [1] * (like.shape.rank - 1))

        means = [
            tf.math.divide_no_nan(rows, by_budget(sums.budget_weights, rows))
            for rows in sums.statistics_of(self.spec)
        ]
        following = self.scheme.uplink.apply(
            FloatWeights((), self.statistics_of(state)),
            FloatWeights((), means),
        )
        return [
            tf.where(by_budget(sums.budget_weights > 0, old), new, old)
            for new, old in zip(
                following.float_parameters, state.distributor["statistics"]
            )
        ]
