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
       |  with an aggregator, also: unpack, dequantize, aggregate (`aggregation`)
       v
    SERVER   weighted mean -> next W, averaged bit-widths         (`Server.update`)

    next: (<S@SERVER, {str}@CLIENTS> -> <state=S@SERVER, metrics=M@SERVER>)

Only client ids enter a round; a client's examples are read inside the computation.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import gc
import numbers
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from tff_fedmpq._tff import tff
from tff_fedmpq.allocation.device_budget import budgets_in_bits
from tff_fedmpq.federated import left_out
from tff_fedmpq.federated.aggregation import (
    Aggregation,
    check_privacy,
    find_factory,
)
from tff_fedmpq.federated.client_work import build_client_work
from tff_fedmpq.federated.config import LocalTrainingConfig
from tff_fedmpq.federated.learning_process import FederatedProcess
from tff_fedmpq.federated.local_training import Augment, OnStep
from tff_fedmpq.federated.population import Population
from tff_fedmpq.federated.round_sums import merge
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.federated.server import Server
from tff_fedmpq.federated.tasks import Task, check_loss, check_metrics, split_example
from tff_fedmpq.keras.layers import parts_of
from tff_fedmpq.keras.quantized_kernel import quantized_kernels
from tff_fedmpq.keras.variables import ModelFn, ModelSpec, float_non_trainable_variables
from tff_fedmpq.lookup import check_bool

_MAX_EMBEDDED_MEGABYTES = 20


class RoundParts(NamedTuple):
    """`next`, cut where messages travel: for clients on other machines.

    The same computations in the same order, hence the same numbers: one client after
    another is selected, and added in the order of ids. MESSAGE is that of
    `Server.message_for`.
    """

    select: tff.Computation  # (<S, str> -> <int32[1], MESSAGE, Ticket>)
    work: tff.Computation  # (<str, int32[1], MESSAGE> -> ClientResult)
    zero: tff.Computation  # ( -> RoundSums)
    accumulate: tff.Computation  # (<RoundSums, <ClientResult, Ticket>> -> RoundSums)
    # (<S@SERVER, RoundSums@SERVER> -> as `next`); also {<ClientResult, Ticket>}@CLIENTS
    # where sums are not all that is needed of answers.
    finish: tff.Computation
    # ({str}@CLIENTS -> {int64[2]}@CLIENTS): number of examples, and their digest.
    inspect: tff.Computation


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pauses it: the tens of thousands of operations that are made all stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_without_garbage_collection()
def build_process(
    model_fn: ModelFn,
    budgets: Mapping[Any, float | str],
    client_data: tff.simulation.datasets.ClientData,
    config: LocalTrainingConfig,
    *,
    loss: Any = None,
    metrics: Any = None,
    metrics_per_client: bool = False,
    augment: Augment | None = None,
    dtype_policy: str | None = None,
    on_step: OnStep | None = None,
    aggregator: Any = None,
    server_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
    seed: int = 0,
) -> FederatedProcess:
    """Builds the learning process of a scheme; for state and metrics see `server`.

    Args:
      model_fn: Function that returns a Sequential or functional float Keras model. Its
        initial weights are the process's.
      budgets: Average bits per weight, 1 to 8, of each client id: all clients; or the
        size of the client's model, such as "40 kB" (`budget_for`). Ids are strings or
        whole numbers.
      client_data: Clients' examples, pairs (x, y) or triples (x, y, sample_weight) of
        any structures of tensors, or mappings of these names.
      config: Configuration of the scheme, such as `FedMPQConfig`.
      loss: Loss as in `tf.keras.Model.compile`: name, class, instance, function, or a
        structure of them for several outputs. By default the sparse categorical
        cross-entropy of logits; a Keras name expects probabilities.
      metrics: Metrics as in `tf.keras.Model.compile`, computed while clients train and
        added up exactly over them. By default the accuracy for a cross-entropy of
        classes, else none.
      metrics_per_client: Whether the measurements also have each client's loss and
        metrics; not with differential privacy.
      augment: Augmentation of every training batch: (x, seed int32[2]) -> x.
      dtype_policy: Keras policy of layers; "mixed_bfloat16" is faster where supported.
      on_step: Function of the loss, called in the graph after every local step.
      aggregator: How clients' changes become one (`aggregation`): a factory such as
        `tff.learning.robust_aggregator()` or `tff.learning.dp_aggregator(...)`, or
        "clipping", "zeroing", "median", "trimmed_mean"; statistics are then common to
        all budgets. None is the weighted mean.
      server_optimizer_fn: Optimizer of the server, such as that of
        `tff.learning.optimizers.build_adam`, for which the gradient is the average
        change with its sign reversed; statistics are averaged. None adds the change.
      seed: Seed of all randomness in training, from 0 to 2**31 - 1.

    Raises:
      TypeError, ValueError: for arguments that are wrong, before a model is built;
        then for a quantized model, and for examples, loss or metrics that do not fit.
    """
    _check_arguments(model_fn, client_data, config, server_optimizer_fn, seed)
    loss, metrics = check_loss(loss), check_metrics(metrics)
    check_bool(metrics_per_client, "metrics_per_client")
    factory, scheme = find_factory(aggregator), config.compose()
    if factory is not None:
        check_privacy(factory, scheme, metrics_per_client)
    bits, model_fn = _budgets_in_bits(budgets, model_fn)
    population = Population.of(bits, client_data, scheme)
    element = client_data.element_type_structure
    split_example(element)
    _warn(config, scheme, population, client_data)
    model = model_fn()
    if not isinstance(model, tf.keras.Model):
        raise TypeError(f"model_fn has to return a Keras model; found {model!r}.")
    if quantized_kernels(model):
        raise ValueError("model_fn has to return a float model, not quantized layers.")
    _forbid_cached_reads(model)
    spec = ModelSpec.from_model(scheme.build_client_model(model))
    aggregation = None
    if factory is not None:
        aggregation = Aggregation.of(factory, spec)
        # Of a budget there may be a single client.
        scheme = dataclasses.replace(scheme, statistics_per_budget=False)
    task = Task.of(model, element, loss, metrics)
    statistics = float_non_trainable_variables(model)
    server = Server(
        scheme,
        spec,
        population.budgets,
        seed,
        population.digest,
        task.build_metrics,
        server_optimizer_fn,
        ["variance" in variable.name for variable in statistics],
        aggregation=aggregation,
        per_client=metrics_per_client,
    )
    trainable = [v.numpy() for v in model.trainable_variables]
    non_trainable = [v.numpy() for v in statistics]

    compute = tff.tensorflow.computation
    initial_state = compute(lambda: server.initial_state(trainable, non_trainable))

    @tff.federated_computation
    def initialize():
        state = tff.federated_eval(initial_state, tff.SERVER)
        return state if aggregation is None else aggregation.initialize(state)

    state_type = initialize.type_signature.result.member
    key_of = population.key_lookup()
    max_key = compute(lambda: tf.constant(len(population.client_ids)))
    select = compute(server.message_for, state_type, np.int32)
    work = build_client_work(
        model,
        scheme,
        spec,
        client_data,
        population.budgets,
        select.type_signature.result,
        task=task,
        augment=augment,
        dtype_policy=dtype_policy,
        on_step=on_step,
    )
    zero = compute(server.zero)
    sums_type = zero.type_signature.result
    # In a sequence of one, as `tff.federated_select` gives it.
    ticket_of = compute(
        lambda selected: selected.get_single_element()["ticket"],
        tff.SequenceType(select.type_signature.result),
    )
    answer_type = tff.to_type(
        (work.type_signature.result, ticket_of.type_signature.result)
    )
    accumulate = compute(
        lambda sums, answer: server.accumulate(sums, *answer), sums_type, answer_type
    )
    merge_sums = compute(merge, sums_type, sums_type)
    report = compute(lambda sums: sums, sums_type)
    if aggregation is None:
        update = compute(lambda s, sums: server.update(s, sums), state_type, sums_type)
    else:
        aggregate = _aggregate(server, aggregation, state_type, answer_type)
        aggregated_type = aggregate.type_signature.result.member
        update = compute(
            lambda s, sums, aggregated: server.update(s, sums, aggregated),
            state_type,
            sums_type,
            aggregated_type,
        )

    def finish(state, sums, *answers):
        aggregated = () if aggregation is None else (aggregate(state, *answers),)
        next_state, measured = tff.federated_map(update, (state, sums, *aggregated))
        return tff.learning.templates.LearningProcessOutput(next_state, measured)

    @tff.federated_computation(
        initialize.type_signature.result, tff.FederatedType(np.str_, tff.CLIENTS)
    )
    def next_fn(state, client_ids):
        keys = tff.federated_map(key_of, client_ids)
        last = tff.federated_eval(max_key, tff.SERVER)
        received = tff.federated_select(keys, last, state, select)
        results = tff.federated_map(work, (client_ids, keys, received))
        tickets = tff.federated_map(ticket_of, received)
        answers = tff.federated_zip((results, tickets))
        sums = tff.federated_aggregate(answers, zero(), accumulate, merge_sums, report)
        return finish(state, sums, *([] if aggregation is None else [answers]))

    def select_one(state, client_id):
        key = key_of(client_id)
        message = server.message_for(state, key[0])
        return key, message, message["ticket"]

    def finish_alone():
        types = [tff.FederatedType(t, tff.SERVER) for t in (state_type, sums_type)]
        if aggregation is None:
            return tff.federated_computation(lambda s, sums: finish(s, sums), *types)
        return tff.federated_computation(
            lambda s, sums, answers: finish(s, sums, answers),
            *types,
            tff.FederatedType(answer_type, tff.CLIENTS),
        )

    inspect = left_out.build_inspection(client_data, config.max_examples)
    # `remote_runtime` asks for them; building them takes a while.
    next_fn.split = functools.cache(
        lambda: RoundParts(
            compute(select_one, state_type, np.str_),
            _work_alone(work),
            zero,
            accumulate,
            finish_alone(),
            inspect,
        )
    )
    get_model_weights = compute(lambda state: state.global_model_weights, state_type)

    @tff.tensorflow.computation(state_type, get_model_weights.type_signature.result)
    def set_model_weights(state, weights):
        distributor = collections.OrderedDict(state.distributor)
        # Those of other weights.
        unknown = tf.zeros_like(distributor["statistics_weights"])
        distributor["statistics_weights"] = unknown
        return state._replace(global_model_weights=weights, distributor=distributor)

    computations = initialize, next_fn, get_model_weights, set_model_weights
    return FederatedProcess(computations, server, model, population, inspect)


def _work_alone(work: tff.Computation) -> tff.Computation:
    """Builds a client's work on its message alone, not in a sequence."""
    id_type, key_type, messages_type = work.type_signature.parameter
    from_tensors = tf.data.Dataset.from_tensors
    as_sequence = tff.tensorflow.computation(
        lambda message: from_tensors(message), messages_type.element
    )

    @tff.federated_computation(id_type, key_type, messages_type.element)
    def work_alone(client_id, keys, message):
        return work(client_id, keys, as_sequence(message))

    return work_alone


def _aggregate(
    server: Server,
    aggregation: Aggregation,
    state_type: tff.Type,
    answer_type: tff.Type,
) -> tff.Computation:
    """Builds (<S@SERVER, {<ClientResult, Ticket>}@CLIENTS> -> `Aggregated`@SERVER)."""
    compute = tff.tensorflow.computation

    @compute(state_type)
    def present_of(state):
        return state.global_model_weights, state.distributor["round"]

    @compute(answer_type, present_of.type_signature.result)
    def change(answer, present):
        return server.change(*answer, *present)

    @tff.federated_computation(
        tff.FederatedType(state_type, tff.SERVER),
        tff.FederatedType(answer_type, tff.CLIENTS),
    )
    def aggregate(state, answers):
        present = tff.federated_broadcast(tff.federated_map(present_of, state))
        changes, weights = tff.federated_map(change, (answers, present))
        return aggregation.next(state.aggregator, changes, weights)

    return aggregate


def _check_arguments(
    model_fn: Any, client_data: Any, config: Any, optimizer: Any, seed: Any
) -> None:
    """Raises TypeError or ValueError for arguments that are no such thing."""
    if not callable(model_fn) or isinstance(model_fn, tf.keras.Model):
        raise TypeError(
            "model_fn has to be a function that returns a Keras model; found "
            f"{type(model_fn).__name__}."
        )
    if not isinstance(client_data, tff.simulation.datasets.ClientData):
        raise TypeError(
            "client_data has to be a tff.simulation.datasets.ClientData, such as "
            "tff_fedmpq.client_data_from_arrays makes of arrays; found "
            f"{type(client_data).__name__}."
        )
    if not isinstance(config, LocalTrainingConfig):
        raise TypeError(
            "config has to be the configuration of a scheme, such as FedMPQConfig(); "
            f"found {config!r}."
        )
    known = tff.learning.optimizers
    if optimizer is not None and not isinstance(optimizer, known.Optimizer):
        raise TypeError(
            "server_optimizer_fn has to be a tff.learning.optimizers.Optimizer, as "
            f"that of build_adam there; found {type(optimizer).__name__}."
        )
    is_integer = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not is_integer or not 0 <= seed < 2**31:
        kind = ValueError if is_integer else TypeError
        raise kind(
            f"seed has to be a whole number from 0 to 2**31 - 1; found {seed!r}."
        )


def _budgets_in_bits(budgets: Any, model_fn: ModelFn) -> tuple[Any, ModelFn]:
    """Returns budgets in bits, and a function of the model built for kilobytes."""
    values = budgets.values() if isinstance(budgets, Mapping) else ()
    if not any(isinstance(value, str) for value in values):
        return budgets, model_fn
    model = model_fn()
    return budgets_in_bits(budgets, model), lambda: model


def _forbid_cached_reads(model: tf.keras.Model) -> None:
    """Makes copies of recurrent layers read their weights when they are called.

    Copies made in the graph of a computation would read them once, before a client's
    are assigned: Keras keeps the cells' option of caching for multi-worker training.
    """
    for part in parts_of(model):  # Also the layer of which Bidirectional has copies.
        if hasattr(part, "_enable_caching_device"):
            part._enable_caching_device = False


def _warn(
    config: LocalTrainingConfig,
    scheme: Scheme,
    population: Population,
    client_data: tff.simulation.datasets.ClientData,
) -> None:
    """Warns of what is allowed and probably not meant."""
    if config.rounds is None and config.rates_decay:
        logging.warning("%s: learning rates stay constant; set rounds.", config.name)
    budgets = np.unique(population.budgets)
    usable = scheme.usable_budgets(budgets)
    if (usable < budgets).any():
        logging.warning(
            "%s uses whole bits: of budgets %s it uses %s bits per weight.",
            config.name,
            budgets.tolist(),
            usable.tolist(),
        )
    if isinstance(client_data, tff.simulation.datasets.TestClientData):
        arrays = tf.nest.flatten(client_data._tensor_slices_dict)
        megabytes = sum(np.asarray(array).nbytes for array in arrays) / 1e6
        if megabytes > _MAX_EMBEDDED_MEGABYTES:
            logging.warning(
                "TestClientData puts its %d MB into graphs, which takes thirty times "
                "the memory and minutes; use tff_fedmpq.client_data_from_arrays.",
                megabytes,
            )
