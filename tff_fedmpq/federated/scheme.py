"""A scheme: the pieces that one federated round is composed of.

    model sent to clients     float weights, or codes at the client's own bit-widths
  x local training            float SGD, or integer updates; Lasso; pruning
  x client-to-server encoding an `Uplink`
  x bit-widths                an `AllocationPolicy`

A configuration's `compose` makes one, `process.build_process` a learning process of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple

import numpy as np
import tensorflow as tf

from tff_fedmpq.allocation.pruning_growing import AllocationPolicy, uniform_bit_widths
from tff_fedmpq.federated.config import CodeTrainingConfig, LocalTrainingConfig
from tff_fedmpq.federated.local_training import Pruning
from tff_fedmpq.federated.messages import ModelChangeUplink, ModelUplink, Uplink
from tff_fedmpq.keras.conversion import quantize_model
from tff_fedmpq.lookup import lookup
from tff_fedmpq.quantization import representations, scales
from tff_fedmpq.quantization.activations import CLIP_VALUE

# (budget in bits float32[], number of examples float32[]) -> p_n, before normalisation
AggregationWeight = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

AGGREGATION_WEIGHTS: Mapping[str, AggregationWeight] = {
    "examples": lambda budget, num_examples: num_examples,
    "budget_and_examples": lambda budget, num_examples: budget * num_examples,
}


class WeightQuantization(NamedTuple):
    """Quantization of kernels at the server."""

    representation: representations.Representation
    scale_rule: scales.ScaleRule


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One compared scheme.

    Attributes:
      name: Name in the registry.
      training: Settings of local training.
      uplink: Encoding of what clients send.
      aggregation_weight: Weight of a client in the average.
      weights: Quantization of kernels; None trains and sends float weights.
      activation_bits: Bits of ReLU outputs; None leaves them float.
      lasso: Coefficient lambda of the group Lasso.
      pruning: MSB pruning; None prunes nothing.
      allocation: Rule of clients' bit-widths, from the average of the last round.
      starts_from_one_bit: Whether the rule starts from one bit in every layer before
        the first average; else from the whole bits of the budget.
      statistics_per_budget: Whether BatchNorm statistics are kept for each budget,
        and fitted over all of them.
      common_budget: Bits per weight of every client, whatever its own budget.
      min_budget: Smallest budget that the scheme can serve, in bits per weight.
    """

    name: str
    training: LocalTrainingConfig
    uplink: Uplink
    aggregation_weight: AggregationWeight
    weights: WeightQuantization | None = None
    activation_bits: int | None = None
    lasso: float = 0.0
    pruning: Pruning | None = None
    allocation: AllocationPolicy = uniform_bit_widths
    starts_from_one_bit: bool = False
    statistics_per_budget: bool = False
    common_budget: float | None = None
    min_budget: float = 1.0

    @property
    def needs_round(self) -> bool:
        """Whether a client has to know the number of the round."""
        return self.pruning is not None and self.pruning.ends(self.training.rounds)

    def usable_budgets(self, budgets: np.ndarray) -> np.ndarray:
        """Returns the bits per weight that the scheme can use of budgets."""
        uniform = self.weights is not None and self.allocation is uniform_bit_widths
        return np.floor(budgets) if uniform or self.uplink.whole_bits else budgets

    @property
    def precision(self) -> str:
        """Bits of updates, weights and activations; "v" is a client's budget."""
        weights = "32"
        if self.weights is not None:
            weights = "v" if self.common_budget is None else f"{self.common_budget:g}"
        updates = self.uplink.update_bits or weights
        return f"{updates}/{weights}/{self.activation_bits or 32}"

    def precision_of(self, budgets: np.ndarray) -> str:
        """Returns `precision`, with "int(v)" if a part of some budgets is not used."""
        is_whole = (self.usable_budgets(budgets) == budgets).all()
        return self.precision if is_whole else self.precision.replace("v", "int(v)")

    def build_client_model(
        self, model: tf.keras.Model, dtype_policy: str | None = None
    ) -> tf.keras.Model:
        """Returns a float model as clients train it; weights are assigned later."""
        default = representations.SIGN_MAGNITUDE
        representation = self.weights.representation if self.weights else default
        return quantize_model(
            model,
            representations.MAX_BIT_WIDTH if self.weights else None,
            self.activation_bits,
            representation=representation.name,
            per_channel=False,  # Messages hold one scale per kernel.
            activation_range=CLIP_VALUE,
            lasso=self.lasso,
            dtype_policy=dtype_policy,
            copy_weights=False,
        )

    def build_global_model(self, model: tf.keras.Model) -> tf.keras.Model:
        """Returns the server's model: float kernels, activations as on clients."""
        return quantize_model(
            model, None, self.activation_bits, activation_range=CLIP_VALUE
        )


def compose_code_scheme(config: CodeTrainingConfig, **parts: Any) -> Scheme:
    """Returns a scheme whose clients train integer codes.

    Args:
      config: Settings of local training.
      **parts: Fields of `Scheme` that these do not decide.
    """
    representation = representations.get_representation(config.representation)
    scale_rule = scales.get_scale_rule(config.scale_rule)
    uplink = ModelChangeUplink if config.error_feedback else ModelUplink
    return _compose(
        config,
        uplink(representation),
        weights=WeightQuantization(representation, scale_rule),
        activation_bits=config.activation_bits,
        statistics_per_budget=config.statistics_per_budget,
        **parts,
    )


def compose_float_scheme(
    config: LocalTrainingConfig, uplink: Uplink | None = None, min_budget: float = 1.0
) -> Scheme:
    """Returns a scheme of float training, told apart from others by its uplink.

    Without an uplink clients send the float model. `min_budget` is that of `Scheme`.
    """
    # A float model has no codes, so the representation has no effect.
    uplink = uplink or ModelUplink(representations.SIGN_MAGNITUDE)
    return _compose(config, uplink, min_budget=min_budget)


def _compose(config: LocalTrainingConfig, uplink: Uplink, **parts: Any) -> Scheme:
    weight: Any = config.aggregation_weight
    weight = lookup(weight, AGGREGATION_WEIGHTS, "aggregation weight")
    return Scheme(config.name, config, uplink, weight, **parts)
