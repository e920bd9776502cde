"""A federated problem small enough for every test.

Four clients with 7, 12, 5 and no examples of 8x8x3; a convolution, BatchNorm, ReLU and
a dense layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from oracles.seeds import set_random_seed
from tff_fedmpq.federated.fedmpq import FedMPQConfig, build_fedmpq
from tff_fedmpq.keras.variables import FloatWeights, ModelSpec

# Rows of tables are in the order of the ids, which is another one.
BUDGETS = {"dora": 2, "bert": 8, "cléo": 5.5, "anna": 4}
NUM_EXAMPLES = {"anna": 0, "bert": 12, "cléo": 5, "dora": 7}
NUM_CLASSES = 3
NUM_OUTPUTS = 4  # One more, so that kernels differ: 108 and 144 weights.
SEED = 7
# Scales of 2 max|W|, and averages of the clients' models, can be recomputed by hand;
# such scales and Eq. 6-10 leave top planes to prune. Bits are by Algorithm 2.
OPTIONS = {
    "epochs": 2,
    "batch_size": 4,
    "learning_rate": 0.1,
    "learning_rate_unit": "code",
    "learning_rate_decay": "none",
    "aggregation_weight": "budget_and_examples",
    "error_feedback": False,
    "allocation": "pruning_growing",
    "order": "size",
    "scale_rule": "max",
    "pruning_threshold": 0.3,
    "lasso": 0.1,
}


def small_model() -> tf.keras.Model:
    """Returns the float model, each time with the same weights."""
    set_random_seed(1)
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
    """Returns images float32[n, 8, 8, 3], as bright as their label, and int32[n]."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % NUM_CLASSES).astype(np.int32)
    noise = rng.normal(scale=0.3, size=(count, 8, 8, 3))
    images = noise + labels[:, np.newaxis, np.newaxis, np.newaxis]
    return images.astype(np.float32), labels


class Problem(NamedTuple):
    """The problem, and FedMPQ's scheme for it."""

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
        return sorted(self.budgets)

    @property
    def setting(self) -> tuple[Any, ...]:
        """The first arguments of every `build_*` function."""
        return self.model_fn, self.budgets, self.client_data

    def config(self, **options: Any) -> FedMPQConfig:
        """Returns FedMPQ's configuration for this problem."""
        return FedMPQConfig(**{**self.options, **options})

    def build(self, *, seed: int = SEED, **options: Any):
        """Builds FedMPQ on this problem."""
        return build_fedmpq(*self.setting, self.config(**options), seed=seed)

    def split(self, weights: Any) -> FloatWeights:
        """Returns `tff.learning.models.ModelWeights` as kernels and other weights."""
        return self.spec.split(list(weights.trainable), list(weights.non_trainable))


def device_bit_widths(process: Any, state: Any) -> np.ndarray:
    """Returns the bits of all clients in the next round, int32[N, L]."""
    return process._server.bit_widths(state).numpy()


def make_problem() -> Problem:
    """Returns the problem."""
    examples = {
        name: make_examples(count, seed)
        for seed, (name, count) in enumerate(NUM_EXAMPLES.items())
    }
    scheme = FedMPQConfig(**OPTIONS).compose()
    return Problem(
        small_model,
        BUDGETS,
        examples,
        tff.simulation.datasets.TestClientData(examples),
        OPTIONS,
        SEED,
        scheme,
        ModelSpec.from_model(scheme.build_client_model(small_model())),
        make_examples,
    )
