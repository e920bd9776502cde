"""Tries `remote_runtime` on three machines: network namespaces with slow links and TLS.

    sudo python .ci/worker_machines.py FOLDER docs/results/workers [PART ...]

Each worker has a namespace of its own, a copy of the clients' files and a link of
20 ms round trip and 50 Mbit/s (`worker_links`). All runs are 5 rounds of FedMPQ on
digits, whose results are compared with that of the first. Parts, all by default:

    local      the run without workers
    remote     with workers; first without the clients' files on them
    intruders  those try who have no right to
    faults     workers are killed, stopped and cut off
    changes    workers are added and removed, the coordinator is killed and resumed

FOLDER keeps the runs, so that parts can be run one by one. Writes machines.json,
faults.log and changes.log.

Needs root, /dev/net/tun, iproute2, openssl and stunnel4; leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, Callable

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

from tff_fedmpq.federated import wire  # noqa: E402

_PREFIX = f"tff{os.getpid() % 10000}"
_SPACES = [f"{_PREFIX}c", *(f"{_PREFIX}w{n}" for n in (1, 2, 3))]
_HOSTS = [f"10.99.{n}.2" for n in (1, 2, 3)]
_RUN = (
    "--dataset=digits --preset=quick --rounds=5 --clients_per_round=6 --num_clients=10 "
    "--epochs=15 --seed=3"
)
_ADDRESSES = ",".join(f"{host}:8470" for host in _HOSTS)
_REPLACED_SECONDS = 10  # Until a worker notices that its coordinator is gone.
_LEFT_OUT = {"seconds", "seconds_training", "checksum", "commit"}


def inside(namespace: str | None, *command: str) -> list[str]:
    """Returns the command that runs another in a namespace."""
    return [*(["ip", "netns", "exec", namespace] if namespace else []), *command]


class Machines:
    """Three workers behind their links, and a folder for all that is written."""

    def __init__(self, folder: pathlib.Path, stack: contextlib.ExitStack):
        self.folder, self.workers = folder, [None, None, None]
        self.log = open(folder / "workers.log", "a")
        for space in _SPACES:
            subprocess.run(["ip", "netns", "add", space], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "delete", space])
            subprocess.run(inside(space, *"ip link set lo up".split()), check=True)
        links = subprocess.Popen(
            [sys.executable, str(_ROOT / ".ci/worker_links.py"), "10", "50", *_SPACES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        stack.callback(links.wait)
        stack.callback(links.stdin.close)
        assert links.stdout.readline() == b"ready\n"
        make = str(_ROOT / "deploy/make_certificates")
        for name in ("certificates", "other"):
            subprocess.run([make, str(folder / name), *_HOSTS], check=True)
        for host in _HOSTS:
            (folder / host).mkdir(exist_ok=True)
        self.runs: list[subprocess.Popen[bytes]] = []
        stack.callback(self.stop)

    def start(self, number: int) -> None:
        """Starts the worker of a machine and waits until it is ready."""
        host = _HOSTS[number]
        arguments = f"--tls_dir={self.folder}/certificates/{host} --slots=1"
        command = f"-m tff_fedmpq.worker {arguments} --data_dir={self.folder}/{host}"
        path = f"{self.folder}/{host}.socket"
        command += f" --socket={path}"
        process = subprocess.Popen(
            inside(_SPACES[number + 1], sys.executable, *command.split()),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            cwd=_ROOT,
            start_new_session=True,
        )
        self.workers[number] = process
        for _ in range(600):
            with contextlib.suppress(OSError):
                if wire.ask(f"unix:{path}", 5)["ready"]:
                    return
            time.sleep(0.2)
        raise RuntimeError(f"The worker on {host} does not start.")

    def signal(self, number: int, what: int) -> None:
        """Signals the program of a worker and TFF's worker below it."""
        for pid in descendants(self.workers[number].pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)

    def copy_clients(self) -> None:
        """Gives each machine a copy of the clients' files."""
        for host in _HOSTS:
            source, to = self.folder / "clients", self.folder / host
            shutil.copytree(source, to, dirs_exist_ok=True)

    def tff_workers(self) -> list[int]:
        """Returns the processes of TFF's workers on all machines."""
        running = [process.pid for process in self.workers if process is not None]
        below = [pid for worker in running for pid in descendants(worker)]
        return [pid for pid in below if is_tff_worker(pid)]

    def stop(self) -> None:
        """Ends all workers, and what is still running, in good order."""
        for process in [*self.runs, *self.workers]:
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(timeout=30)


def is_tff_worker(pid: int) -> bool:
    """Returns whether a process is TFF's worker."""
    with contextlib.suppress(OSError):
        program = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
        return program.endswith(b"worker_binary")
    return False


def descendants(pid: int) -> list[int]:
    """Returns a process and all below it."""
    found = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += descendants(int(child))
    return found


def start_run(
    machines: Machines, name: str, workers: str | None, log: Any, more: str = ""
) -> subprocess.Popen[bytes]:
    """Starts a run, in the coordinator's namespace if it has workers."""
    command = f"examples/cifar10_fedmpq.py {_RUN} --output_dir={machines.folder}/{name}"
    if workers:
        command += f" --workers={workers} --clients_dir={machines.folder}/clients"
        command += f" --tls_dir={machines.folder}/certificates/coordinator {more}"
    process = subprocess.Popen(
        inside(_SPACES[0] if workers else None, sys.executable, *command.split()),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=_ROOT,
    )
    machines.runs.append(process)
    return process


def without_times(value: Any) -> Any:
    """Returns a result without times, and commits, which differ between parts."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in _LEFT_OUT}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Returns where two results differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = sorted(a.keys() | b.keys())
        return [d for n in names for d in
                differences(a.get(n), b.get(n), f"{path}/{n}")]  # fmt: skip
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in
                differences(x, y, f"{path}/{i}")]  # fmt: skip
    return [] if a == b else [path]


def describe(machines: Machines, name: str) -> dict[str, Any]:
    """Returns what a run took, and whether its result is that of the local run."""
    folder = machines.folder
    read = {n: json.loads((folder / n / "result.json").read_text()) for n in
            ("local", name)}  # fmt: skip
    rounds = [r["seconds_training"] for r in read[name]["rounds"]]
    described = {
        "differences": differences(*map(without_times, (read["local"], read[name]))),
        "accuracy": read[name]["rounds"][-1]["test_accuracy"],
        "seconds_training": rounds,
    }
    path = folder / name / "workers.jsonl"
    if path.exists():
        described["rounds"] = [json.loads(line) for line in path.open()]
        described["coordinator_share"] = [share(r) for r in described["rounds"]]
    return described


def share(record: dict[str, Any]) -> float:
    """Returns the part of a round before the first client and after the last."""
    seconds = record["seconds"]
    return 1 - seconds["clients"] / sum(seconds.values())


def wait_for_round(machines: Machines, name: str, number: int) -> None:
    """Waits until a round of a run is under way."""
    path = machines.folder / name / "workers.jsonl"
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if path.exists() and len(path.read_text().splitlines()) == number - 1:
            time.sleep(1.5)
            return
        time.sleep(0.05)
    raise RuntimeError(f"Round {number} did not begin.")


def say(log: Any, text: str) -> None:
    """Writes what is done to the machines among what the run prints."""
    log.write(f"--- {text}\n")
    log.flush()


def run_with_faults(machines: Machines, log: Any) -> dict[str, Any]:
    """Disturbs a run: a worker killed, one stopped, one cut off, all back again."""
    run = start_run(machines, "faults", _ADDRESSES, log)
    link = "ip link set link3"
    wait_for_round(machines, "faults", 2)
    say(log, f"kill -9 of the worker {_HOSTS[0]} in round 2")
    machines.signal(0, signal.SIGKILL)
    machines.workers[0].wait()
    wait_for_round(machines, "faults", 3)
    say(log, f"SIGSTOP of the worker {_HOSTS[1]} in round 3")
    machines.signal(1, signal.SIGSTOP)
    say(log, f"the worker {_HOSTS[0]} is started again")
    machines.start(0)
    wait_for_round(machines, "faults", 4)
    say(log, f"link to {_HOSTS[2]} down in round 4")
    subprocess.run(inside(_SPACES[0], *f"{link} down".split()), check=True)
    wait_for_round(machines, "faults", 5)
    say(log, "SIGCONT and link up in round 5")
    machines.signal(1, signal.SIGCONT)
    subprocess.run(inside(_SPACES[0], *f"{link} up".split()), check=True)
    return {"status": run.wait(timeout=600)}


def run_with_changes(machines: Machines, log: Any) -> dict[str, Any]:
    """Adds and removes workers of a run, and kills and resumes its coordinator."""
    listed = machines.folder / "workers"
    listed.write_text(f"{_HOSTS[0]}:8470\n")
    run = start_run(machines, "changes", f"@{listed}", log)
    wait_for_round(machines, "changes", 2)
    say(log, f"{_HOSTS[1]} and {_HOSTS[2]} are added to the file in round 2")
    listed.write_text("".join(f"{host}:8470\n" for host in _HOSTS))
    wait_for_round(machines, "changes", 3)
    before, here = machines.tff_workers(), descendants(run.pid)
    say(log, f"kill -9 of the coordinator in round 3, with {len(before)} TFF workers")
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    time.sleep(_REPLACED_SECONDS)
    left = [pid for pid in [*before, *here] if pathlib.Path(f"/proc/{pid}").exists()]
    say(log, f"{_REPLACED_SECONDS} s later: of its {len(here)} processes and these TFF "
        f"workers {len(left)} are left")  # fmt: skip
    listed.write_text("".join(f"{host}:8470\n" for host in _HOSTS[1:]))
    say(log, f"{_HOSTS[0]} is removed from the file; --resume")
    run = start_run(machines, "changes", f"@{listed}", log, "--resume")
    return {"status": run.wait(timeout=600), "left_after_kill": left}


def intruders(machines: Machines) -> dict[str, str]:
    """Returns what becomes of those without the right certificate."""
    code = (
        "import sys; from tff_fedmpq.federated import wire\n"
        "try: print('accepted', wire.ask(sys.argv[1], 8))\n"
        "except OSError as e: print('refused:', type(e).__name__, e)"
    )
    address = f"{_HOSTS[0]}:8470"
    found = {}
    plain = inside(_SPACES[0], sys.executable, "-c", code, address)
    found["plaintext"] = output_of(plain)
    folder = machines.folder
    authority = f"-CAfile {folder}/certificates/ca/ca.pem"
    mine = "-cert {0}/cert.pem -key {0}/key.pem"
    for name, options in {
        "no certificate": authority,
        "certificate of another authority": f"{authority} "
        + mine.format(folder / "other/coordinator"),
        "certificate of a worker as a client's": f"{authority} "
        + mine.format(folder / "certificates" / _HOSTS[1]),
        "TLS 1.2": f"{authority} -tls1_2 "
        + mine.format(folder / "certificates/coordinator"),
        "right certificate": f"{authority} "
        + mine.format(folder / "certificates/coordinator"),
    }.items():
        command = f"openssl s_client -connect {address} -quiet {options}"
        text = output_of(inside(_SPACES[0], *command.split()), b"INFO\n")
        answer = [line for line in text.splitlines() if '"ready"' in line]
        alerts = [line for line in text.splitlines() if "alert" in line]
        found[name] = answer[0] if answer else "refused: " + " ".join(alerts[:1])
    return found


def output_of(command: list[str], given: bytes = b"") -> str:
    """Returns what a command writes within 12 s; its input ends only then."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=_ROOT,
    )
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(given)
        process.stdin.flush()
    try:
        process.wait(timeout=12)
    except subprocess.TimeoutExpired:
        process.kill()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    return process.stdout.read().decode(errors="replace").strip()


def tidy(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Removes progress bars and the folder's name from a log."""
    text = path.read_text().replace(str(folder), "FOLDER")
    text = re.sub(r"[^\r\n]*batch/s[^\]]*\]", "\n", text)
    kept = [line.strip() for line in re.split("[\r\n]", text) if line.strip()]
    path.write_text("\n".join(kept) + "\n")


def main(folder: pathlib.Path, to: pathlib.Path, *parts: str) -> int:
    """Runs parts and writes the results; returns whether a result differs."""
    parts = parts or ("local", *_RUNS)
    folder.mkdir(parents=True, exist_ok=True)
    to.mkdir(parents=True, exist_ok=True)
    path = to / "machines.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found |= {"run": _RUN, "cores": len(os.sched_getaffinity(0))}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Tidies up.
    if "remote" in parts:
        for host in _HOSTS:
            shutil.rmtree(folder / host, ignore_errors=True)
    for part in (*parts, "lacks"):
        shutil.rmtree(folder / part, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(folder / "log", "w"))
        machines = Machines(folder, stack)
        if "local" in parts:
            assert start_run(machines, "local", None, log).wait() == 0
        found["local"] = describe(machines, "local")
        for number in range(3 if set(parts) - {"local"} else 0):
            machines.start(number)
        for part, run in _RUNS.items():
            if part in parts:
                found[part] = run(machines, log, to)
                path.write_text(json.dumps(found, indent=1) + "\n")
    time.sleep(2)
    found["left_behind"] = namespaces_left()
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({part: found[part] for part in parts}, indent=1))
    return int(any(found[part].get("differences") for part in parts))


def run_with_workers(machines: Machines, log: Any, to: pathlib.Path) -> dict[str, Any]:
    """Runs on workers, first without the clients' files on them."""
    status = start_run(machines, "lacks", _ADDRESSES, log).wait()
    last = pathlib.Path(log.name).read_text().splitlines()[-1]
    machines.copy_clients()
    assert start_run(machines, "remote", _ADDRESSES, log).wait() == 0
    return {"without_data": [status, last], **describe(machines, "remote")}


def run_with_log(
    part: str, run: Callable[[Machines, Any], dict[str, Any]]
) -> Callable[[Machines, Any, pathlib.Path], dict[str, Any]]:
    """Returns a part whose run is disturbed, with a log of its own."""

    def run_part(machines: Machines, log: Any, to: pathlib.Path) -> dict[str, Any]:
        with open(to / f"{part}.log", "w") as file:
            seen = run(machines, file)
        tidy(to / f"{part}.log", machines.folder)
        return {**seen, **describe(machines, part)}

    return run_part


_RUNS = {
    "remote": run_with_workers,
    "intruders": lambda machines, *_: intruders(machines),
    "faults": run_with_log("faults", run_with_faults),
    "changes": run_with_log("changes", run_with_changes),
}


def namespaces_left() -> list[str]:
    """Returns namespaces of this program that are still there."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if line.startswith(_PREFIX)]


if __name__ == "__main__":
    sys.exit(main(*map(pathlib.Path, sys.argv[1:3]), *sys.argv[3:]))
