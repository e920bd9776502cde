"""The round that all schemes share, as a `tff.learning.templates.LearningProcess`.

    SERVER   state: float weights W, bit-widths b[N, L], round
       |
       |  client ids {str}@CLIENTS  ->  keys {int32[1]}@CLIENTS
       |
       |  federated_select: per key, quantize W to b[key], pack   (`server.message_for`)
       v
    CLIENTS  unpack, read own examples, train, prune, pack        (`client_work`)
       |
       |  federated_aggregate: unpack, dequantize, add up         (`aggregation`)
       v
    SERVER   weighted mean -> next W; allocation policy -> next b (`server.update`)

    next: (<S@SERVER, {str}@CLIENTS> -> <state=S@SERVER, metrics=M@SERVER>)

Only client ids enter a round; a client's examples are read inside the computation.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Callable

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from absl import logging

from tff_fedmpq.federated import aggregation, client_work
from tff_fedmpq.federated.local_training import Augment, OnStep
from tff_fedmpq.federated.model_spec import (
    ModelFn,
    ModelSpec,
    float_non_trainable_variables,
)
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.federated.server import Server
from tff_fedmpq.keras.quantized_kernel import quantized_kernels


def build_process(
    model_fn: ModelFn,
    budgets: Mapping[str, float],
    client_data: tff.simulation.datasets.ClientData,
    scheme: Scheme,
    *,
    loss: tf.keras.losses.Loss | None = None,
    augment: Augment | None = None,
    dtype_policy: str | None = None,
    on_step: OnStep | None = None,
    seed: int = 0,
) -> tff.learning.templates.LearningProcess:
    """Builds the learning process of a scheme.

    Args:
      model_fn: returns a Sequential or functional float Keras model with logits as
        output. Its initial weights are the process's.
      budgets: client id -> average bits per weight, 1 to 8. These are the clients.
      client_data: holds the clients' examples, pairs (x, y).
      scheme: what to do.
      loss: of labels and logits; by default sparse categorical cross-entropy.
      augment: applied to every batch of training images.
      dtype_policy: Keras policy of the layers; "mixed_bfloat16" computes faster on
        processors that have it.
      on_step: called with the loss, in the graph, after every local step.
      seed: of everything random in training, but what layers such as Dropout draw.

    Returns:
      The process. Its state is a `tff.learning.templates.LearningAlgorithmState` with
      ``distributor = {bit_widths: int32[N, L], round: int32}``; for its metrics see
      `server.measurements`.

    Raises:
      ValueError: for budgets out of range, clients without data, or a model that is
        quantized already.
    """
    client_ids, budget_values = _check_clients(budgets, client_data, scheme)
    loss = loss or tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    global_model = scheme.build_global_model(model_fn)
    if quantized_kernels(global_model):
        raise ValueError(
            "model_fn has to return a float model, which the scheme quantizes; found "
            "one with quantized layers."
        )
    spec = ModelSpec.from_model(scheme.build_client_model(model_fn))
    server = Server(scheme, spec, budget_values, seed)
    initialize = _build_initialize(server, global_model)
    state_type = initialize.type_signature.result.member

    @tff.tensorflow.computation(state_type, np.int32)
    def select_fn(state, key):
        return server.message_for(state, key)

    work = client_work.build_client_work(
        model_fn,
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
    aggregate = _build_aggregate(
        work.type_signature.result, scheme, spec, len(client_ids)
    )

    @tff.tensorflow.computation(state_type, aggregate.type_signature.result.member)
    def update(state, sums):
        return server.update(state, sums)

    key_of = _build_key_lookup(client_ids)
    num_clients = len(client_ids)

    @tff.tensorflow.computation
    def max_key():
        return tf.constant(num_clients, tf.int32)

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
        next_state, measurements = tff.federated_map(update, (state, sums))
        return tff.learning.templates.LearningProcessOutput(next_state, measurements)

    @tff.tensorflow.computation(state_type)
    def get_model_weights(state):
        return state.global_model_weights

    @tff.tensorflow.computation(state_type, get_model_weights.type_signature.result)
    def set_model_weights(state, weights):
        return state._replace(global_model_weights=weights)

    return tff.learning.templates.LearningProcess(
        initialize, next_fn, get_model_weights, set_model_weights
    )


ProcessBuilder = Callable[..., tff.learning.templates.LearningProcess]


def process_builder(scheme_fn: Callable[..., Scheme]) -> ProcessBuilder:
    """Returns the function that builds the processes of one scheme.

    It takes the arguments of `build_process`, and in the place of a `Scheme` those of
    the scheme's function, by keyword. Its docstring ends with that function's.
    """
    parameters = inspect.signature(build_process).parameters.values()
    of_process = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}

    def build(
        model_fn: ModelFn,
        budgets: Mapping[str, float],
        client_data: tff.simulation.datasets.ClientData,
        **options: Any,
    ) -> tff.learning.templates.LearningProcess:
        """Builds the scheme's learning process; its rounds take client ids.

        Args:
          model_fn: returns a Sequential or functional float Keras model with logits as
            output.
          budgets: client id -> average bits per weight, 1 to 8.
          client_data: holds the clients' examples, pairs (x, y).
          **options: keyword arguments of `build_process` (loss, augment, dtype_policy,
            on_step, seed), and those of the scheme's function, among them epochs,
            batch_size, learning rates, and the rounds over which they fall
            (`LocalTrainingConfig`).

        Returns:
          The process, as `build_process` describes it.

        Raises:
          TypeError: for an option that neither of them has.
          ValueError: for a setting out of range, or clients without data.
        """
        of_scheme = {k: v for k, v in options.items() if k not in of_process}
        process_options = {k: v for k, v in options.items() if k in of_process}
        scheme = scheme_fn(**of_scheme)
        _warn_of_constant_rates(scheme)
        return build_process(model_fn, budgets, client_data, scheme, **process_options)

    build.__name__ = f"build_{scheme_fn.__name__.replace('_scheme', '')}"
    scheme_doc = f"The scheme's function, {scheme_fn.__name__}:"
    documents = (inspect.getdoc(build), scheme_doc, inspect.getdoc(scheme_fn))
    build.__doc__ = "\n\n".join(text for text in documents if text)
    return build


def _warn_of_constant_rates(scheme: Scheme) -> None:
    """Says so where rates cannot fall for want of a number of rounds."""
    training = scheme.training
    decays = {training.learning_rate_decay, training.float_learning_rate_decay}
    if training.rounds is None and decays != {"none"}:
        logging.warning(
            "%s: learning rates stay constant, for the number of rounds is not given. "
            "Give rounds=..., over which they fall.",
            scheme.name,
        )


def _check_clients(
    budgets: Mapping[str, float],
    client_data: tff.simulation.datasets.ClientData,
    scheme: Scheme,
) -> tuple[list[str], np.ndarray]:
    """Returns ids and budgets (float64[N]) of the clients, in the mapping's order."""
    if not budgets:
        raise ValueError("budgets is empty; expected a budget for each client id.")
    without_data = set(budgets) - set(client_data.client_ids)
    if without_data:
        raise ValueError(
            f"client_data has no clients {sorted(without_data)}, which have a budget; "
            f"it has {sorted(client_data.client_ids)[:10]}."
        )
    return list(budgets), scheme.effective_budgets(list(budgets.values()))


def _build_initialize(server: Server, model: tf.keras.Model) -> tff.Computation:
    """Builds ( -> S@SERVER), with the weights that a Keras model has now."""
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


def _build_aggregate(
    result_type: tff.Type, scheme: Scheme, spec: ModelSpec, num_clients: int
) -> tff.Computation:
    """Builds ({ClientResult}@CLIENTS -> RoundSums@SERVER)."""

    @tff.tensorflow.computation
    def zero():
        return aggregation.zero(spec, scheme.uplink, num_clients)

    sums_type = zero.type_signature.result

    @tff.tensorflow.computation(sums_type, result_type)
    def accumulate(sums, result):
        return aggregation.accumulate(sums, result, scheme.uplink, spec)

    @tff.tensorflow.computation(sums_type, sums_type)
    def merge(a, b):
        return aggregation.merge(a, b)

    @tff.tensorflow.computation(sums_type)
    def report(sums):
        return sums

    @tff.federated_computation(tff.FederatedType(result_type, tff.CLIENTS))
    def aggregate(results):
        return tff.federated_aggregate(results, zero(), accumulate, merge, report)

    return aggregate
