"""A round of the small problem, and what each of its clients sent in it."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from oracles import allocation as allocation_oracle
from oracles import quantization as oracle
from oracles import statistics as statistics_oracle

from tff_fedmpq.federated.client_work import build_client_work
from tff_fedmpq.federated.tasks import Task


class Round(NamedTuple):
    """A round that was run, and what each of its clients sent in it.

    Attributes:
      before: the server's state, as NumPy arrays.
      after: the state after the round.
      metrics: of the round.
      participants: client ids.
      messages: client id -> what it was sent, by the oracle.
      results: client id -> `ClientResult`, by running the client alone.
    """

    before: Any
    after: Any
    metrics: Any
    participants: list[str]
    messages: dict[str, Any]
    results: dict[str, Any]


@pytest.fixture(scope="session")
def recorded_round(runtime, process, problem) -> Round:
    """The second round of a run, of three clients, one of them without examples."""
    participants = ["anna", "bert", "dora"]
    before = process.next(process.initialize(), ["bert", "cléo"]).state
    output = process.next(before, participants)
    work = _client_computation(problem)
    messages, results = {}, {}
    for name in participants:
        key = problem.client_ids.index(name)
        messages[name] = _message_by_oracle(problem, before, key)
        results[name] = work(name, np.array([key], np.int32), [messages[name]])
    return Round(before, output.state, output.metrics, participants, messages, results)


def _client_computation(problem: Any) -> tff.Computation:
    num_layers = len(problem.spec.kernel_shapes)
    received_type = tff.to_type(
        collections.OrderedDict(
            bit_widths=tff.TensorType(np.uint8, [num_layers]),
            codes=tff.TensorType(np.uint8, [None]),
            float_parameters=tuple(
                tff.TensorType(np.float32, shape)
                for shape in problem.spec.float_parameter_shapes
            ),
            scales=tff.TensorType(np.float32, [num_layers]),
            seed=tff.TensorType(np.int32, [2]),
            training_rates=tff.TensorType(np.float32, [2]),
        )
    )
    return build_client_work(
        problem.model_fn(),
        problem.scheme,
        problem.spec,
        problem.client_data,
        np.array([problem.budgets[i] for i in problem.client_ids], np.float64),
        received_type,
        task=Task.of(problem.model_fn(), problem.client_data.element_type_structure),
    )


def _statistics_by_oracle(problem: Any, state: Any, key: int) -> list[np.ndarray]:
    """Returns those of similar budgets that took part, else the common ones."""
    budgets = sorted(set(problem.budgets.values()))
    weights = dict(zip(budgets, state.distributor["statistics_weights"]))
    if not any(weights.values()):
        return list(state.global_model_weights.non_trainable)
    own = problem.budgets[problem.client_ids[key]]
    return [
        statistics_oracle.mixed(own, rows, weights).astype(np.float32)
        for rows in state.distributor["statistics"]
    ]


def _message_by_oracle(problem: Any, state: Any, key: int) -> Any:
    """Returns what the server sends client `key`: Alg. 2, Eq. 3 and 14 in NumPy."""
    weights = problem.split(state.global_model_weights)
    bit_widths = allocation_oracle.corrected(
        state.distributor["mean_bit_widths"],
        state.distributor["bit_reductions"][key],
        problem.spec.layer_sizes,
        problem.budgets[problem.client_ids[key]],
    )
    statistics = _statistics_by_oracle(problem, state, key)
    others = weights.float_parameters[: -len(statistics)]
    scales = [np.float32(2 * np.abs(kernel).max()) for kernel in weights.kernels]
    packed = []
    for kernel, scale, bits in zip(weights.kernels, scales, bit_widths):
        codes = oracle.nearest_codes(oracle.SIGN_MAGNITUDE, kernel, scale, bits)
        packed.append(oracle.pack(codes.ravel(), bits))
    training = problem.scheme.training
    round_seed = tf.random.fold_in([problem.seed, 0], state.distributor["round"])
    return collections.OrderedDict(
        bit_widths=np.array(bit_widths, np.uint8),
        codes=np.concatenate(packed),
        float_parameters=(*others, *statistics),
        scales=np.array(scales, np.float32),
        seed=tf.random.fold_in(round_seed, key).numpy(),
        training_rates=np.array(
            [training.learning_rate, training.float_learning_rate], np.float32
        ),
    )
