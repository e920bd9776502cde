"""A client's part of a round, as a TFF computation.

    client_work: (<client_id=string, keys=int32[1], selected=MESSAGE*> -> ClientResult)

It reads the client's examples by its id, unpacks the received model, trains
(`local_training`), and encodes the result (`messages.Uplink`). Keys and messages are
lists of one, as `tff.federated_select` takes and gives lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tff_fedmpq._tff import tff
from tff_fedmpq.federated import acceptance, local_training, messages
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.keras.variables import ModelSpec

# More than any client holds: all of its examples form one batch.
_ALL_EXAMPLES = 2**31 - 1


class ClientResult(NamedTuple):
    """Result of one client in a round."""

    key: Any  # Row in tables, int32[].
    weight: Any  # In the average, float32[].
    message: messages.Message  # The trained model, by the scheme's uplink.
    bit_widths: Any  # Bits per weight of the trained kernels, int32[L].
    training: local_training.TrainingSums
    msb_densities: Any  # Of each layer before pruning, float32[L].
    uplink_bits: Any  # Size of what was sent, int64[4] by `messages.BIT_ITEMS`.
    downlink_bits: Any  # Size of what was received, int64[4].
    symbols: Any  # Of the message, to entropy-code, int16[streams, symbols].
    num_examples: Any  # Float32[].
    fault: Any  # `acceptance.Rejection` of its examples, or 0; int32[].
    checksum: Any  # Of all other fields (`acceptance.checksum`), int64[].


def build_client_work(
    model: tf.keras.Model,
    scheme: Scheme,
    spec: ModelSpec,
    client_data: tff.simulation.datasets.ClientData,
    budgets: np.ndarray,
    received_type: tff.Type,
    *,
    loss: tf.keras.losses.Loss,
    augment: local_training.Augment | None = None,
    dtype_policy: str | None = None,
    on_step: local_training.OnStep | None = None,
) -> tff.Computation:
    """Builds the computation; for the options see `process.build_process`.

    The weights of `model`, a float Keras model, have no effect; `spec` is that of the
    scheme's client model. `budgets` are bits per weight by clients' rows, float64[N].
    """
    budgets = budgets.astype(np.float32)
    selected_type = tff.SequenceType(received_type)

    @tff.tensorflow.computation(np.str_, tff.TensorType(np.int32, [1]), selected_type)
    def client_work(client_id, keys, selected):
        key, received = keys[0], selected.get_single_element()
        at_most = scheme.training.max_examples
        # Reading one more shows that there are more; a dataset may never end.
        dataset = client_data.dataset_computation(client_id).take(at_most + 1)
        images, labels = read_all_examples(dataset)
        client_model = scheme.build_client_model(model, dtype_policy)
        num_classes = client_model.output_shape[-1]
        trainer = local_training.LocalTrainer(
            client_model, scheme.training, loss, scheme.pruning, augment, on_step
        )

        # Without AutoGraph, whose conversion of every function delays the first round.
        @tf.function(autograph=False)
        def run():
            fault, usable = acceptance.usable_examples(
                images, labels, num_classes, at_most
            )
            budget = tf.gather(budgets, key)
            weights = messages.unpack_model(received, spec)
            seeds = tf.random.split(received["seed"], 2)
            rates = received["training_rates"]
            trained, sums, densities = trainer.train(
                weights, images[:usable], labels[:usable], seeds[0], rates
            )
            message = scheme.uplink.encode(trained, weights, budget, seeds[1])
            num_examples = tf.cast(usable, tf.float32)
            weight = scheme.aggregation_weight(budget, num_examples)
            result = ClientResult(
                key,
                weight,
                message,
                trained.bit_widths,
                sums,
                densities,
                scheme.uplink.count_bits(message, [weight]),
                messages.count_model_bits(received, [received["seed"], rates]),
                scheme.uplink.symbols(message),
                num_examples,
                fault,
                checksum=(),
            )
            checksum = acceptance.checksum(result, received["seed"])
            return result._replace(checksum=checksum)

        return run()

    return client_work


def read_all_examples(dataset: tf.data.Dataset) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns all examples of a dataset as two tensors, x [n, ...] and classes y [n].

    Elements are pairs (x, y) or mappings with the keys "x" and "y"; there may be none.
    Labels of shape [1], as in `tf.keras.datasets`, become scalars. ValueError for
    another structure, or for a label that is not one number.
    """
    spec = dataset.element_spec
    if isinstance(spec, Mapping) and set(spec) == {"x", "y"}:
        dataset = dataset.map(lambda element: (element["x"], element["y"]))
    elif not (isinstance(spec, tuple) and len(spec) == 2):
        raise ValueError(
            "Client data has to hold pairs (x, y), or mappings of 'x' and 'y'; found "
            f"{spec}. Mend it by `client_data.preprocess(lambda d: d.map(...))`."
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

    # A dataset without elements has no batch either: then this one is the first.
    nothing = tf.nest.map_structure(
        lambda element: tf.zeros([0, *element.shape], element.dtype),
        dataset.element_spec,
    )
    empty = tf.data.Dataset.from_tensors(nothing)
    return dataset.batch(_ALL_EXAMPLES).concatenate(empty).take(1).get_single_element()
