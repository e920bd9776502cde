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

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from tff_fedmpq._tff import tff
from tff_fedmpq.allocation.pruning_growing import check_budgets
from tff_fedmpq.federated.client_work import build_client_work, read_all_examples
from tff_fedmpq.federated.config import LocalTrainingConfig
from tff_fedmpq.federated.evaluation import assign_global_weights
from tff_fedmpq.federated.local_training import Augment, OnStep
from tff_fedmpq.federated.messages import assign_quantized_weights
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.federated.server import Server, State, merge
from tff_fedmpq.keras.quantized_kernel import quantized_kernels
from tff_fedmpq.keras.variables import ModelFn, ModelSpec, float_non_trainable_variables


class RoundParts(NamedTuple):
    """`next`, cut where messages travel: for clients on other machines.

    The same computations in the same order, hence the same numbers. MESSAGE is that of
    `Server.message_for`.
    """

    # (<S@SERVER, {str}@CLIENTS> -> {<str, int32[1], MESSAGE>}@CLIENTS)
    select: tff.Computation
    work: tff.Computation  # (<str, int32[1], MESSAGE> -> ClientResult)
    finish: tff.Computation  # (<S@SERVER, {ClientResult}@CLIENTS> -> as `next`)
    # ({str}@CLIENTS -> {int64[2]}@CLIENTS): number of examples, and their digest.
    inspect: tff.Computation


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
        computations: Sequence[tff.Computation],
        server: Server,
        model: tf.keras.Model,
        client_ids: list[str],
    ):
        super().__init__(*computations)
        self.scheme, self.spec = server.scheme, server.spec
        self.client_ids, self.budgets = client_ids, server.budgets
        self.model, self._server = model, server

    def global_model(self, state: State) -> tf.keras.Model:
        """Returns the global model: float kernels, activations as on clients."""
        model = self.scheme.build_global_model(self.model)
        assign_global_weights(model, state.global_model_weights)
        return model

    def device_model(self, state: State, client_id: str) -> tf.keras.Model:
        """Returns what a client would receive now; ValueError for an unknown id."""
        model = self.scheme.build_client_model(self.model)
        self.assign_device_weights(model, state, client_id)
        return model

    def assign_device_weights(
        self, model: tf.keras.Model, state: State, client_id: str
    ) -> None:
        """Sets a model of `device_model` to what another client would receive."""
        ids = self.client_ids
        if client_id not in ids:
            raise ValueError(f"No client {client_id!r}; clients are {ids[:10]}.")
        weights = self._server.model_for(state, ids.index(client_id))
        assign_quantized_weights(model, weights)


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
    """Builds the learning process of a scheme; for state and metrics see `server`.

    Args:
      model_fn: Function that returns a Sequential or functional float Keras model with
        logits as output. Its initial weights are the process's.
      budgets: Average bits per weight, 1 to 8, of each client id: all clients.
      client_data: Clients' examples, pairs (x, y).
      config: Configuration of the scheme, such as `FedMPQConfig`.
      loss: Loss of labels and logits; sparse categorical cross-entropy by default.
      augment: Augmentation of every training batch: (images, seed int32[2]) -> images.
      dtype_policy: Keras policy of layers; "mixed_bfloat16" is faster where supported.
      on_step: Function of the loss, called in the graph after every local step.
      seed: Seed of all randomness in training, except that of layers such as Dropout.

    Raises:
      ValueError: for budgets out of range, clients without data, a quantized model.
    """
    scheme = config.compose()
    client_ids, budget_values = _check_clients(budgets, client_data, scheme)
    decays = {rate.decay for rate in config.learning_rates()}
    if config.rounds is None and decays != {"none"}:
        logging.warning("%s: learning rates stay constant; set rounds.", config.name)
    model = model_fn()
    if quantized_kernels(model):
        raise ValueError("model_fn has to return a float model, not quantized layers.")
    spec = ModelSpec.from_model(scheme.build_client_model(model))
    server = Server(scheme, spec, budget_values, seed)
    trainable = [v.numpy() for v in model.trainable_variables]
    non_trainable = [v.numpy() for v in float_non_trainable_variables(model)]

    compute = tff.tensorflow.computation
    initial_state = compute(lambda: server.initial_state(trainable, non_trainable))
    state_type = initial_state.type_signature.result
    key_of = _build_key_lookup(client_ids)
    max_key = compute(lambda: tf.constant(len(client_ids)))
    select = compute(server.message_for, state_type, np.int32)
    work = build_client_work(
        model,
        scheme,
        spec,
        client_data,
        budget_values,
        select.type_signature.result,
        loss=loss or tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        augment=augment,
        dtype_policy=dtype_policy,
        on_step=on_step,
    )
    zero = compute(server.zero)
    sums_type = zero.type_signature.result
    accumulate = compute(server.accumulate, sums_type, work.type_signature.result)
    merge_sums = compute(merge, sums_type, sums_type)
    report = compute(lambda sums: sums, sums_type)
    update = compute(server.update, state_type, sums_type)

    @tff.federated_computation
    def initialize():
        return tff.federated_eval(initial_state, tff.SERVER)

    def send(state, client_ids):
        keys = tff.federated_map(key_of, client_ids)
        last = tff.federated_eval(max_key, tff.SERVER)
        return keys, tff.federated_select(keys, last, state, select)

    def finish(state, results):
        sums = tff.federated_aggregate(results, zero(), accumulate, merge_sums, report)
        next_state, measured = tff.federated_map(update, (state, sums))
        return tff.learning.templates.LearningProcessOutput(next_state, measured)

    @tff.federated_computation(
        initialize.type_signature.result, tff.FederatedType(np.str_, tff.CLIENTS)
    )
    def next_fn(state, client_ids):
        keys, received = send(state, client_ids)
        return finish(state, tff.federated_map(work, (client_ids, keys, received)))

    # `remote_runtime` asks for them; building them takes a while.
    parameter = next_fn.type_signature.parameter
    next_fn.split = functools.cache(
        lambda: _split(parameter, send, work, finish, client_data)
    )
    get_model_weights = compute(lambda state: state.global_model_weights, state_type)

    @tff.tensorflow.computation(state_type, get_model_weights.type_signature.result)
    def set_model_weights(state, weights):
        distributor = collections.OrderedDict(state.distributor)
        unknown = tf.zeros_like(distributor["has_statistics"])
        distributor["has_statistics"] = unknown  # Those of other weights.
        return state._replace(global_model_weights=weights, distributor=distributor)

    computations = initialize, next_fn, get_model_weights, set_model_weights
    return FederatedProcess(computations, server, model, client_ids)


def _split(
    parameter: tff.Type, send: Any, work: tff.Computation, finish: Any, data: Any
) -> RoundParts:
    """Builds the parts of a round; `send` and `finish` are its halves in Python."""
    state_type, ids_type = parameter
    messages_type = work.type_signature.parameter[2]
    compute, clients = tff.tensorflow.computation, tff.CLIENTS
    alone = compute(lambda messages: messages.get_single_element(), messages_type)
    from_tensors = tf.data.Dataset.from_tensors
    as_sequence = compute(lambda message: from_tensors(message), messages_type.element)

    @tff.federated_computation(state_type, ids_type)
    def select(state, client_ids):
        keys, received = send(state, client_ids)
        messages = tff.federated_map(alone, received)
        return tff.federated_zip((client_ids, keys, messages))

    key_type = work.type_signature.parameter[1]

    @tff.federated_computation(np.str_, key_type, messages_type.element)
    def work_alone(client_id, keys, message):
        return work(client_id, keys, as_sequence(message))

    results_type = tff.FederatedType(work.type_signature.result, clients)

    @tff.tensorflow.computation(np.str_)
    def inspect_one(client_id):
        tensors = read_all_examples(data.dataset_computation(client_id))
        content = tf.strings.join([tf.io.serialize_tensor(t) for t in tensors])
        digest = tf.strings.to_hash_bucket_strong(content, 2**62, [1, 2])
        return tf.stack([tf.shape(tensors[0], tf.int64)[0], digest])

    return RoundParts(
        select,
        work_alone,
        tff.federated_computation(finish, state_type, results_type),
        tff.federated_computation(
            lambda client_ids: tff.federated_map(inspect_one, client_ids), ids_type
        ),
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


def _build_key_lookup(client_ids: list[str]) -> tff.Computation:
    """Builds (string -> int32[1]): a client's row in tables, from its id."""

    @tff.tensorflow.computation(tff.TensorType(np.str_))
    def key_of(client_id):
        matches = tf.equal(tf.constant(client_ids), client_id)
        problem = ["No budget was given for client", client_id]
        known = tf.debugging.Assert(tf.reduce_any(matches), problem)
        with tf.control_dependencies([known]):
            return tf.reshape(tf.argmax(matches, output_type=tf.int32), [1])

    return key_of
