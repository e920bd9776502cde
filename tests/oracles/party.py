"""A server and clients that answer it honestly, or not, as functions run eagerly."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tff_fedmpq.federated import acceptance, messages
from tff_fedmpq.federated.client_work import ClientResult
from tff_fedmpq.federated.local_training import TrainingSums
from tff_fedmpq.federated.server import Server
from tff_fedmpq.keras.variables import ModelSpec, float_non_trainable_variables

KEYS = (0, 1, 2, 3)
NUM_EXAMPLES = 12.0


class Party:
    """A server of a scheme, and the messages that it sent in its first round."""

    def __init__(self, problem, config, round_number=0, **options):
        scheme, model = config.compose(), problem.model_fn()
        self.spec = ModelSpec.from_model(scheme.build_client_model(model))
        statistics = float_non_trainable_variables(model)
        names = [variable.name for variable in statistics]
        budgets = np.array(list(problem.budgets.values()), np.float64)
        self.server = Server(
            scheme,
            self.spec,
            budgets,
            seed=0,
            is_variance=["variance" in name for name in names],
            **options,
        )
        state = self.server.initial_state(
            [v.numpy() for v in model.trainable_variables],
            [v.numpy() for v in statistics],
        )
        state.distributor["round"] = tf.constant(round_number)
        self.receive(state)

    def receive(self, state: Any) -> None:
        """Sends all clients their messages of the round of a state."""
        self.state = state
        self._trained: dict[Any, ClientResult] = {}
        self.sent = [self.server.message_for(self.state, tf.constant(k)) for k in KEYS]

    def answer(
        self, key: int, change: Any = None, train: Any = lambda p: 1.01 * p
    ) -> ClientResult:
        """Returns what a client sends; `change` comes before its checksum.

        What no `change` has touched is computed once for each function `train`.
        """
        if (key, train) not in self._trained:
            self._trained[key, train] = self._signed(key, self._work(key, train))
        result = self._trained[key, train]
        if change is None:
            return result
        return self._signed(key, change(result))

    def _signed(self, key: int, result: ClientResult) -> ClientResult:
        result = result._replace(checksum=())
        checksum = acceptance.checksum(result, self.sent[key]["seed"])
        return result._replace(checksum=checksum)

    def _work(self, key: int, train: Any) -> ClientResult:
        received, uplink = self.sent[key], self.server.scheme.uplink
        weights = messages.unpack_model(received, self.spec)
        trained = weights._replace(
            float_parameters=tuple(map(train, weights.float_parameters))
        )
        budget = tf.constant(self.server.budgets[key], tf.float32)
        message = uplink.encode(trained, weights, budget, received["seed"])
        count = tf.constant(NUM_EXAMPLES)
        weight = self.server.scheme.aggregation_weight(budget, count)
        return ClientResult(
            key=tf.constant(key),
            weight=weight,
            message=message,
            bit_widths=weights.bit_widths,
            training=TrainingSums(*map(tf.constant, (9.0, NUM_EXAMPLES))),
            msb_densities=tf.fill(weights.bit_widths.shape, 0.5),
            num_examples=count,
            fault=tf.constant(0),
            checksum=(),
        )

    def accumulate(self, answers, tickets=None, sums=None):
        """Adds answers to sums, by default to zero."""
        sums = self.server.zero() if sums is None else sums
        for i, answer in enumerate(answers):
            key = int(answer.key) if tickets is None else None
            ticket = self.sent[key]["ticket"] if tickets is None else tickets[i]
            sums = self.server.accumulate(sums, answer, ticket)
        return sums
