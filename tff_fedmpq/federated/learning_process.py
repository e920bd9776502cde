"""A scheme's learning process: checks before a round, and models of devices after it.

`process` builds it. `next` checks state and ids before the round, and adds to its
measurements what needs Python: the size of entropy codes.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np
import tensorflow as tf
from absl import logging

from tff_fedmpq._tff import tff
from tff_fedmpq.federated import left_out
from tff_fedmpq.federated.budget_statistics import (
    mean_statistics,
    statistics_shares,
)
from tff_fedmpq.federated.checked_computation import (
    CheckedComputation,
    is_reference,
    shapes_of,
)
from tff_fedmpq.federated.evaluation import assign_global_weights
from tff_fedmpq.federated.messages import BIT_ITEMS, assign_quantized_weights
from tff_fedmpq.federated.population import Population
from tff_fedmpq.federated.server import Server, State


class FederatedProcess(tff.learning.templates.LearningProcess):
    """A learning process that also returns the models that devices get.

    Attributes:
      scheme: Scheme of the process.
      model: Float Keras model with the initial weights.
      spec: Weights of the scheme's client model.
      client_ids: Client ids in the order of rows in tables, ascending.
      budgets: Bits per weight of each client, float64[N].
    """

    def __init__(
        self,
        computations: Sequence[tff.Computation],
        server: Server,
        model: tf.keras.Model,
        population: Population,
        inspect: tff.Computation,
    ):
        self._inspect = inspect
        self.scheme, self.spec = server.scheme, server.spec
        self.client_ids, self.budgets = population.client_ids, population.budgets
        self.model, self._server, self._population = model, server, population
        initialize, next_fn, get_weights, set_weights = computations
        super().__init__(
            initialize,
            CheckedComputation(next_fn, self._run_round),
            get_weights,
            CheckedComputation(set_weights, self._set_weights),
        )
        self._says_end = self.scheme.training.rates_decay

    def global_model(self, state: State) -> tf.keras.Model:
        """Returns the global model: float kernels, activations as on clients."""
        model = self.scheme.build_global_model(self.model)
        assign_global_weights(model, state.global_model_weights)
        return model

    def device_model(self, state: State, client_id: Any) -> tf.keras.Model:
        """Returns what a client would receive now; ValueError for an unknown id."""
        model = self.scheme.build_client_model(self.model)
        self.assign_device_weights(model, state, client_id)
        return model

    def assign_device_weights(
        self, model: tf.keras.Model, state: State, client_id: Any
    ) -> None:
        """Sets a model of `device_model` to what another client would receive."""
        self._check_fields(state)
        weights = self._server.model_for(state, self._population.row(client_id))
        assign_quantized_weights(model, weights)

    def check_state(self, state: State) -> None:
        """Raises TypeError or ValueError unless `state` is one of this process.

        The state of a process of other clients, budgets or weights is not.
        """
        if isinstance(state, tff.learning.templates.LearningProcessOutput):
            raise TypeError("The state is a round's whole output; pass output.state.")
        if not isinstance(state, tff.learning.templates.LearningAlgorithmState):
            raise TypeError(
                "The state has to be that of process.initialize() or of a round; found "
                f"{type(state).__name__}."
            )
        expected = self.initialize.type_signature.result.member
        self._check_fields(state)
        self._check_weights(state.global_model_weights)
        digest = dict(state.distributor).get("population")
        if digest != self._population.digest or shapes_of(state) != shapes_of(expected):
            raise ValueError(
                "The state is of a process of other clients or budgets; bring it to "
                "this one by tff_fedmpq.carry_over(state, old_process, new_process)."
            )

    def _check_fields(self, state: State) -> None:
        """Raises ValueError for a state of a version with other fields."""
        wanted = tff.structure.name_list(
            self.initialize.type_signature.result.member.distributor
        )
        found = list(dict(state.distributor))
        if found != wanted:
            raise ValueError(
                "The state is of another version of tff_fedmpq: its distributor has "
                f"{found}; expected {wanted}. Start again from its global model, by "
                "process.set_model_weights(process.initialize(), weights)."
            )

    def _check_weights(self, weights: Any) -> None:
        """Raises ValueError unless weights have the shapes of this process's model."""
        expected = self.get_model_weights.type_signature.result
        found, wanted = shapes_of(weights), shapes_of(expected)
        if found != wanted:
            raise ValueError(
                f"The weights are of another model: {len(wanted)} tensors of shapes "
                f"{wanted[:4]} ... are expected, {len(found)} of {found[:4]} ... were "
                "found. Those of a quantized model are its float model's."
            )

    def _run_round(self, call: Callable[..., Any], state: Any, client_ids: Any) -> Any:
        if not is_reference(client_ids):
            client_ids = self._population.participants(client_ids)
        if not is_reference(state):
            self.check_state(state)
            self._say_end(int(state.distributor["round"]))
        output, causes = left_out.run_without_unreadable(
            functools.partial(call, state), client_ids, self._inspect
        )
        if not isinstance(output, tff.learning.templates.LearningProcessOutput):
            return output
        metrics = self._with_coded_bits(output.metrics)
        if isinstance(metrics["rejected"], np.ndarray):
            number = int(state.distributor["round"]) + 1
            raises = self.scheme.training.on_client_error == "raise"
            metrics = left_out.tell(metrics, causes, self.client_ids, number, raises)
        return output._replace(metrics=metrics)

    def _set_weights(self, call: Callable[..., Any], state: Any, weights: Any) -> Any:
        if not is_reference(state):
            self.check_state(state)
        if not is_reference(weights):
            self._check_weights(weights)
        return call(state, weights)

    def _say_end(self, round_number: int) -> None:
        """Warns once of a round after those over which learning rates decay."""
        rounds = self.scheme.training.rounds
        if self._says_end and rounds is not None and round_number >= rounds:
            self._says_end = False
            logging.warning(
                "Round %d is beyond rounds=%d: learning rates stay at their last "
                "values, which may be 0; see metrics['training_rates'].",
                round_number + 1,
                rounds,
            )

    def _with_coded_bits(self, metrics: Any) -> Any:
        """Returns measurements with the real size of entropy codes."""
        symbols = metrics["uplink_symbols"]
        if not isinstance(symbols, np.ndarray) or not symbols.size:
            return metrics
        metrics = collections.OrderedDict(metrics)
        metrics["uplink_bits"] = bits = metrics["uplink_bits"].copy()
        for row in np.flatnonzero(metrics["participations"]):
            bits[row, BIT_ITEMS.index("codes")] = self.scheme.uplink.coded_bits(
                symbols[row]
            )
        return metrics


def carry_over(state: State, old: FederatedProcess, new: FederatedProcess) -> State:
    """Returns a state of one process as a state of another, of the same model.

    For clients that join or leave, and budgets that change: weights, round and averaged
    bit-widths stay, and so does what a client pruned. Clients that join have pruned
    nothing. Budgets that are new get the statistics that their devices would be sent.
    """
    old.check_state(state)
    # Keras numbers the names of layers.
    specs = (dataclasses.replace(p.spec, kernel_names=()) for p in (old, new))
    if len(set(specs)) > 1:
        raise ValueError(
            "The processes have different models; only clients may change."
        )
    former, server = state.distributor, new._server
    rows = {client_id: row for row, client_id in enumerate(old.client_ids)}
    reductions = np.zeros([len(new.client_ids), len(new.spec.kernel_shapes)], np.int32)
    for row, client_id in enumerate(new.client_ids):
        if client_id in rows:
            reductions[row] = former["bit_reductions"][rows[client_id]]
    statistics, weights = _carry_statistics(former, old._server.levels, server.levels)
    distributor = collections.OrderedDict(
        bit_reductions=reductions,
        mean_bit_widths=former["mean_bit_widths"],
        population=np.int64(server.population),
        round=former["round"],
        statistics=statistics,
        statistics_weights=weights,
    )
    return state._replace(distributor=distributor)


def _carry_statistics(
    former: Mapping[str, Any], old_levels: np.ndarray, levels: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns rows and weights of statistics of other budgets than a state's.

    Those of a budget that stays, or else the mean that a new one would be sent.
    """
    known = np.asarray(former["statistics_weights"], np.float64)
    stays = levels[:, np.newaxis] == old_levels
    shares = statistics_shares(levels, old_levels, known).numpy()
    shares = np.where(stays.any(axis=1, keepdims=True), stays, shares)
    weights = shares @ known
    rows = mean_statistics(former["statistics"], shares)
    return [row.numpy() for row in rows], weights.astype(np.float32)
