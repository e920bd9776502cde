"""Client data of arrays beside the examples' own, to the end of the first round.

CIFAR-10 over 10 clients: seconds from the loaded images to the end of round 1, and peak
memory, by `client_data_from_arrays` and by the path of the examples
(`build_client_data`). Each is run in processes of its own, in turn, with a new
directory; compared are medians. The model is tiny: with a larger one, both would wait
for the same training. Memory is as in the benchmark `scale`.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import measure, scale
from tff_fedmpq import client_data_from_arrays
from tff_fedmpq.federated.fedmpq import FedMPQConfig, build_fedmpq
from tff_fedmpq.federated.runtime import local_runtime
from tff_fedmpq.simulation import data as datasets
from tff_fedmpq.simulation.data.client_data import build_client_data
from tff_fedmpq.simulation.data.partitions import iid_partition
from tff_fedmpq.simulation.populations import tiered_budgets

_CLIENTS = 10
_PATHS = ("examples", "arrays")


def run_first_round(path: str) -> dict[str, float]:
    """Returns seconds and MB of a first round, in this process."""
    dataset = datasets.load("cifar10")
    count = len(dataset.train_labels)
    partition = iid_partition(count, _CLIENTS, 0, dataset.name)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM is VmRSS again.
    with local_runtime(), tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        if path == "arrays":
            labels = dataset.train_labels.astype(np.int32)
            arrays = partition.split(dataset.train_images, labels)
            client_data = client_data_from_arrays(arrays, directory)
            del arrays
        else:
            client_data = build_client_data(directory, dataset, partition)
        prepared = time.perf_counter() - started
        budgets = dict(zip(client_data.client_ids, tiered_budgets(_CLIENTS)))
        config = FedMPQConfig(epochs=1, batch_size=500)
        process = build_fedmpq(scale.tiny_model, budgets, client_data, config)
        process.next(process.initialize(), list(budgets))
        seconds = time.perf_counter() - started
        peaks = {n: scale._memory(i, "VmHWM") for n, i in scale._process_ids().items()}
    return {
        "data_s": prepared,
        "first_round_s": seconds,
        "peak_mb_python": peaks["python"],
        "peak_mb_worker": peaks["worker"],
        "peak_mb": sum(peaks.values()),
    }


def _run_in_child(path: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        result = pathlib.Path(directory) / "result.json"
        command = [sys.executable, "-m", "benchmarks.client_data", f"--path={path}"]
        subprocess.run([*command, f"--output={result}"], check=True, cwd=scale._ROOT)
        return json.loads(result.read_text())


def main() -> None:
    """Runs the benchmark, or one path of it in this process."""
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--path", choices=_PATHS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.path:
        result = run_first_round(args.path)
        pathlib.Path(args.output).write_text(json.dumps(result))
        return
    before = measure.environment()
    runs: dict[str, list[dict[str, float]]] = {path: [] for path in _PATHS}
    for repeat in range(args.repeats):
        for path in _PATHS if repeat % 2 == 0 else _PATHS[::-1]:
            runs[path].append(_run_in_child(path))
    rows = [
        {"path": path, **{k: float(np.median([r[k] for r in of])) for k in of[0]}}
        for path, of in runs.items()
    ]
    bars = [
        measure.bar(f"arrays / examples, {k}", rows[1][k] / rows[0][k], at_most=1.1)
        for k in ("first_round_s", "peak_mb")
    ]
    measure.save("client_data", rows, bars, before, output=args.output, runs=runs)


if __name__ == "__main__":
    main()
