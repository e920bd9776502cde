"""A federated problem small enough for every test of this folder.

Four clients with 7, 12, 5 and no examples of 8x8x3; a convolution, BatchNorm, ReLU and
a dense layer. One worker process and one built process serve all modules.
"""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from oracles import quantization as oracle

from tff_fedmpq.federated import build_fedmpq
from tff_fedmpq.federated.client_work import build_client_work
from tff_fedmpq.federated.fedmpq import fedmpq_scheme
from tff_fedmpq.keras.variables import FloatWeights, ModelSpec
from tff_fedmpq.federated.runtime import local_runtime

# The order is that of the tables' rows, and not the alphabet's.
BUDGETS = {"dora": 2, "bert": 8, "cleo": 5.5, "anna": 4}
NUM_EXAMPLES = {"anna": 0, "bert": 12, "cleo": 5, "dora": 7}
NUM_CLASSES = 3
NUM_OUTPUTS = 4  # One more, so that kernels differ: 108 and 144 weights.
SEED = 5
# Scales of 2 max|W|, and models that are averaged as they come back, can be recomputed
# by hand; such scales and Eq. 6-10 leave top planes to prune. Bits are by Algorithm 2.
OPTIONS = {
    "epochs": 2,
    "batch_size": 4,
    "learning_rate": 0.1,
    "learning_rate_unit": "code",
    "code_update": "integer",
    "error_feedback": False,
    "allocation": "pruning_growing",
    "scale_rule": "max",
    "pruning_threshold": 0.3,
    "lasso": 0.1,
}


def small_model() -> tf.keras.Model:
    tf.keras.utils.set_random_seed(1)
    layers = tf.keras.layers
    normal = tf.keras.initializers.RandomNormal(stddev=0.2, seed=1)
    return tf.keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(
                4, 3, strides=2, use_bias=False, kernel_initializer=normal, name="conv"
            ),
            layers.BatchNormalization(momentum=0.5),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(NUM_OUTPUTS, name="classifier"),
        ]
    )


def make_examples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images float32[n, 8, 8, 3] as bright as their label says, labels int32[n]."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % NUM_CLASSES).astype(np.int32)
    noise = rng.normal(scale=0.3, size=(count, 8, 8, 3))
    images = noise + labels[:, np.newaxis, np.newaxis, np.newaxis]
    return images.astype(np.float32), labels


class Problem(NamedTuple):
    model_fn: Any
    budgets: dict[str, float]
    examples: dict[str, tuple[np.ndarray, np.ndarray]]
    client_data: tff.simulation.datasets.ClientData
    options: dict[str, Any]
    seed: int
    scheme: Any
    spec: ModelSpec
    make_examples: Any

    @property
    def client_ids(self) -> list[str]:
        return list(self.budgets)

    def build(self, *, seed: int = SEED, **options: Any):
        """Builds FedMPQ on this problem."""
        return build_fedmpq(
            self.model_fn,
            self.budgets,
            self.client_data,
            seed=seed,
            **{**self.options, **options},
        )

    def split(self, weights: Any) -> FloatWeights:
        """`tff.learning.models.ModelWeights` as kernels and rest."""
        return self.spec.split(list(weights.trainable), list(weights.non_trainable))


@pytest.fixture(scope="session")
def problem() -> Problem:
    examples = {
        name: make_examples(count, seed)
        for seed, (name, count) in enumerate(NUM_EXAMPLES.items())
    }
    scheme = fedmpq_scheme(**OPTIONS)
    return Problem(
        small_model,
        BUDGETS,
        examples,
        tff.simulation.datasets.TestClientData(examples),
        OPTIONS,
        SEED,
        scheme,
        ModelSpec.from_model(scheme.build_client_model(small_model)),
        make_examples,
    )


@pytest.fixture(scope="session")
def runtime():
    """One worker for all tests; it is gone when they are done."""
    with local_runtime() as context:
        yield context


@pytest.fixture(scope="session")
def process(problem):
    return problem.build()


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
    before = process.next(process.initialize(), ["bert", "cleo"]).state
    output = process.next(before, participants)
    work = _client_computation(problem)
    messages, results = {}, {}
    for name in participants:
        key = problem.client_ids.index(name)
        messages[name] = _message_by_oracle(problem, before, key)
        results[name] = work(name, np.array([key], np.int32), [messages[name]])
    return Round(before, output.state, output.metrics, participants, messages, results)


def _client_computation(problem: Problem) -> tff.Computation:
    num_layers = len(problem.spec.kernel_shapes)
    received_type = tff.to_type(
        collections.OrderedDict(
            bit_widths=tff.TensorType(np.uint8, [num_layers]),
            codes=tff.TensorType(np.uint8, [None]),
            float_parameters=tuple(tff.TensorType(np.float32, s) for s in problem.spec.float_parameter_shapes),
            scales=tff.TensorType(np.float32, [num_layers]),
            seed=tff.TensorType(np.int32, [2]),
            training_rates=tff.TensorType(np.float32, [2]),
        )
    )
    return build_client_work(
        problem.model_fn,
        problem.scheme,
        problem.spec,
        problem.client_data,
        np.array(list(problem.budgets.values()), np.float32),
        received_type,
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )


def _message_by_oracle(problem: Problem, state: Any, key: int) -> Any:
    """What the server sends client `key`: Eq. 3 and 14 in NumPy."""
    weights = problem.split(state.global_model_weights)
    bit_widths = state.distributor["bit_widths"][key]
    scales = [np.float32(2 * np.abs(kernel).max()) for kernel in weights.kernels]
    packed = []
    for kernel, scale, bits in zip(weights.kernels, scales, bit_widths.tolist()):
        codes = oracle.nearest_codes(oracle.SIGN_MAGNITUDE, kernel, scale, bits)
        packed.append(oracle.pack(codes.ravel(), bits))
    training = problem.scheme.training
    round_seed = tf.random.fold_in([problem.seed, 0], state.distributor["round"])
    return collections.OrderedDict(
        bit_widths=bit_widths.astype(np.uint8),
        codes=np.concatenate(packed),
        float_parameters=tuple(weights.float_parameters),
        scales=np.array(scales, np.float32),
        seed=tf.random.fold_in(round_seed, key).numpy(),
        training_rates=np.array(
            [training.learning_rate, training.float_learning_rate], np.float32
        ),
    )
