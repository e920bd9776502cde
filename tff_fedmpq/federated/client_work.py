"""A client's part of a round, as a TFF computation.

    client_work: (<client_id=string, keys=int32[1], selected=MESSAGE*> -> ClientResult)

It reads the client's examples by its id, unpacks the received model, trains
(`local_training`), and encodes the result (`messages.Uplink`). Keys and messages are
lists of one, as `tff.federated_select` takes and gives lists.
"""

from __future__ import annotations

import numbers
from typing import Any, Callable, NamedTuple

import numpy as np
import tensorflow as tf

from tff_fedmpq._tff import tff
from tff_fedmpq.federated import acceptance, local_training, messages
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.federated.tasks import Task, split_example
from tff_fedmpq.keras.variables import ModelSpec
from tff_fedmpq.quantization.tracing import forgotten_gradients

# More than any client holds: all of its examples form one batch.
_ALL_EXAMPLES = 2**31 - 1
_DROPOUT = 1  # Tells the seed of dropouts from those of other uses.


class ClientResult(NamedTuple):
    """Result of one client in a round."""

    key: Any  # Row in tables, int32[].
    weight: Any  # In the average, float32[].
    message: messages.Message  # The trained model, by the scheme's uplink.
    bit_widths: Any  # Bits per weight of the trained kernels, int32[L].
    training: local_training.TrainingSums
    msb_densities: Any  # Of each layer before pruning, float32[L].
    num_examples: Any  # Float32[].
    fault: Any  # `acceptance.Rejection` of its examples, or 0; int32[].
    checksum: Any  # Of all other fields (`acceptance.checksum`), int64[].


@forgotten_gradients()
def build_client_work(
    model: tf.keras.Model,
    scheme: Scheme,
    spec: ModelSpec,
    client_data: tff.simulation.datasets.ClientData,
    budgets: np.ndarray,
    received_type: tff.Type,
    *,
    task: Task,
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
    read = dataset_reader(client_data)
    limit, dropout_rate = (
        scheme.training.client_timeout_seconds,
        scheme.training.dropout_rate,
    )

    @tff.tensorflow.computation(np.str_, tff.TensorType(np.int32, [1]), selected_type)
    def client_work(client_id, keys, selected):
        key, received = keys[0], selected.get_single_element()
        at_most = scheme.training.max_examples
        deadline = None if limit is None else tf.timestamp() + limit
        examples = read_all_examples(read(client_id), at_most, deadline)
        features, labels, sample_weight = examples
        trainer = local_training.LocalTrainer(
            scheme.build_client_model(model, dtype_policy),
            scheme.training,
            task.loss,
            scheme.pruning,
            augment,
            on_step,
            task.build_metrics(),
        )

        # Without AutoGraph, whose conversion of every function delays the first round.
        @tf.function(autograph=False)
        def run():
            earlier: list[acceptance.Check] = []
            if dropout_rate:
                own = tf.random.fold_in(received["seed"], _DROPOUT)
                stays = tf.random.stateless_uniform([], own) >= dropout_rate
                earlier += [(lambda: stays, acceptance.Rejection.DROPOUT)]
            if deadline is not None:
                in_time = is_before(deadline, features)
                earlier += [(lambda: in_time, acceptance.Rejection.TIME)]
            fault, usable = acceptance.usable_examples(
                features, labels, task.num_classes, at_most, earlier
            )
            budget = tf.gather(budgets, key)
            weights = messages.unpack_model(received, spec)
            seeds = tf.random.split(received["seed"], 2)
            rates = received["training_rates"]
            kept = tf.nest.map_structure(
                lambda t: None if t is None else t[:usable],
                (features, labels, sample_weight),
            )
            trained, sums, densities = trainer.train(
                weights,
                *kept[:2],
                seeds[0],
                rates,
                kept[2],
                deadline,
                received["ticket"].round if scheme.needs_round else 0,
            )
            if deadline is not None:
                is_late = tf.equal(fault, 0) & ~is_before(deadline, trained)
                fault = tf.where(is_late, int(acceptance.Rejection.TIME), fault)
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
                num_examples,
                fault,
                checksum=(),
            )
            checksum = acceptance.checksum(result, received["seed"])
            return result._replace(checksum=checksum)

        return run()

    return client_work


def is_before(deadline: tf.Tensor, values: Any) -> tf.Tensor:
    """Returns whether some values, once they are there, are in time; bool[]."""
    with tf.control_dependencies(tf.nest.flatten(values)):
        return tf.timestamp() < deadline


def read_all_examples(
    dataset: tf.data.Dataset,
    at_most: int = _ALL_EXAMPLES - 1,
    deadline: tf.Tensor | None = None,
) -> tuple[Any, Any, Any]:
    """Returns the features, labels and sample weights of n examples, of any n.

    They are structures of tensors [n, ...] as `tasks.split_example` finds them, the
    weights None where there are none. ValueError for another structure. These are all
    examples, or one more than `at_most`, which shows that there are more: a dataset may
    never end. After `deadline`, a `tf.timestamp`, no further one is read.
    """
    split_example(dataset.element_spec)
    dataset = dataset.take(at_most + 1)
    if deadline is not None:
        dataset = dataset.take_while(lambda *_: tf.timestamp() < deadline)
    # A dataset without elements has no batch either: then this one is the first.
    nothing = tf.nest.map_structure(
        lambda spec: tf.zeros([0, *(n or 0 for n in spec.shape)], spec.dtype),
        dataset.element_spec,
    )
    empty = tf.data.Dataset.from_tensors(nothing)
    batch = dataset.batch(_ALL_EXAMPLES).concatenate(empty).take(1)
    return split_example(batch.get_single_element())


def dataset_reader(
    client_data: tff.simulation.datasets.ClientData,
) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """Returns the function (client id string[] -> dataset) of a `ClientData`.

    Its own client ids may be integers, which a round has as strings.
    """
    if not isinstance(client_data.client_ids[0], numbers.Integral):
        return client_data.dataset_computation
    read = client_data.serializable_dataset_fn
    return lambda client_id: read(tf.strings.to_number(client_id, tf.int32))
