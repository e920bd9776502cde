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

    def __init__(self, problem, config, round_number=0):
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
        )
        self.state = self.server.initial_state(
            [v.numpy() for v in model.trainable_variables],
            [v.numpy() for v in statistics],
        )
        self.state.distributor["round"] = tf.constant(round_number)
        self.sent = [self.server.message_for(self.state, tf.constant(k)) for k in KEYS]

    def answer(self, key: int, change: Any = lambda result: result) -> ClientResult:
        """Returns what a client sends; `change` comes before its checksum."""
        received, uplink = self.sent[key], self.server.scheme.uplink
        weights = messages.unpack_model(received, self.spec)
        trained = weights._replace(
            float_parameters=tuple(1.01 * p for p in weights.float_parameters)
        )
        budget = tf.constant(self.server.budgets[key], tf.float32)
        message = uplink.encode(trained, weights, budget, received["seed"])
        count = tf.constant(NUM_EXAMPLES)
        weight = self.server.scheme.aggregation_weight(budget, count)
        result = ClientResult(
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
        result = change(result)
        checksum = acceptance.checksum(result, received["seed"])
        return result._replace(checksum=checksum)

    def accumulate(self, answers, tickets=None):
        sums = self.server.zero()
        for i, answer in enumerate(answers):
            key = int(answer.key) if tickets is None else None
            ticket = self.sent[key]["ticket"] if tickets is None else tickets[i]
            sums = self.server.accumulate(sums, answer, ticket)
        return sums
