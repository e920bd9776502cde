"""Optimizers at the server, against NumPy on what plain averaging gives."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from oracles.party import Party

from tff_fedmpq.baselines.fedavg import FedAvgConfig, build_fedavg
from tff_fedmpq.federated.fedmpq import FedMPQConfig, build_fedmpq

optimizers = tff.learning.optimizers


class Momentum:
    """FedAvgM: v <- beta v + g, w <- w - eta v."""

    tff = optimizers.build_sgdm(0.5, 0.9)

    def __init__(self):
        self.velocity = 0.0

    def step(self, gradient):
        self.velocity = 0.9 * self.velocity + gradient
        return 0.5 * self.velocity


class Adam:
    """FedAdam (Reddi et al. 2021) with Adam's correction of the first steps."""

    tff = optimizers.build_adam(0.01, 0.9, 0.99, 1e-3)

    def __init__(self):
        self.steps, self.mean, self.square = 0, 0.0, 0.0

    def step(self, gradient):
        self.steps += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.99 * self.square + 0.01 * gradient**2
        rate = 0.01 * np.sqrt(1 - 0.99**self.steps) / (1 - 0.9**self.steps)
        return rate * self.mean / (np.sqrt(self.square) + 1e-3)


def check_step(oracles, state, average, following, is_empty):
    """Compares a step from a state with the formula's, by what averaging gives."""
    for oracle, old, mean, new in zip(
        oracles,
        *(s.global_model_weights.trainable for s in (state, average, following)),
    ):
        expected = old = np.array(old)
        if not is_empty:
            expected = old - oracle.step(old - mean)
            assert np.abs(expected - old).max() > 1e-5
        np.testing.assert_allclose(new, expected, rtol=1e-4, atol=1e-6)
    tf.nest.map_structure(
        np.testing.assert_array_equal,
        following.global_model_weights.non_trainable,
        average.global_model_weights.non_trainable,
    )


@pytest.mark.parametrize("make", [Momentum, Adam])
def test_the_servers_steps_are_those_of_the_formula(problem, make):
    """Of FedMPQ, its server's functions run eagerly; kernels move by quantization."""

    def move(parameter):
        return 1.01 * parameter + 0.1

    config = FedMPQConfig(error_feedback=False)
    plain = Party(problem, config)
    party = Party(problem, config, optimizer=make.tff)
    # A computation's are tensors; TFF's optimizers begin with numbers.
    finalizer = tf.nest.map_structure(tf.constant, party.state.finalizer)
    party.receive(party.state._replace(finalizer=finalizer))
    oracles = [make() for _ in party.state.global_model_weights.trainable]
    for keys in ((1, 2), (), (1, 3)):
        sums = party.accumulate([party.answer(key, train=move) for key in keys])
        state = party.state
        average, _ = plain.server.update(state._replace(finalizer=()), sums)
        following, _ = party.server.update(state, sums)
        check_step(oracles, state, average, following, is_empty=not keys)
        party.receive(following)


@pytest.mark.parametrize(
    ("scheme", "make"),
    [("fedavg", Momentum), pytest.param("fedmpq", Adam, marks=pytest.mark.slow)],
)
def test_a_rounds_steps_are_those_of_the_formula(runtime, problem, scheme, make):
    options = {"epochs": 1, "batch_size": 4, "learning_rate_decay": "none"}
    build, config = {
        "fedavg": (build_fedavg, FedAvgConfig(**options)),
        "fedmpq": (build_fedmpq, FedMPQConfig(**options)),
    }[scheme]
    plain = build(*problem.setting, config)
    process = build(*problem.setting, config, server_optimizer_fn=make.tff)
    state = process.initialize()
    oracles = [make() for _ in state.global_model_weights.trainable]
    for participants in (["bert", "cléo"], ["anna"], ["bert", "dora"]):
        # What plain averaging makes of the same state.
        average = plain.next(state._replace(finalizer=()), participants).state
        following = process.next(state, participants).state
        # Anna has no examples: a round of nothing.
        is_empty = participants == ["anna"]
        check_step(oracles, state, average, following, is_empty)
        state = following
