"""What it costs to check clients' contributions: a round with and without the checks.

    uv run python -m benchmarks.checks

Five clients train for an epoch at batch 64, in float32: ResNet-8 on 280 digits each,
whose rounds are among the shortest, and ResNet-20 on 500 images of CIFAR-10 each. The
same process is built as it is and without tickets, checksums, checks of examples, of
messages, of decoded values and of the next state (`without_checks`): each of them four
times, in turn, as two builds of the same process may differ in speed by more than what
is asked for. After a round all have the same state, bit for bit; then their rounds are
timed in turn, as many as take some seconds.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Callable
from unittest import mock

import numpy as np
import tensorflow as tf

from benchmarks import measure
from benchmarks.round import BATCH_SIZE, BUDGETS, NUM_CLIENTS, split_equally
from tff_fedmpq.federated import acceptance, process, round_sums, server
from tff_fedmpq.federated.fedmpq import FedMPQConfig
from tff_fedmpq.federated.round_sums import Contribution
from tff_fedmpq.federated.runtime import local_runtime, threads_per_client
from tff_fedmpq.simulation import data as datasets
from tff_fedmpq.simulation.data.client_data import build_client_data
from tff_fedmpq.simulation.models import build_model_fn

IDS = [str(client) for client in range(NUM_CLIENTS)]
_BUILDS = 4
_TURN_SECONDS = 4.0  # At least.
CASES = "resnet8:digits:280", "resnet20:cifar10:500"


class _UncheckedServer(server.Server):
    """A server that adds whatever it gets."""

    def accumulate(self, sums, result, ticket):
        row = result.key, self._level_of(result.key), ticket.downlink_bits
        found = Contribution.of(result, self.scheme.uplink, self.spec)
        added = sums.add(found, *row, tf.constant(True))
        return added._replace(round=ticket.round)


@contextlib.contextmanager
def without_checks() -> Iterator[None]:
    """Builds processes without checks inside the block."""
    replaced = (
        (process, "Server", _UncheckedServer),
        (round_sums, "only_of_round", lambda sums, _: sums),
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
    """A process that is built, its state, and what two rounds took."""

    def __init__(self, build: Any):
        started = time.perf_counter()
        self._process = build()
        self.state = self._process.initialize()
        self.run()
        self.first_seconds = time.perf_counter() - started
        self.run()
        self.seconds = time.perf_counter() - started - self.first_seconds

    def run(self) -> None:
        """Runs a round."""
        self.state = self._process.next(self.state, IDS).state


def time_rounds(case: str, folder: str, repeats: int) -> dict[str, Any]:
    """Returns the row of a case: network, data set and images per client."""
    model, dataset, images = case.split(":")
    data = datasets.load(dataset)
    partition = split_equally(data, int(images))
    client_data = build_client_data(folder, data, partition)

    def build() -> process.FederatedProcess:
        return process.build_process(
            build_model_fn(model, data, seed=0),
            dict(zip(IDS, BUDGETS)),
            client_data,
            FedMPQConfig(epochs=1, batch_size=BATCH_SIZE),
            augment=data.augment,
        )

    checked, unchecked = [], []
    for number in range(_BUILDS):
        # Neither is always the first.
        for is_checked in (number % 2 == 0, number % 2 == 1):
            with contextlib.nullcontext() if is_checked else without_checks():
                (checked if is_checked else unchecked).append(Rounds(build))
    for rounds in (*checked, *unchecked):
        tf.nest.map_structure(
            np.testing.assert_array_equal, rounds.state, checked[0].state
        )

    def run_all(kind: list[Rounds]) -> Callable[[], None]:
        def run() -> None:
            for rounds in kind:
                rounds.run()

        return run

    timings = measure.time_alternately(
        {"checked": run_all(checked), "unchecked": run_all(unchecked)},
        repeats=repeats,
        calls=max(1, int(_TURN_SECONDS / checked[-1].seconds / _BUILDS)),
        warmup=1,
    )
    return {
        "case": case,
        "seconds": timings.median("checked") / _BUILDS,
        "seconds_unchecked": timings.median("unchecked") / _BUILDS,
        "ratio": timings.ratio("checked", "unchecked"),
        "ratio_quartiles": timings.spread("checked", "unchecked"),
        "first_seconds": np.median([r.first_seconds for r in checked]),
        "first_seconds_unchecked": np.median([r.first_seconds for r in unchecked]),
    }


def main() -> None:
    """Times rounds of both kinds."""
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--cases", nargs="+", default=CASES, help="rows to measure")
    parser.add_argument("--repeats", type=int, default=9, help="at least 5")
    options = parser.parse_args()
    before = measure.environment()
    with tempfile.TemporaryDirectory() as folder:
        with local_runtime(intra_op_threads=threads_per_client(NUM_CLIENTS)):
            rows = [time_rounds(c, folder, options.repeats) for c in options.cases]
    bars = [
        measure.bar(f"{row['case']}, checked / unchecked", row["ratio"], at_most=1.02)
        for row in rows
    ]
    measure.save("checks", rows, bars, before, output=options.output)


if __name__ == "__main__":
    main()
