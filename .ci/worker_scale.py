"""Measures rounds on workers: seconds, bytes, and the coordinator's share.

    sudo python .ci/worker_scale.py docs/results/workers

links: 10 and 100 clients a round on 1 to 3 workers behind links of 20 ms round trip
and 50 Mbit/s (`worker_machines`); bytes are those of the links, with headers and TLS.
cores: two workers of a core each against one of two, on Unix sockets, in turns.

Writes scale.json; `--table FILE` prints it as in docs/scale.md. Needs what
`worker_machines` needs, and two cores.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import worker_machines  # noqa: E402

from tff_fedmpq.federated import wire  # noqa: E402


def link_bytes() -> int:
    """Returns the bytes that all links of this namespace carried, both directions."""
    total = 0
    for line in pathlib.Path("/proc/net/dev").read_text().splitlines()[2:]:
        name, _, counts = line.partition(":")
        if name.strip() != "lo":
            total += int(counts.split()[0]) + int(counts.split()[8])
    return total


def measure(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs the rounds of a plan: all numbers of clients on all fleets, in turns."""
    import tensorflow_federated as tff

    from tff_fedmpq import build_process, remote_runtime
    from tff_fedmpq.simulation import data
    from tff_fedmpq.simulation.config import make_config
    from tff_fedmpq.simulation.data.client_data import build_client_data
    from tff_fedmpq.simulation.data.partitions import dirichlet_partition
    from tff_fedmpq.simulation.models import build_model_fn

    dataset, records = data.load("digits", None), []
    for clients, repeats in plan["clients"]:
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
        with contextlib.ExitStack() as stack:
            contexts = {
                name: stack.enter_context(
                    remote_runtime(
                        addresses, tls_dir=plan["tls_dir"], data_dir=plan["folder"]
                    )
                )
                for name, addresses in plan["fleets"].items()
            }
            state = process.initialize()
            for repeat in range(repeats + 1):
                for name, context in contexts.items():
                    before, started = link_bytes(), time.monotonic()
                    with install(context):
                        output = process.next(state, ids)
                    seconds = time.monotonic() - started
                    sent = output.metrics["uplink_bits"].sum()
                    sent += output.metrics["downlink_bits"].sum()
                    record = {
                        "clients": clients,
                        "fleet": name,
                        "is_first": repeat == 0,
                        "seconds": seconds,
                        "parts": context.report["seconds"],
                        "workers": context.report["workers"],
                        "link_bytes": link_bytes() - before,
                        "message_bytes": int(sent) // 8,
                    }
                    records.append(record)
                    print(json.dumps(record), flush=True)
    return records


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


def measure_links() -> list[dict[str, Any]]:
    """Returns the records of workers behind links."""
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(tempfile.mkdtemp())
        machines = worker_machines.Machines(folder, stack)
        (folder / "clients").mkdir()
        for number, host in enumerate(worker_machines._HOSTS):
            (folder / host).rmdir()
            (folder / host).symlink_to(folder / "clients")
            machines.start(number)
        addresses = [f"{host}:8470" for host in worker_machines._HOSTS]
        plan = {
            "clients": [[10, 3], [100, 1]],
            "epochs": 1,
            "folder": str(folder / "clients"),
            "tls_dir": str(folder / "certificates/coordinator"),
            "fleets": {f"{n} workers": addresses[:n] for n in (1, 2, 3)},
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
        plan = {"clients": [[8, 7]], "epochs": 10, "folder": str(folder)}
        return run_plan(None, {**plan, "tls_dir": None, "fleets": fleets})
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def main(target: str) -> None:
    """Measures everything and writes scale.json."""
    cores = measure_cores()
    found = {"cores": cores, "links": measure_links()}
    medians = {
        name: statistics.median(
            r["seconds"] for r in cores if r["fleet"] == name and not r["is_first"]
        )
        for name in ("2 of 1 core", "1 of 2 cores")
    }
    found["ratio"] = medians["2 of 1 core"] / medians["1 of 2 cores"]
    path = pathlib.Path(target, "scale.json")
    text = re.sub(r"unix:[^\"]*/", "unix:FOLDER/", json.dumps(found, indent=1))
    path.write_text(text + "\n")
    print(f"Two workers of a core over one of two: {found['ratio']:.3f}")


def table(path: str) -> None:
    """Prints the tables of docs/scale.md from scale.json."""
    links = json.loads(pathlib.Path(path).read_text())["links"]
    later = [r for r in links if not r["is_first"]]
    print("| clients | workers | select s | clients s | finish s | MB on the links |")
    print("|---|---|---|---|---|---|")
    for clients in (10, 100):
        for workers in (1, 2, 3):
            rows = [r for r in later if r["clients"] == clients]
            rows = [r for r in rows if r["fleet"] == f"{workers} workers"]
            parts = [
                statistics.median(r["parts"][part] for r in rows)
                for part in ("select", "clients", "finish")
            ]
            size = statistics.median(r["link_bytes"] for r in rows) / 1e6
            numbers = " | ".join(f"{part:.2f}" for part in parts)
            print(f"| {clients} | {workers} | {numbers} | {size:.1f} |")
    many = [r for r in later if r["clients"] == 100]
    here = statistics.median(
        (r["parts"]["select"] + r["parts"]["finish"]) / 100 for r in many
    )
    there = statistics.median(
        r["parts"]["clients"] * len(r["workers"]) / 100 for r in many
    )
    size = statistics.median(r["link_bytes"] for r in many) / 100
    print(
        f"\nA client: {here:.3f} s here, {there:.3f} s on a worker, {size:,.0f} bytes"
    )
    counts = (1, 4, 16, 64)
    print("\n| clients | MB | " + " | ".join(f"{n} workers" for n in counts) + " |")
    print("|" + "---|" * (2 + len(counts)))
    for clients in (10, 100, 1_000, 10_000):
        times = [clients * (here + there / min(n, clients)) for n in counts]
        cells = " | ".join(f"{seconds:,.0f} s" for seconds in times)
        print(f"| {clients:,} | {clients * size / 1e6:,.0f} | {cells} |")


if __name__ == "__main__":
    if sys.argv[1] == "--table":
        table(sys.argv[2])
    elif sys.argv[1] == "--measure":
        measure(json.loads(sys.argv[2]))
    else:
        main(sys.argv[1])
