"""What it costs to check clients' contributions: a round with and without the checks.

    uv run python -m benchmarks.checks

Five clients train ResNet-20 on CIFAR-10 images for an epoch at batch 64, in float32.
The same process is built twice, as it is and without tickets, checksums, checks of
examples, of messages, of decoded values and of the next state (`without_checks`). After
a round both have the same state, bit for bit; then their rounds are timed in turn. In a
second row each client holds one batch: there the checks weigh most.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf

from benchmarks import measure
from benchmarks.round import BATCH_SIZE, BUDGETS, NUM_CLIENTS, split_equally
from tff_fedmpq.federated import acceptance, process, server
from tff_fedmpq.federated.fedmpq import FedMPQConfig
from tff_fedmpq.federated.runtime import local_runtime, threads_per_client
from tff_fedmpq.simulation import data as datasets
from tff_fedmpq.simulation.data.augmentation import random_crop_and_flip
from tff_fedmpq.simulation.data.client_data import build_client_data
from tff_fedmpq.simulation.models import build_model_fn

IDS = [str(client) for client in range(NUM_CLIENTS)]


class _UncheckedServer(server.Server):
    """A server that adds whatever it gets."""

    def accumulate(self, sums, result, ticket):
        decoded = self.scheme.uplink.decode(result.message, self.spec)
        added = self._add(sums, result, result.key, decoded)
        return added._replace(round=ticket.round)


@contextlib.contextmanager
def without_checks() -> Iterator[None]:
    """Builds processes without checks inside the block."""
    replaced = (
        (process, "Server", _UncheckedServer),
        (server, "only_of_round", lambda sums, _: sums),
        (acceptance, "fingerprint", lambda *_: tf.constant(0, tf.int64)),
        (acceptance, "first_fault", lambda _: tf.constant(0)),
        (acceptance, "all_finite", lambda _: tf.constant(True)),
    )
    with contextlib.ExitStack() as stack:
        for module, name, value in replaced:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


class Rounds:
    """A process that is built, its state, and what building it took."""

    def __init__(self, build: Any):
        started = time.perf_counter()
        self._process = build()
        self.state = self._process.initialize()
        self.run()
        self.first_seconds = time.perf_counter() - started

    def run(self) -> None:
        """Runs a round."""
        self.state = self._process.next(self.state, IDS).state


def time_rounds(data, model_fn, images: int, folder: str, repeats: int) -> dict:
    """Returns the row of a number of images per client."""
    client_data = build_client_data(folder, data, split_equally(data, images))

    def build() -> process.FederatedProcess:
        return process.build_process(
            model_fn,
            dict(zip(IDS, BUDGETS)),
            client_data,
            FedMPQConfig(epochs=1, batch_size=BATCH_SIZE),
            augment=random_crop_and_flip,
        )

    checked = Rounds(build)
    with without_checks():
        unchecked = Rounds(build)
    tf.nest.map_structure(np.testing.assert_array_equal, checked.state, unchecked.state)
    timings = measure.time_alternately(
        {"checked": checked.run, "unchecked": unchecked.run}, repeats=repeats, warmup=1
    )
    return {
        "images_per_client": images,
        "seconds": timings.median("checked"),
        "seconds_unchecked": timings.median("unchecked"),
        "ratio": timings.ratio("checked", "unchecked"),
        "ratio_quartiles": timings.spread("checked", "unchecked"),
        "first_seconds": checked.first_seconds,
        "first_seconds_unchecked": unchecked.first_seconds,
    }


def main() -> None:
    """Times rounds of both kinds."""
    parser = measure.argument_parser(__doc__)
    sizes = {"type": int, "nargs": "+", "default": [500, BATCH_SIZE]}
    parser.add_argument("--images", **sizes, help="per client, by row")
    parser.add_argument("--repeats", type=int, default=5, help="at least 5")
    options = parser.parse_args()
    before = measure.environment()
    data = datasets.load("cifar10")
    model_fn = build_model_fn("resnet20", data, seed=0)
    threads = threads_per_client(NUM_CLIENTS)
    with tempfile.TemporaryDirectory() as folder:
        with local_runtime(intra_op_threads=threads):
            rows = [
                time_rounds(data, model_fn, images, folder, options.repeats)
                for images in options.images
            ]
    name = "round of {images_per_client} images per client, checked / unchecked"
    bars = [
        measure.bar(name.format(**row), row["ratio"], at_most=1.02) for row in rows[:1]
    ]
    measure.save("checks", rows, bars, before, output=options.output)


if __name__ == "__main__":
    main()
