"""A compared scheme is one point in a small space.

    what goes down      float weights, or codes at the client's own bit-widths
  x how clients train   float SGD, or integer updates, with or without Lasso and pruning
  x what goes up        an `Uplink`
  x who decides bits    an `AllocationPolicy`

`process.build_process` makes a `tff.learning.templates.LearningProcess` of any of them;
each scheme is a file beside this one that fills in a `Scheme`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Callable

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tff_fedmpq.allocation.budgets import check_budgets
from tff_fedmpq.allocation.policies import AllocationPolicy, keep_bit_widths
from tff_fedmpq.allocation.prune_and_grow import uniform_bit_widths
from tff_fedmpq.federated.local_training import LocalTrainingConfig
from tff_fedmpq.federated.model_spec import ModelFn
from tff_fedmpq.federated.uplink import Uplink
from tff_fedmpq.keras.conversion import quantize_model
from tff_fedmpq.lookup import check_bool, lookup
from tff_fedmpq.quantization.representation import (
    MAX_BIT_WIDTH,
    REPRESENTATIONS,
    Representation,
    check_bit_width,
    get_representation,
)
from tff_fedmpq.quantization.scales import ScaleRule

# (budget in bits float32[], number of examples float32[]) -> p_n, before normalisation
AggregationWeight = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def weigh_by_examples(budget: tf.Tensor, num_examples: tf.Tensor) -> tf.Tensor:
    """Returns ``|D_n|``."""
    del budget
    return num_examples


def weigh_by_budget_and_examples(
    budget: tf.Tensor, num_examples: tf.Tensor
) -> tf.Tensor:
    """Returns ``v_n |D_n|`` (FedMPQ, Eq. 15)."""
    return budget * num_examples


AGGREGATION_WEIGHTS: Mapping[str, AggregationWeight] = {
    "examples": weigh_by_examples,
    "budget_and_examples": weigh_by_budget_and_examples,
}


def get_aggregation_weight(identifier: str | AggregationWeight) -> AggregationWeight:
    """Returns the aggregation weight of that name; see `lookup`."""
    return lookup(identifier, AGGREGATION_WEIGHTS, "aggregation weight")


@dataclasses.dataclass(frozen=True)
class WeightQuantization:
    """How kernels become codes.

    Attributes:
      representation: what codes stand for.
      scale_rule: how the server chooses scales.

    Raises:
      ValueError: for a representation that layers do not know.
    """

    representation: Representation
    scale_rule: ScaleRule

    def __post_init__(self):
        # Layers on clients find it by its name.
        if get_representation(self.representation.name) is not self.representation:
            raise ValueError(
                f"representation has to be one of {list(REPRESENTATIONS)}; found "
                f"{self.representation!r}."
            )


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One compared scheme.

    Attributes:
      name: as in the paper's Table 1.
      weights: how kernels become codes; None trains and sends float weights.
      activation_bits: bits of ReLU outputs; None leaves them in float.
      lasso: lambda of the group Lasso over bit planes.
      training: how a client trains.
      uplink: what goes up.
      allocation: who decides the bit-widths of the next round.
      aggregation_weight: how much a client counts in the average.
      pooled_statistics: whether clients send second moments in the place of BatchNorm's
        variances, so that the server's are those of all clients' inputs together.
      common_budget: bits per weight that every client has, whatever its own budget.
      min_budget: smallest budget that the scheme can serve.
      outer_bit_width: bits of the first and the last layer whatever the budget, which
        is then exceeded by a little; None treats them as any other. For experiments.

    Raises:
      ValueError: for `activation_bits`, `lasso` or `outer_bit_width` out of range.
    """

    name: str
    weights: WeightQuantization | None
    activation_bits: int | None
    training: LocalTrainingConfig
    uplink: Uplink
    aggregation_weight: AggregationWeight
    lasso: float = 0.0
    allocation: AllocationPolicy = keep_bit_widths
    pooled_statistics: bool = False
    common_budget: float | None = None
    min_budget: float = 1.0
    outer_bit_width: int | None = None

    def __post_init__(self):
        if self.activation_bits is not None:
            check_bit_width(self.activation_bits, "activation_bits")
        if not (math.isfinite(self.lasso) and self.lasso >= 0):
            raise ValueError(f"lasso has to be 0 or more, found {self.lasso!r}.")
        check_bool(self.pooled_statistics, "pooled_statistics")
        if self.outer_bit_width is None:
            return
        check_bit_width(self.outer_bit_width, "outer_bit_width")
        if self.allocation is not keep_bit_widths:
            raise ValueError(
                f"{self.name}: outer_bit_width fixes the first and the last layer, so "
                "the allocation has to be 'keep'."
            )

    def initial_bit_widths(
        self, layer_sizes: np.ndarray, budgets: np.ndarray
    ) -> np.ndarray:
        """Returns the table before the first round, int32[N, L]: uniform bits.

        Args:
          layer_sizes: int64[L], weights per layer.
          budgets: float64[N].
        """
        if not len(layer_sizes):
            return np.zeros([len(budgets), 0], np.int32)
        table = uniform_bit_widths(layer_sizes, budgets)
        if self.outer_bit_width is not None:
            table[:, [0, -1]] = self.outer_bit_width
        return table

    @property
    def precision(self) -> str:
        """Bits of updates, weights and activations; "v" is a client's budget."""
        weights = "32"
        if self.weights is not None:
            weights = "v" if self.common_budget is None else f"{self.common_budget:g}"
        updates = self.uplink.update_bits or weights
        return f"{updates}/{weights}/{self.activation_bits or 32}"

    def effective_budgets(self, budgets: npt.ArrayLike) -> np.ndarray:
        """Returns the budgets that clients have under this scheme, float64[N].

        Raises:
          ValueError: if one is no number from 1 to 8, or too small for the scheme.
        """
        values = check_budgets(budgets)
        if values.ndim != 1:
            raise ValueError(
                "A client's budget is one number; found a sequence of them."
            )
        if self.common_budget is not None:
            values = np.full_like(values, self.common_budget)
        if (values < self.min_budget).any():
            raise ValueError(
                f"{self.name} needs budgets of at least {self.min_budget:g} bits; "
                f"found {values.min():g}."
            )
        return values

    def build_client_model(
        self, model_fn: ModelFn, dtype_policy: str | None = None
    ) -> tf.keras.Model:
        """Returns the model that clients train; its weights are yet to be assigned."""
        representation = {}
        if self.weights is not None:
            representation = {"representation": self.weights.representation.name}
        return quantize_model(
            model_fn(),
            MAX_BIT_WIDTH if self.weights is not None else None,
            self.activation_bits,
            lasso=self.lasso,
            dtype_policy=dtype_policy,
            copy_weights=False,
            **representation,
        )

    def build_global_model(self, model_fn: ModelFn) -> tf.keras.Model:
        """Returns the server's model: float kernels, activations as clients have them.

        Its weights are those that `model_fn` gave it.
        """
        return quantize_model(model_fn(), None, self.activation_bits)
