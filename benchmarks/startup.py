"""How long a user waits: to the first training step, and to the end of round 1.

    uv run python -m benchmarks.startup

`examples/cifar10_fedmpq.py` is started in a fresh process and an empty directory, and
watched from outside by the files that it writes: config.json (imports done, data set
loaded), the first line of progress.log (a client's first step), rounds/00001.json
(round 1 aggregated, evaluated and saved). Clients have few images, so that round 1 is
start-up.

Then the build of the process (`build_process` and `initialize`) in fresh processes, for
ResNet-20 and ResNet-44: at most 8 s and 14 s. Beside it, as a floor, what TFF itself
needs to build and initialize `build_weighted_fed_avg` of the same network.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import measure

_POLL_SECONDS = 0.01
_DEADLINE_SECONDS = 900.0
_BUILD_BARS = {"resnet20": 8.0, "resnet44": 14.0}
_FIRST_STEP_BAR = 20.0
_EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "cifar10_fedmpq.py"


def time_example(directory: pathlib.Path) -> dict[str, float]:
    """Runs the example for a round; returns seconds from its start to each event."""
    flags = ["--dataset=cifar10", "--rounds=1", "--epochs=1"]
    flags += ["--train_examples=640", f"--output_dir={directory / 'run'}"]
    command = [sys.executable, _EXAMPLE, *flags]
    return watch(command, directory / "run", directory / "log")


def watch(
    command: Sequence[str | pathlib.Path],
    run: pathlib.Path,
    log_path: pathlib.Path,
    **options: Any,
) -> dict[str, float]:
    """Runs a program; returns seconds from its start to what it leaves in `run`.

    `options` are those of `subprocess.Popen`.
    """
    events = {
        "settings and data": run / "config.json",
        "first training step": run / "progress.log",
        "end of round 1": run / "rounds" / "00001.json",
    }
    seen: dict[str, float] = {}
    started = time.perf_counter()
    with log_path.open("w") as log:
        program = subprocess.Popen(command, stdout=log, stderr=log, **options)
        while program.poll() is None:
            elapsed = time.perf_counter() - started
            for event, path in events.items():
                if event not in seen and path.exists() and path.stat().st_size:
                    seen[event] = elapsed
            if elapsed > _DEADLINE_SECONDS:
                program.terminate()
            time.sleep(_POLL_SECONDS)
    if program.returncode or len(seen) < len(events):
        raise RuntimeError(f"{command} failed:\n{log_path.read_text()}")
    return {**seen, "end of the program": time.perf_counter() - started}


def build_fedmpq(model: str) -> float:
    """Builds FedMPQ's process once; returns the seconds that it took."""
    from tff_fedmpq.federated.fedmpq import FedMPQConfig
    from tff_fedmpq.federated.process import build_process
    from tff_fedmpq.federated.runtime import local_runtime
    from tff_fedmpq.simulation import data as datasets
    from tff_fedmpq.simulation.data.client_data import build_client_data
    from tff_fedmpq.simulation.data.partitions import dirichlet_partition
    from tff_fedmpq.simulation.models import build_model_fn

    data = datasets.load("digits")
    partition = dirichlet_partition(data.train_labels, 10, 0.5, 0, data.name)
    with tempfile.TemporaryDirectory() as folder:
        with local_runtime(log_path=pathlib.Path(folder) / "worker.log"):
            client_data = build_client_data(folder, data, partition)
            started = time.perf_counter()
            budgets = {client: 4.0 for client in client_data.client_ids}
            model_fn = build_model_fn(model, data, seed=0)
            process = build_process(model_fn, budgets, client_data, FedMPQConfig())
            process.initialize()
            return time.perf_counter() - started


def build_fed_avg(model: str) -> float:
    """Builds TFF's own FedAvg of the same network once; returns the seconds."""
    import tensorflow as tf

    from benchmarks.round import build_tff_fed_avg
    from tff_fedmpq.federated.runtime import local_runtime
    from tff_fedmpq.simulation import data as datasets
    from tff_fedmpq.simulation.models import build_model_fn

    data = datasets.load("digits")
    batch = (
        tf.TensorSpec([None, *data.image_shape], tf.float32),
        tf.TensorSpec([None], tf.int32),
    )
    model_fn = build_model_fn(model, data, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        with local_runtime(log_path=pathlib.Path(folder) / "worker.log"):
            started = time.perf_counter()
            build_tff_fed_avg(model_fn, batch).initialize()
            return time.perf_counter() - started


_BUILDERS = {"FedMPQ": build_fedmpq, "TFF FedAvg": build_fed_avg}


def time_build(builder: str, model: str) -> float:
    """Returns the seconds of a build in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.startup"]
    command += [f"--build={builder}", f"--model={model}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def summarise(what: str, seconds: list[float]) -> dict[str, object]:
    """Returns a row of the table."""
    quartiles = [float(q) for q in np.quantile(seconds, [0.25, 0.75])]
    return {"what": what, "seconds": float(np.median(seconds)), "quartiles": quartiles}


def main() -> None:
    """Starts fresh processes, one after the other."""
    parser = measure.argument_parser(__doc__)
    parser.add_argument(
        "--repeats", type=int, default=5, help="fresh processes of each"
    )
    parser.add_argument("--build", choices=list(_BUILDERS), help="only this, as JSON")
    parser.add_argument("--model", choices=list(_BUILD_BARS), default="resnet20")
    options = parser.parse_args()
    if options.build:
        print(json.dumps(_BUILDERS[options.build](options.model)))
        return
    before = measure.environment()
    runs: list[dict[str, float]] = []
    builds: dict[tuple[str, str], list[float]] = {
        pair: [] for pair in itertools.product(_BUILDERS, _BUILD_BARS)
    }
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(time_example(pathlib.Path(folder)))
        for (builder, model), seconds in builds.items():
            seconds.append(time_build(builder, model))
    rows = [summarise(event, [run[event] for run in runs]) for event in runs[0]]
    rows += [
        summarise(f"build of {builder}, {model}", seconds)
        for (builder, model), seconds in builds.items()
    ]
    bars = [
        measure.bar(
            f"build of the process, {model}, s",
            float(np.median(builds["FedMPQ", model])),
            at_most=limit,
        )
        for model, limit in _BUILD_BARS.items()
    ]
    first_step = [run["first training step"] for run in runs]
    what = "first training step, s"
    bars.append(
        measure.bar(what, float(np.median(first_step)), at_most=_FIRST_STEP_BAR)
    )
    measure.save("startup", rows, bars, before, output=options.output)


if __name__ == "__main__":
    main()
