"""The round that all schemes share, as a `tff.learning.templates.LearningProcess`.

    SERVER   state: float weights W, averaged bit-widths, pruned bits, round
       |
       |  client ids {str}@CLIENTS  ->  keys {int32[1]}@CLIENTS
       |
       |  federated_select: per key, bits within its budget,
       |                    quantize W, pack                     (`Server.message_for`)
       v
    CLIENTS  unpack, read own examples, train, prune, pack        (`client_work`)
       |
       |  federated_aggregate: unpack, dequantize, add            (`Server.accumulate`)
       v
    SERVER   weighted mean -> next W, averaged bit-widths         (`Server.update`)

    next: (<S@SERVER, {str}@CLIENTS> -> <state=S@SERVER, metrics=M@SERVER>)

Only client ids enter a round; a client's examples are read inside the computation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tff_fedmpq._tff import tff
from tff_fedmpq.allocation.pruning_growing import check_budgets
from tff_fedmpq.federated.client_work import build_client_work
from tff_fedmpq.federated.config import LocalTrainingConfig
from tff_fedmpq.federated.evaluation import assign_global_weights
from tff_fedmpq.federated.local_training import Augment, OnStep
from tff_fedmpq.federated.messages import assign_quantized_weights
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.federated.server import Server, State, merge
from tff_fedmpq.keras.quantized_kernel import quantized_kernels
from tff_fedmpq.keras.variables import (
    ModelFn,
    ModelSpec,
    float_non_trainable_variables,
)


class FederatedProcess(tff.learning.templates.LearningProcess):
    """A learning process that also returns the models that devices get.

    Attributes:
      scheme: Scheme of the process.
      model: Float Keras model with the initial weights.
      spec: Weights of the scheme's client model.
      client_ids: Client ids in the order of rows in tables.
      budgets: Bits per weight of each client, float64[N].
    """

    def __init__(
        self,
        *computations: tff.Computation,
        server: Server,
        scheme: Scheme,
        spec: ModelSpec,
        model: tf.keras.Model,
        client_ids: list[str],
        budgets: np.ndarray,
    ):
        super().__init__(*computations)
        self.scheme = scheme
        self.spec = spec
        self.client_ids = client_ids
        self.budgets = budgets
        self._server = server
        self.model = model

    def global_model(self, state: State) -> tf.keras.Model:
        """Returns the global model: float kernels, activations as on clients."""
        model = self.scheme.build_global_model(self.model)
        assign_global_weights(model, state.global_model_weights)
        return model

    def device_model(self, state: State, client_id: str) -> tf.keras.Model:
        """Returns the model that a client would receive in the next round.

        Args:
          state: State of this process.
          client_id: Id of the client.

        Raises:
          ValueError: if the process has no client of that id.
        """
        model = self.scheme.build_client_model(self.model)
        self.assign_device_weights(model, state, client_id)
        return model

    def assign_device_weights(
        self, model: tf.keras.Model, state: State, client_id: str
    ) -> None:
        """Sets a model of `device_model` to what another client would receive."""
        if client_id not in self.client_ids:
            raise ValueError(
                f"No client {client_id!r}; clients are {self.client_ids[:10]}."
            )
        row = self._server.bit_widths(state)[self.client_ids.index(client_id)]
        received = self._server.quantize(self._server.float_weights(state), row)
        assign_quantized_weights(model, received)


def build_process(
    model_fn: ModelFn,
    budgets: Mapping[str, float],
    client_data: tff.simulation.datasets.ClientData,
    config: LocalTrainingConfig,
    *,
    loss: tf.keras.losses.Loss | None = None,
    augment: Augment | None = None,
    dtype_policy: str | None = None,
    on_step: OnStep | None = None,
    seed: int = 0,
) -> FederatedProcess:
    """Builds the learning process of a scheme.

    Args:
      model_fn: Function that returns a Sequential or functional float Keras model with
        logits as output. Its initial weights are the process's.
      budgets: Average bits per weight, 1 to 8, of each client id. These are the
        clients.
      client_data: Clients' examples, pairs (x, y).
      config: Configuration of the scheme, such as `FedMPQConfig`.
      loss: Loss of labels and logits; sparse categorical cross-entropy by default.
      augment: Augmentation of every training batch: (images, seed int32[2]) -> images.
      dtype_policy: Keras policy of the layers; "mixed_bfloat16" computes faster on
        processors that have it.
      on_step: Function that is called with the loss, in the graph, after every local
        step.
      seed: Seed of all randomness in training, except that of layers such as Dropout.

    Returns:
      The process. Its state is a `tff.learning.templates.LearningAlgorithmState` with
      ``distributor`` (`server.Server.initial_state`); for its metrics see
      `server.measurements`.

    Raises:
      ValueError: for budgets out of range, clients without data, or a model that is
        quantized already.
    """
    scheme = config.compose()
    client_ids, budget_values = _check_clients(budgets, client_data, scheme)
    _warn_of_constant_rates(config)
    loss = loss or tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = model_fn()
    if quantized_kernels(model):
        raise ValueError(
            "model_fn has to return a float model, which the scheme quantizes; found "
            "one with quantized layers."
        )
    spec = ModelSpec.from_model(scheme.build_client_model(model))
    server = Server(scheme, spec, budget_values, seed)
    initialize = _build_initialize(server, model)
    state_type = initialize.type_signature.result.member

    @tff.tensorflow.computation(state_type, np.int32)
    def select_fn(state, key):
        return server.message_for(state, key)

    work = build_client_work(
        model,
        scheme,
        spec,
        client_data,
        budget_values,
        select_fn.type_signature.result,
        loss=loss,
        augment=augment,
        dtype_policy=dtype_policy,
        on_step=on_step,
    )
    aggregate = _build_aggregate(server, work.type_signature.result)

    @tff.tensorflow.computation(state_type, aggregate.type_signature.result.member)
    def update(state, sums):
        return server.update(state, sums)

    key_of = _build_key_lookup(client_ids)

    @tff.tensorflow.computation
    def max_key():
        return tf.constant(len(client_ids), tf.int32)

    @tff.federated_computation(
        initialize.type_signature.result,
        tff.FederatedType(tff.TensorType(np.str_), tff.CLIENTS),
    )
    def next_fn(state, client_ids):
        keys = tff.federated_map(key_of, client_ids)
        received = tff.federated_select(
            keys, tff.federated_eval(max_key, tff.SERVER), state, select_fn
        )
        results = tff.federated_map(work, (client_ids, keys, received))
        sums = aggregate(results)
        next_state, measured = tff.federated_map(update, (state, sums))
        return tff.learning.templates.LearningProcessOutput(next_state, measured)

    @tff.tensorflow.computation(state_type)
    def get_model_weights(state):
        return state.global_model_weights

    @tff.tensorflow.computation(state_type, get_model_weights.type_signature.result)
    def set_model_weights(state, weights):
        return state._replace(global_model_weights=weights)

    return FederatedProcess(
        initialize,
        next_fn,
        get_model_weights,
        set_model_weights,
        server=server,
        scheme=scheme,
        spec=spec,
        model=model,
        client_ids=client_ids,
        budgets=budget_values,
    )


def _warn_of_constant_rates(config: LocalTrainingConfig) -> None:
    """Warns where rates cannot decay because the number of rounds is unknown."""
    decays = {rate.decay for rate in config.learning_rates()}
    if config.rounds is None and decays != {"none"}:
        logging.warning(
            "%s: learning rates stay constant, because the number of rounds is "
            "unknown. Set rounds in the configuration.",
            config.name,
        )


def _check_clients(
    budgets: Mapping[str, float],
    client_data: tff.simulation.datasets.ClientData,
    scheme: Scheme,
) -> tuple[list[str], np.ndarray]:
    """Returns ids of the clients and their budgets under a scheme, float64[N]."""
    if not budgets:
        raise ValueError("budgets is empty; expected a budget for each client id.")
    without_data = set(budgets) - set(client_data.client_ids)
    if without_data:
        raise ValueError(
            f"client_data has no clients {sorted(without_data)}, which have a budget; "
            f"it has {sorted(client_data.client_ids)[:10]}."
        )
    values = check_budgets(list(budgets.values()))
    if values.ndim != 1:
        raise ValueError("A client's budget is one number; found a sequence of them.")
    if scheme.common_budget is not None:
        values = np.full_like(values, scheme.common_budget)
    if (values < scheme.min_budget).any():
        raise ValueError(
            f"{scheme.name} needs budgets of at least {scheme.min_budget:g} bits per "
            f"weight; found {values.min():g}."
        )
    return list(budgets), values


def _build_initialize(server: Server, model: tf.keras.Model) -> tff.Computation:
    """Builds ( -> S@SERVER), with the present weights of a Keras model."""
    trainable = [v.numpy() for v in model.trainable_variables]
    non_trainable = [v.numpy() for v in float_non_trainable_variables(model)]

    @tff.tensorflow.computation
    def initial_state():
        return server.initial_state(trainable, non_trainable)

    @tff.federated_computation
    def initialize():
        return tff.federated_eval(initial_state, tff.SERVER)

    return initialize


def _build_key_lookup(client_ids: list[str]) -> tff.Computation:
    """Builds (string -> int32[1]): a client's row in tables, from its id."""

    @tff.tensorflow.computation(tff.TensorType(np.str_))
    def key_of(client_id):
        matches = tf.equal(tf.constant(client_ids), client_id)
        known = tf.debugging.Assert(
            tf.reduce_any(matches), ["No budget was given for client", client_id]
        )
        with tf.control_dependencies([known]):
            return tf.reshape(tf.argmax(matches, output_type=tf.int32), [1])

    return key_of


def _build_aggregate(server: Server, result_type: Any) -> tff.Computation:
    """Builds ({ClientResult}@CLIENTS -> RoundSums@SERVER)."""

    @tff.tensorflow.computation
    def zero():
        return server.zero()

    sums_type = zero.type_signature.result

    @tff.tensorflow.computation(sums_type, result_type)
    def accumulate(sums, result):
        return server.accumulate(sums, result)

    @tff.tensorflow.computation(sums_type, sums_type)
    def merge_sums(a, b):
        return merge(a, b)

    @tff.tensorflow.computation(sums_type)
    def report(sums):
        return sums

    @tff.federated_computation(tff.FederatedType(result_type, tff.CLIENTS))
    def aggregate(results):
        return tff.federated_aggregate(results, zero(), accumulate, merge_sums, report)

    return aggregate
