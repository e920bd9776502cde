"""Measures rounds on workers: seconds, bytes, processor time on both sides.

    sudo python .ci/worker_scale.py scale.json cores
    sudo python .ci/worker_scale.py scale.json links CLIENTS REPEATS WORKERS ...

cores: two workers of a core each against one of two, on Unix sockets, in turns.
links: rounds of so many clients on so many workers, behind links of 20 ms round trip
and 50 Mbit/s (`worker_machines`); bytes are those of the links, with headers and TLS.

Adds to the file; `--table FILE` prints it as in docs/scale.md. Needs what
`worker_machines` needs, and two cores.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import worker_machines  # noqa: E402

from tff_fedmpq.federated import wire  # noqa: E402

_WAIT_SECONDS = 0.06  # A client takes three round trips of 20 ms,
_BYTES_PER_SECOND = 50e6 / 8  # and the links are of 50 Mbit/s.


def link_bytes() -> int:
    """Returns the bytes that all links of this namespace carried, both directions."""
    total = 0
    for line in pathlib.Path("/proc/net/dev").read_text().splitlines()[2:]:
        name, _, counts = line.partition(":")
        if name.strip() != "lo":
            total += int(counts.split()[0]) + int(counts.split()[8])
    return total


def processor_seconds(pids: list[int]) -> float:
    """Returns the processor time of processes and all below them."""
    total = 0
    for pid in {pid for top in pids for pid in worker_machines.descendants(top)}:
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
            total += sum(map(int, fields.split()[11:13]))
    return total / os.sysconf("SC_CLK_TCK")


def measure(plan: dict[str, Any]) -> None:
    """Runs the rounds of a plan on all its fleets, in turns, and prints a record each.

    A first round of a few clients on each, which sends the computation, is left out.
    """
    from tff_fedmpq import build_process, remote_runtime
    from tff_fedmpq._tff import tff
    from tff_fedmpq.simulation import data
    from tff_fedmpq.simulation.config import make_config
    from tff_fedmpq.simulation.data.client_data import build_client_data
    from tff_fedmpq.simulation.data.partitions import dirichlet_partition
    from tff_fedmpq.simulation.models import build_model_fn

    dataset, clients = data.load("digits", None), plan["clients"]
    config = make_config(
        "quick",
        "fedmpq",
        dataset="digits",
        num_clients=clients,
        clients_per_round=clients,
        epochs=plan["epochs"],
        alpha=100.0,
    )
    partition = dirichlet_partition(
        dataset.train_labels, clients, config.alpha, 0, dataset.name
    )
    ids = [str(client) for client in range(clients)]
    examples = build_client_data(plan["folder"], dataset, partition, relative=True)
    model_fn = build_model_fn("resnet8", dataset, 0)
    budgets = dict(zip(ids, config.budgets))
    process = build_process(model_fn, budgets, examples, config.scheme)
    install = tff.framework.get_context_stack().install
    folders = {"tls_dir": plan["tls_dir"], "data_dir": plan["folder"]}
    with contextlib.ExitStack() as stack:
        contexts = {
            name: stack.enter_context(remote_runtime(addresses, **folders))
            for name, addresses in plan["fleets"].items()
        }
        state = process.initialize()
        for repeat in range(plan["repeats"] + 1):
            for name, context in contexts.items():
                chosen = ids if repeat else ids[: 2 * len(plan["workers"])]
                here, there = [os.getpid()], plan["workers"]
                before = processor_seconds(here), processor_seconds(there)
                bytes_before, started = link_bytes(), time.monotonic()
                with install(context):
                    output = process.next(state, chosen)
                record = {
                    "clients": clients,
                    "fleet": name,
                    "seconds": time.monotonic() - started,
                    "parts": context.report["seconds"],
                    "workers": context.report["workers"],
                    "busy_seconds": context.report["busy_seconds"],
                    "processor_seconds_here": processor_seconds(here) - before[0],
                    "processor_seconds_there": processor_seconds(there) - before[1],
                    "link_bytes": link_bytes() - bytes_before,
                    "message_bytes": _message_bytes(output.metrics),
                }
                if repeat:
                    print(json.dumps(record), flush=True)


def _message_bytes(metrics: Any) -> int:
    return int(metrics["uplink_bits"].sum() + metrics["downlink_bits"].sum()) // 8


def run_plan(namespace: str | None, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs `measure` in a namespace and returns its records."""
    command = [sys.executable, __file__, "--measure", json.dumps(plan)]
    done = subprocess.run(
        worker_machines.inside(namespace, *command), stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise RuntimeError(f"Measuring failed with status {done.returncode}.")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines]


def measure_links(clients: int, repeats: int, *workers: int) -> list[dict[str, Any]]:
    """Returns the records of rounds on so many workers behind links."""
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        machines = worker_machines.Machines(folder, stack)
        (folder / "clients").mkdir()
        for number, host in enumerate(worker_machines._HOSTS):
            (folder / host).rmdir()
            (folder / host).symlink_to(folder / "clients")
            machines.start(number)
        addresses = [f"{host}:8470" for host in worker_machines._HOSTS]
        plan = {
            "clients": clients,
            "repeats": repeats,
            "epochs": 1,
            "folder": str(folder / "clients"),
            "tls_dir": str(folder / "certificates/coordinator"),
            "fleets": {f"{n} workers": addresses[:n] for n in workers},
            "workers": [worker.pid for worker in machines.workers],
        }
        return run_plan(worker_machines._SPACES[0], plan)


def measure_cores() -> list[dict[str, Any]]:
    """Returns the records of two workers of a core each, and of one of two cores."""
    folder = pathlib.Path(tempfile.mkdtemp())
    fleets: dict[str, list[str]] = {"2 of 1 core": [], "1 of 2 cores": []}
    processes = []
    try:
        for name, cores, slots in (("a", "0", 1), ("b", "1", 1), ("c", "0,1", 2)):
            path = f"{folder}/{name}"
            command = f"taskset -c {cores} {sys.executable} -m tff_fedmpq.worker"
            command += f" --socket={path} --slots={slots} --data_dir={folder}"
            process = subprocess.Popen(command.split(), stdout=subprocess.DEVNULL)
            processes.append(process)
            fleets["1 of 2 cores" if slots == 2 else "2 of 1 core"].append(
                f"unix:{path}"
            )
            for _ in range(600):
                with contextlib.suppress(OSError):
                    if wire.ask(f"unix:{path}", 5)["ready"]:
                        break
                time.sleep(0.2)
        plan = {"clients": 8, "repeats": 5, "epochs": 10, "folder": str(folder)}
        pids = [process.pid for process in processes]
        more = {"tls_dir": None, "fleets": fleets, "workers": pids}
        return run_plan(None, {**plan, **more})
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def main(target: str, kind: str, *numbers: str) -> None:
    """Measures and adds to a file."""
    path = pathlib.Path(target)
    found = json.loads(path.read_text()) if path.exists() else {"links": []}
    if kind == "cores":
        found["cores"] = measure_cores()
        one, two = (
            statistics.median(
                r["seconds"] for r in found["cores"] if r["fleet"] == name
            )
            for name in ("2 of 1 core", "1 of 2 cores")
        )
        found["ratio"] = one / two
    else:
        records = measure_links(*map(int, numbers))
        known = {(r["clients"], r["fleet"]) for r in records}
        kept = [r for r in found["links"] if (r["clients"], r["fleet"]) not in known]
        found["links"] = sorted(
            kept + records, key=lambda r: (r["clients"], r["fleet"])
        )
    text = re.sub(r"unix:[^\"]*/", "unix:FOLDER/", json.dumps(found, indent=1))
    path.write_text(text + "\n")


def table(path: str) -> None:
    """Prints the tables of docs/scale.md from scale.json."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for record in json.loads(pathlib.Path(path).read_text())["links"]:
        key = record["clients"], int(record["fleet"][0])
        groups.setdefault(key, []).append(record)
    model = Model(groups[max(groups)])
    print("| clients | workers | round s | model s | first s | last s | "
          "CPU s a client, here | there | kB a client |")  # fmt: skip
    print("|" + "---|" * 9)
    for (clients, workers), rows in sorted(groups.items()):

        def middle(value: Callable[[Any], float], rows: Any = rows) -> float:
            return statistics.median(map(value, rows))

        cells = [
            f"{clients:,} | {workers} | {middle(lambda r: r['seconds']):.1f}",
            f"{model.seconds(clients, workers):.1f}",
            f"{middle(lambda r: r['parts']['first_message']):.2f}",
            f"{middle(lambda r: r['parts']['finish']):.2f}",
            f"{middle(lambda r: r['processor_seconds_here'] / r['clients']):.3f}",
            f"{middle(lambda r: r['processor_seconds_there'] / r['clients']):.3f}",
            f"{middle(lambda r: r['link_bytes'] / r['clients']) / 1000:.0f}",
        ]
        print("| " + " | ".join(cells) + " |")
    print(f"\nA client: {model.here:.3f} s here, {model.there:.3f} s there, "
          f"{model.wait:.3f} s on the way, {model.size:,.0f} bytes")  # fmt: skip
    counts = 1, 4, 16, 64
    for training, what in ((0.0, "as measured"), (30.0, "30 s of training")):
        names = " | ".join(f"{n} workers" for n in counts)
        print(f"\n| clients, {what} | MB | {names} |\n|" + "---|" * (2 + len(counts)))
        for clients in (10, 100, 1_000, 10_000):
            times = [model.seconds(clients, n, training) for n in counts]
            cells = " | ".join(f"{seconds:,.0f} s" for seconds in times)
            print(f"| {clients:,} | {clients * model.size / 1e6:,.0f} | {cells} |")


class Model:
    """What a round takes, fitted to measured ones of many clients."""

    def __init__(self, records: list[dict[str, Any]]):
        def per_client(name: str) -> float:
            return statistics.median(r[name] / r["clients"] for r in records)

        self.here = per_client("processor_seconds_here")
        self.there = per_client("processor_seconds_there")
        self.size = per_client("link_bytes")
        self.wait = _WAIT_SECONDS + self.size / _BYTES_PER_SECOND

    def seconds(self, clients: int, workers: int, training: float = 0.0) -> float:
        """Returns the time of a round, that of the coordinator or of the workers."""
        turns = -(-clients // workers)
        return max(clients * self.here, turns * (self.there + self.wait + training))


if __name__ == "__main__":
    if sys.argv[1] == "--table":
        table(sys.argv[2])
    elif sys.argv[1] == "--measure":
        measure(json.loads(sys.argv[2]))
    else:
        main(*sys.argv[1:])
