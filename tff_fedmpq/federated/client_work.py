"""A client's part of a round, as a TFF computation.

    client_work: (<client_id=string, keys=int32[1], selected=MESSAGE*> -> ClientResult)

(`tff.federated_select` takes a list of keys and gives a sequence; both hold one.)

It reads the client's examples by its id, unpacks the received model, trains
(`local_training`), and encodes the result (`messages.Uplink`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tff_fedmpq._tff import tff
from tff_fedmpq.federated import messages
from tff_fedmpq.federated.local_training import (
    Augment,
    LocalTrainer,
    OnStep,
    TrainingSums,
)
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.keras.variables import ModelSpec

# More than any client holds: all of its examples form one batch.
_ALL_EXAMPLES = 2**31 - 1


class ClientResult(NamedTuple):
    """Result of one client in a round.

    Attributes:
      key: Client's row in tables, int32[].
      weight: Weight in the average, float32[].
      message: Trained model, encoded by the scheme's uplink.
      bit_widths: Bits per weight of the trained kernels, int32[L].
      training: Sums over the client's examples.
      msb_densities: MSB density of each layer before pruning, float32[L].
      uplink_bits: Size of what was sent, int64[4] by `messages.BIT_ITEMS`.
      downlink_bits: Size of what was received, int64[4].
      symbols: Symbols of `message` to entropy-code, int16[streams, symbols].
    """

    key: Any
    weight: Any
    message: messages.Message
    bit_widths: Any
    training: TrainingSums
    msb_densities: Any
    uplink_bits: Any
    downlink_bits: Any
    symbols: Any


def build_client_work(
    model: tf.keras.Model,
    scheme: Scheme,
    spec: ModelSpec,
    client_data: tff.simulation.datasets.ClientData,
    budgets: np.ndarray,
    received_type: tff.Type,
    *,
    loss: tf.keras.losses.Loss,
    augment: Augment | None = None,
    dtype_policy: str | None = None,
    on_step: OnStep | None = None,
) -> tff.Computation:
    """Builds the computation.

    Args:
      model: Float Keras model; its weights have no effect.
      scheme: Scheme of the round.
      spec: Weights of the scheme's client model.
      client_data: Examples of the clients; elements are (x, y) pairs.
      budgets: Bits per weight of each client, float64[N].
      received_type: Type of the message that a client receives.
      loss: Loss of labels and logits.
      augment: Augmentation of every training batch.
      dtype_policy: Keras policy of the layers, such as "mixed_bfloat16".
      on_step: Function that is called, in the graph, after every local step.
    """
    budgets = budgets.astype(np.float32)

    @tff.tensorflow.computation(
        tff.TensorType(np.str_),
        tff.TensorType(np.int32, [1]),
        tff.SequenceType(received_type),
    )
    def client_work(client_id, keys, selected):
        key, received = keys[0], selected.get_single_element()
        examples = client_data.dataset_computation(client_id)
        images, labels = read_all_examples(examples)
        trainer = LocalTrainer(
            scheme.build_client_model(model, dtype_policy),
            scheme.training,
            loss,
            pruning=scheme.pruning,
            augment=augment,
            on_step=on_step,
        )

        # Without AutoGraph, whose conversion of every function delays the first round.
        @tf.function(autograph=False)
        def run():
            budget = tf.gather(budgets, key)
            weights = messages.unpack_model(received, spec)
            seeds = tf.random.split(received["seed"], 2)
            trained, sums, densities = trainer.train(
                weights, images, labels, seeds[0], received["training_rates"]
            )
            message = scheme.uplink.encode(trained, weights, budget, seeds[1])
            num_examples = tf.cast(tf.shape(images)[0], tf.float32)
            weight = scheme.aggregation_weight(budget, num_examples)
            return ClientResult(
                key,
                weight,
                message,
                trained.bit_widths,
                sums,
                densities,
                scheme.uplink.count_bits(message, headers=[weight]),
                messages.count_model_bits(
                    received, headers=[received["seed"], received["training_rates"]]
                ),
                scheme.uplink.symbols(message),
            )

        return run()

    return client_work


def read_all_examples(dataset: tf.data.Dataset) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns all examples of a dataset as two tensors.

    Args:
      dataset: Dataset of pairs (x, y), or of mappings with the keys "x" and "y".

    Returns:
      x, [n, ...], and class numbers y, [n]; n may be 0. Labels of shape [1], as in
      `tf.keras.datasets`, become scalars.

    Raises:
      ValueError: if elements have another structure, or a label is not one number.
    """
    spec = dataset.element_spec
    if isinstance(spec, Mapping) and set(spec) == {"x", "y"}:
        dataset = dataset.map(lambda element: (element["x"], element["y"]))
    elif not (isinstance(spec, tuple) and len(spec) == 2):
        raise ValueError(
            "Client data has to hold pairs (x, y), or mappings of 'x' and 'y'; found "
            f"elements {spec}. Bring them into that form with "
            "`client_data.preprocess(lambda dataset: dataset.map(...))`."
        )

    label_shape = dataset.element_spec[1].shape
    if label_shape.rank and label_shape.num_elements() == 1:
        dataset = dataset.map(lambda x, y: (x, tf.reshape(y, [])))
    elif label_shape.rank:
        raise ValueError(
            "Labels have to be class numbers; found labels of shape "
            f"{label_shape}. One-hot labels become class numbers by tf.argmax; batches "
            "become examples by `client_data.preprocess(lambda d: d.unbatch())`."
        )

    def nothing(element: tf.TensorSpec) -> tf.Tensor:
        return tf.zeros([0, *element.shape], element.dtype)

    # A dataset without elements has no batch either: then this one is the first.
    empty = tf.data.Dataset.from_tensors(
        tf.nest.map_structure(nothing, dataset.element_spec)
    )
    return dataset.batch(_ALL_EXAMPLES).concatenate(empty).take(1).get_single_element()
