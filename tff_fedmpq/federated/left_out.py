"""Clients that cannot take part in a round, which goes on without them.

A TensorFlow graph cannot catch what a client's dataset raises: all of the round fails,
and its error names no client. Then the examples of each participant are read alone, and
the round is run again without those whose are not readable. The others' results are
functions of their seeds: they are the same as in the first trial.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import grpc
import numpy as np
import tensorflow as tf
from absl import logging

from tff_fedmpq._tff import tff
from tff_fedmpq.federated import acceptance
from tff_fedmpq.federated.acceptance import Rejection
from tff_fedmpq.federated.client_work import dataset_reader, read_all_examples


def build_inspection(
    client_data: tff.simulation.datasets.ClientData, at_most: int
) -> tff.Computation:
    """Builds ({str}@CLIENTS -> {int64[2]}@CLIENTS).

    It returns the number of a client's examples, or `at_most` and one if there are
    more, and their digest.
    """
    read = dataset_reader(client_data)

    @tff.tensorflow.computation(np.str_)
    def inspect_one(client_id):
        parts = tf.nest.flatten(read_all_examples(read(client_id), at_most))
        tensors = [part for part in parts if part is not None]
        content = tf.strings.join([tf.io.serialize_tensor(t) for t in tensors])
        digest = tf.strings.to_hash_bucket_strong(content, 2**62, [1, 2])
        return tf.stack([tf.shape(tensors[0], tf.int64)[0], digest])

    return tff.federated_computation(
        lambda client_ids: tff.federated_map(inspect_one, client_ids),
        tff.FederatedType(np.str_, tff.CLIENTS),
    )


def run_without_unreadable(
    run: Callable[[Any], Any], client_ids: Any, inspect: Callable[..., Any]
) -> tuple[Any, dict[str, str]]:
    """Returns a round's output, and the clients that it had to do without.

    These are ids with the error that reading their examples raises. Where none can be
    read, this is a ValueError: data are missing, not clients.
    """
    try:
        return run(_encoded(client_ids)), {}
    # Of TensorFlow in the worker; a ValueError is what is made of its assertions.
    except (grpc.RpcError, ValueError) as failure:
        causes: dict[str, str] = {}
        for client in client_ids if isinstance(client_ids, list) else ():
            try:
                inspect(_encoded([client]))
            except grpc.RpcError as error:
                causes[client] = str(error.details()).split("\n")[0]
                if "batch tensors with different shapes" in causes[client]:
                    causes[client] += " Pad examples to one shape"
        if not causes:
            raise
        if len(causes) == len(client_ids):
            client, cause = next(iter(causes.items()))
            raise ValueError(
                f"The examples of no client can be read; of client {client!r}: {cause}."
            ) from failure
    left = [client for client in client_ids if client not in causes]
    return run(_encoded(left)), causes


def _encoded(client_ids: Any) -> Any:
    """Returns a list of ids as bytes, for of texts TFF takes only those in ASCII."""
    is_list = isinstance(client_ids, list)
    return [client.encode() for client in client_ids] if is_list else client_ids


def tell(
    metrics: Mapping[str, Any],
    causes: Mapping[str, str],
    client_ids: Sequence[str],
    round_number: int,
    raises: bool,
) -> Mapping[str, Any]:
    """Adds the clients of `causes` to a round's measurements; warns of all left out.

    With `raises` this is a ValueError, except for clients that only dropped out.
    """
    metrics = collections.OrderedDict(metrics)
    metrics["rejected"] = rejected = metrics["rejected"].copy()
    metrics["num_rejected"] = metrics["num_rejected"] + np.int32(len(causes))
    for client in causes:
        rejected[client_ids.index(client)] = Rejection.DATASET
    reasons = acceptance.describe(rejected, client_ids)
    for client, cause in causes.items():
        reasons[client] += f" ({cause})"
    said = "; ".join(f"client {client!r}: {why}" for client, why in reasons.items())
    said = f"Round {round_number}, left out: {said}"
    if raises and set(rejected) - {0, Rejection.DROPOUT}:
        raise ValueError(f"{said}. on_client_error='skip' goes on without them.")
    if reasons:
        logging.warning("%s", said)
    return metrics
