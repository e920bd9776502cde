"""A round's time and memory as clients grow in number, and memory as rounds go by.

(a) 10, 40, 100 and 400 clients share the same images equally, all take part in every
round, and a local step has as many images as the smallest share: each round makes the
same steps, however they are divided. So what a round takes more with more clients is
the cost of a client itself: selection, transport, set-up of its computation,
aggregation. Its slope over clients is fitted by least squares. Each number of clients
is run in a process of its own, for a peak of memory is kept until a process ends.

(b) Resident memory after each of 200 rounds of a tiny model. A leak would show as
growth from round 20, by which everything has been built, to the last; compared are
medians of the ten rounds that end there.

Both run the real process (`build_process`) on the real runtime (`local_runtime`).
Memory is what Linux counts for this process (Python, TFF's client side) and for TFF's
`worker_binary`, which does the computing: VmHWM for peaks, VmRSS else. Pages that both
share, such as code, count twice in their sum.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import measure
from tff_fedmpq.federated.fedmpq import FedMPQConfig, build_fedmpq
from tff_fedmpq.federated.runtime import local_runtime
from tff_fedmpq.simulation import data as datasets
from tff_fedmpq.simulation.data.client_data import build_client_data
from tff_fedmpq.simulation.data.partitions import Partition
from tff_fedmpq.simulation.models import MODEL_DEPTHS, build_model_fn
from tff_fedmpq.simulation.populations import tiered_budgets

_ROOT = pathlib.Path(__file__).parent.parent
_SETTLED = 20  # Round from which memory is not to grow.
_WINDOW = 10
_TINY_IMAGES = 64
_TINY_CLIENTS = 4


def tiny_model() -> tf.keras.Model:
    """Returns a model of 1,700 weights."""
    return tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(8, 3, strides=4, input_shape=(32, 32, 3)),
            tf.keras.layers.ReLU(),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(10),
        ]
    )


def run_clients(args: argparse.Namespace) -> dict[str, Any]:
    """Runs rounds of one number of clients, in this process; a row of part (a)."""
    num_clients = args.clients[0]
    dataset = _first_images(args.images)
    model_fn = build_model_fn(args.model, dataset, seed=0)
    seconds: list[float] = []
    with local_runtime(), tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        process, client_ids = _build(
            model_fn, dataset, num_clients, args.batch_size, directory
        )
        state = process.initialize()
        build_seconds = time.perf_counter() - started
        for _ in range(args.rounds + 1):
            started = time.perf_counter()
            state = process.next(state, client_ids).state
            seconds.append(time.perf_counter() - started)
        peaks = {n: _memory(pid, "VmHWM") for n, pid in _process_ids().items()}
    return {
        "clients": num_clients,
        "images_per_client": args.images // num_clients,
        "build_s": build_seconds,
        "first_round_s": seconds[0],
        "round_s": float(np.median(seconds[1:])),
        "round_s_quartiles": np.quantile(seconds[1:], [0.25, 0.75]).tolist(),
        "peak_mb_python": peaks["python"],
        "peak_mb_worker": peaks["worker"],
        "peak_mb": sum(peaks.values()),
    }


def run_memory(args: argparse.Namespace) -> dict[str, list[float]]:
    """Runs many rounds of a tiny model; returns MB per round of each process."""
    dataset = _first_images(_TINY_IMAGES)
    used: dict[str, list[float]] = {"python": [], "worker": []}
    with local_runtime(), tempfile.TemporaryDirectory() as directory:
        process, client_ids = _build(tiny_model, dataset, _TINY_CLIENTS, 16, directory)
        state = process.initialize()
        ids = _process_ids()
        for _ in range(args.memory_rounds):
            state = process.next(state, client_ids).state
            for name, pid in ids.items():
                used[name].append(_memory(pid, "VmRSS"))
    return used


PARTS = {"clients": run_clients, "memory": run_memory}


def run_in_child(part: str, args: argparse.Namespace, num_clients: int) -> Any:
    """Runs a part in a fresh process and returns its result."""
    command = [sys.executable, "-m", "benchmarks.scale", f"--part={part}"]
    options = {**vars(args), "clients": num_clients}
    for name in ("model", "images", "batch_size", "rounds", "memory_rounds", "clients"):
        command.append(f"--{name.replace('_', '-')}={options[name]}")
    with tempfile.TemporaryDirectory() as directory:
        result = pathlib.Path(directory) / "result.json"
        subprocess.run([*command, f"--output={result}"], check=True, cwd=_ROOT)
        return json.loads(result.read_text())


def growth(used: Sequence[float]) -> float:
    """Returns last / settled - 1 of a series over rounds."""
    settled = np.median(used[:_SETTLED][-_WINDOW:])
    return float(np.median(used[-_WINDOW:]) / settled - 1)


def _first_images(count: int) -> datasets.ImageDataset:
    """Returns CIFAR-10's first images, and forgets what it took to load them all."""
    dataset = datasets.load("cifar10", None)
    dataset = dataclasses.replace(
        dataset,
        train_images=dataset.train_images[:count].copy(),
        train_labels=dataset.train_labels[:count].copy(),
        test_images=dataset.test_images[:1].copy(),
        test_labels=dataset.test_labels[:1].copy(),
    )
    # Sets VmHWM back to VmRSS: see "clear_refs" in proc(5).
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return dataset


def _build(
    model_fn: Any,
    dataset: datasets.ImageDataset,
    num_clients: int,
    batch_size: int,
    directory: str,
) -> tuple[Any, list[str]]:
    """Returns FedMPQ's process over equal shares of the images, and the clients."""
    shares = np.array_split(np.arange(len(dataset.train_labels)), num_clients)
    partition = Partition(tuple(shares), dataset=dataset.name, method="equal shares")
    client_data = build_client_data(directory, dataset, partition)
    budgets = dict(zip(client_data.client_ids, tiered_budgets(num_clients)))
    config = FedMPQConfig(epochs=1, batch_size=batch_size)
    process = build_fedmpq(model_fn, budgets, client_data, config)
    return process, list(budgets)


def _process_ids() -> Mapping[str, int]:
    """Returns the ids of this process and of its one TFF worker."""
    parents, workers = {}, []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            stat, command = (path / "stat").read_text(), (path / "cmdline").read_bytes()
        except OSError:
            continue  # It has ended.
        # The name, in parentheses, may hold spaces; the parent is second after it.
        parents[int(path.name)] = int(stat.rpartition(")")[2].split()[1])
        if command.split(b"\0")[0].endswith(b"/worker_binary"):
            workers.append(int(path.name))
    # The worker's parent is the runtime's wrapper, whose parent is this process.
    own = [pid for pid in workers if parents.get(parents[pid]) == os.getpid()]
    if len(own) != 1:
        raise RuntimeError(f"Expected one worker of this process, found {own}.")
    return {"python": os.getpid(), "worker": own[0]}


def _memory(pid: int, field: str) -> float:
    """Returns a process's VmHWM or VmRSS, in MB."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(field))
    return int(kilobytes) * 1024 / 1e6


def _parse_args() -> argparse.Namespace:
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--model", default="resnet8", choices=list(MODEL_DEPTHS))
    parser.add_argument(
        "--images", type=int, default=6400, help="of all clients together"
    )
    parser.add_argument("--clients", nargs="+", type=int, default=[10, 40, 100, 400])
    parser.add_argument(
        "--rounds", type=int, default=5, help="that are timed, after a first one"
    )
    parser.add_argument("--memory-rounds", type=int, default=200)
    parser.add_argument(
        "--batch-size", type=int, help="default: the share of a client of the most"
    )
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.batch_size = args.batch_size or args.images // max(args.clients)
    return args


def main() -> None:
    """Runs the benchmark, or one part of it in this process."""
    args = _parse_args()
    if args.part:
        result = PARTS[args.part](args)
        pathlib.Path(args.output).write_text(json.dumps(result))
        return
    before = measure.environment()
    rows = [run_in_child("clients", args, count) for count in args.clients]
    used = run_in_child("memory", args, _TINY_CLIENTS)
    slope = None
    if len(rows) > 1:
        times = [row["round_s"] for row in rows]
        slope = 1e3 * float(np.polyfit(args.clients, times, 1)[0])
        print(f"  overhead per further client: {slope:.3g} ms")
    bars = [
        measure.bar(
            f"growth of {name}'s memory, round {_SETTLED} to {len(series)}",
            growth(series),
            at_most=0.05,
        )
        for name, series in used.items()
    ]
    measure.save(
        "scale",
        rows,
        bars,
        before,
        output=args.output,
        settings={**vars(args)},
        overhead_ms_per_client=slope,
        memory_mb_by_round=used,
    )


if __name__ == "__main__":
    main()
