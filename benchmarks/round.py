"""A whole FedMPQ round in TFF against a bare loop over the same images.

    uv run python -m benchmarks.round

Five clients of 5,000 CIFAR-10 images train ResNet-20 for one epoch at batch 64, with
augmentation. Compared, by images per second of a round:

* bare: a `tf.function` loop of the plain Keras float32 step over each client's images,
  in this process; no federation, nothing sent;
* FedMPQ's process in float32 and in bfloat16: server, messages, packing, aggregation
  and the allocation of bits included;
* TFF's own `build_weighted_fed_avg` on in-memory `tf.data` datasets, as its tutorials
  have it;
* with `--peers`, the same work in other systems, each in an environment of its own that
  is made in the directory given: PyTorch clients of one thread each, under Flower's
  simulation engine as many at once as there are cores, under NVFlare's simulator all at
  once; and FedJAX, whose clients train one after the other on all cores.

Then what a FedMPQ round costs beside its steps: a round whose clients hold one image
each. What the server's parts of it cost is in the benchmark `server`.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile

import numpy as np
import tensorflow as tf

from benchmarks import measure, peers
from tff_fedmpq._tff import tff
from tff_fedmpq.federated.fedmpq import FedMPQConfig
from tff_fedmpq.federated.process import build_process
from tff_fedmpq.federated.runtime import local_runtime, threads_per_client
from tff_fedmpq.simulation import data as datasets
from tff_fedmpq.simulation.compute import DTYPE_POLICIES
from tff_fedmpq.simulation.data.augmentation import random_crop_and_flip
from tff_fedmpq.simulation.data.client_data import build_client_data
from tff_fedmpq.simulation.data.partitions import Partition
from tff_fedmpq.simulation.models import build_model_fn

NUM_CLIENTS = 5
BATCH_SIZE = 64
BUDGETS = (2, 4, 4, 6, 8)
TORCH = "torch==2.13.0"
FLOWER = ("flower_round.py", (TORCH, "flwr[simulation]==1.42.0"))
PEERS = {
    "Flower, PyTorch float32": FLOWER,
    "NVFlare, PyTorch float32": ("nvflare_round.py", (TORCH, "nvflare==2.9.0")),
    "FedJAX, JAX float32": ("fedjax_round.py", ("fedjax==0.0.17", "jax==0.10.2")),
}


def split_equally(data: datasets.ImageDataset, per_client: int) -> Partition:
    """Returns a partition that gives each client the same number of random images."""
    order = np.random.default_rng(0).permutation(len(data.train_labels))
    indices = [order[i * per_client : (i + 1) * per_client] for i in range(NUM_CLIENTS)]
    return Partition(tuple(indices), dataset=data.name, method="equal shares")


def bare_round(data: datasets.ImageDataset, partition: Partition, model_fn):
    """Returns a function that trains the plain network on all clients' images."""
    model = model_fn()
    optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=5e-4)
    optimizer.build(model.trainable_variables)
    loss_fn = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def epoch(images, labels):
        order = tf.random.shuffle(tf.range(tf.shape(images)[0]))
        loss = 0.0
        for begin in tf.range(0, tf.shape(images)[0], BATCH_SIZE):
            chosen = order[begin : begin + BATCH_SIZE]
            batch = random_crop_and_flip(tf.gather(images, chosen), [0, begin])
            with tf.GradientTape() as tape:
                logits = model(batch, training=True)
                loss = loss_fn(tf.gather(labels, chosen), logits)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    # Traced now: Keras refuses models of before TFF's first computation afterwards.
    epoch = tf.function(epoch).get_concrete_function(
        tf.TensorSpec([None, *data.image_shape], tf.uint8),
        tf.TensorSpec([None], data.train_labels.dtype),
    )
    tensors = [
        (tf.constant(data.train_images[i]), tf.constant(data.train_labels[i]))
        for i in partition.client_indices
    ]

    def run():
        for images, labels in tensors:
            epoch(images, labels).numpy()

    return run


def fedmpq_round(data, partition: Partition, model_fn, compute: str, directory):
    """Returns a function that runs a round of FedMPQ's process."""
    ids = [str(client) for client in range(NUM_CLIENTS)]
    process = build_process(
        model_fn,
        dict(zip(ids, BUDGETS)),
        build_client_data(directory, data, partition),
        FedMPQConfig(epochs=1, batch_size=BATCH_SIZE),
        augment=random_crop_and_flip,
        dtype_policy=DTYPE_POLICIES[compute],
    )
    state = process.initialize()

    def run():
        nonlocal state
        state = process.next(state, ids).state

    return run


def build_tff_fed_avg(model_fn, batch_spec) -> tff.learning.templates.LearningProcess:
    """Returns TFF's own federated averaging of a Keras model, by SGD with momentum."""

    def tff_model_fn():
        return tff.learning.models.from_keras_model(
            model_fn(),
            input_spec=batch_spec,
            loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )

    return tff.learning.algorithms.build_weighted_fed_avg(
        tff_model_fn,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.1, momentum=0.9),
    )


def fed_avg_round(data: datasets.ImageDataset, partition: Partition, model_fn):
    """Returns a function that runs a round of TFF's own federated averaging."""

    def augment(images, labels):
        return random_crop_and_flip(images, [0, 0]), labels

    def client_dataset(indices):
        pair = (data.train_images[indices], data.train_labels[indices])
        dataset = tf.data.Dataset.from_tensor_slices(pair).shuffle(len(indices))
        return dataset.batch(BATCH_SIZE).map(augment).prefetch(1)

    clients = [client_dataset(i) for i in partition.client_indices]
    process = build_tff_fed_avg(model_fn, clients[0].element_spec)
    state = process.initialize()

    def run():
        nonlocal state
        state = process.next(state, clients).state

    return run


def main() -> None:
    """Times the rounds side by side."""
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="at least 5")
    parser.add_argument("--images", type=int, default=5_000, help="per client")
    parser.add_argument("--peers", type=pathlib.Path, help="environments of peers")
    options = parser.parse_args()
    before = measure.environment()
    data = datasets.load("cifar10")
    model_fn = build_model_fn("resnet20", data, seed=0)
    partition, single = split_equally(data, options.images), split_equally(data, 1)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        log_path = pathlib.Path(folder) / "worker.log"
        threads = threads_per_client(NUM_CLIENTS)
        with local_runtime(log_path=log_path, intra_op_threads=threads):
            rounds = {"bare float32 loop": bare_round(data, partition, model_fn)}
            for compute in DTYPE_POLICIES:
                name = f"FedMPQ {compute}"
                rounds[name] = fedmpq_round(data, partition, model_fn, compute, folder)
            rounds["TFF FedAvg float32"] = fed_avg_round(data, partition, model_fn)
            if options.peers:
                examples = pathlib.Path(folder, "clients.npz")
                arrays = data.train_images, data.train_labels
                peers.save_clients(examples, *arrays, partition.client_indices)
                arguments = options.peers, examples, BATCH_SIZE
                for name, (program, packages) in PEERS.items():
                    peer = peers.Peer(program, packages, *arguments)
                    rounds[name] = stack.enter_context(peer).run
            timings = measure.time_alternately(
                rounds, repeats=options.repeats, warmup=1
            )
            fixed = fedmpq_round(data, single, model_fn, "float32", folder)
            fixed_seconds = measure.time_alternately({"fixed": fixed}).median("fixed")
    rows = round_rows(timings, NUM_CLIENTS * options.images)
    bars = [
        measure.bar(
            f"FedMPQ {compute} / bare float32, images per second",
            1 / timings.ratio(f"FedMPQ {compute}", "bare float32 loop"),
            at_least=limit,
        )
        for compute, limit in (("float32", 1.0), ("bfloat16", 1.2))
    ]
    for name in PEERS if options.peers else ():
        advantage = 1 / timings.ratio("FedMPQ float32", name)
        what = f"FedMPQ float32 / {name}, images per second"
        bars.append(measure.bar(what, advantage, at_least=1.5))
    measure.save(
        "round",
        rows,
        bars,
        before,
        output=options.output,
        worker_intra_op_threads=threads,
        fixed_seconds_of_a_round=fixed_seconds,
    )
    print(f"  a FedMPQ round of five one-image clients: {fixed_seconds:.2f} s")


def round_rows(timings: measure.Timings, num_images: int) -> list[dict[str, object]]:
    """Returns a row per kind of round; a worker's processor time is not in `cpu`."""
    return [
        {
            "round": name,
            "seconds": timings.median(name),
            "images_per_second": num_images / timings.median(name),
            "speed_ratio": 1 / timings.ratio(name, "bare float32 loop"),
            "time_ratio_quartiles": timings.spread(name, "bare float32 loop"),
        }
        for name in timings.seconds
    ]


if __name__ == "__main__":
    main()
