"""Tries `remote_runtime` on three machines: network namespaces with slow links and TLS.

    sudo python .ci/worker_machines.py docs/results/workers

Each worker has a namespace of its own, a copy of the clients' files and a link of
20 ms round trip and 50 Mbit/s (`worker_links`). Runs 5 rounds of FedMPQ on digits here,
on the workers, and on workers that are killed, stopped and cut off, and compares the
results; then those try who have no right to. Writes machines.json and faults.log.

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
import tempfile
import time
from collections.abc import Iterator
from typing import Any

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
_TIMES = {"seconds", "seconds_training", "checksum"}


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
            (folder / host).mkdir()
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

    def stop(self) -> None:
        """Ends all workers, and what is still running, in good order."""
        for process in [*self.runs, *self.workers]:
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(timeout=30)


def descendants(pid: int) -> list[int]:
    """Returns a process and all below it."""
    found = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += descendants(int(child))
    return found


def start_run(
    machines: Machines, name: str, remote: bool, log: Any, more: str = ""
) -> subprocess.Popen[bytes]:
    """Starts a run, in the coordinator's namespace if it is `remote`."""
    command = f"examples/cifar10_fedmpq.py {_RUN} --output_dir={machines.folder}/{name}"
    if remote:
        addresses = ",".join(f"{host}:8470" for host in _HOSTS)
        command += f" --workers={addresses} --clients_dir={machines.folder}/clients"
        command += f" --tls_dir={machines.folder}/certificates/coordinator {more}"
    process = subprocess.Popen(
        inside(_SPACES[0] if remote else None, sys.executable, *command.split()),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=_ROOT,
    )
    machines.runs.append(process)
    return process


def without_times(value: Any) -> Any:
    """Returns a result without what times it took."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in _TIMES}
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
    return described


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


def run_with_faults(machines: Machines, log: Any) -> int:
    """Disturbs a run: a worker killed, one stopped, one cut off, all back again."""

    def say(text: str) -> None:
        log.write(f"--- {text}\n")
        log.flush()

    run = start_run(machines, "faults", True, log)
    link = "ip link set link3"
    wait_for_round(machines, "faults", 2)
    say(f"kill -9 of the worker {_HOSTS[0]} in round 2")
    machines.signal(0, signal.SIGKILL)
    machines.workers[0].wait()
    wait_for_round(machines, "faults", 3)
    say(f"SIGSTOP of the worker {_HOSTS[1]} in round 3")
    machines.signal(1, signal.SIGSTOP)
    say(f"the worker {_HOSTS[0]} is started again")
    machines.start(0)
    wait_for_round(machines, "faults", 4)
    say(f"link to {_HOSTS[2]} down in round 4")
    subprocess.run(inside(_SPACES[0], *f"{link} down".split()), check=True)
    wait_for_round(machines, "faults", 5)
    say("SIGCONT and link up in round 5")
    machines.signal(1, signal.SIGCONT)
    subprocess.run(inside(_SPACES[0], *f"{link} up".split()), check=True)
    return run.wait(timeout=600)


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


@contextlib.contextmanager
def prepared() -> Iterator[Machines]:
    """Machines with running workers."""
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(tempfile.mkdtemp())
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        machines = Machines(folder, stack)
        for number in range(3):
            machines.start(number)
        yield machines


def main(target: str) -> int:
    """Runs everything and writes the results."""
    to = pathlib.Path(target)
    to.mkdir(parents=True, exist_ok=True)
    with prepared() as machines:
        folder = machines.folder
        log = open(folder / "log", "a+")
        found: dict[str, Any] = {"run": _RUN, "cores": len(os.sched_getaffinity(0))}
        assert start_run(machines, "local", False, log).wait() == 0, log_of(folder)
        found["local"] = describe(machines, "local")
        # Two machines have the clients' files, the third has not.
        first = start_run(machines, "lacks", True, log)
        found["without_data"] = [first.wait(), log_of(folder).splitlines()[-1]]
        for host in _HOSTS:
            for part in (folder / "clients").iterdir():
                shutil.copytree(part, folder / host / part.name)
        assert start_run(machines, "remote", True, log).wait() == 0, log_of(folder)
        found["remote"] = describe(machines, "remote")
        found["intruders"] = intruders(machines)
        with open(to / "faults.log", "w") as faults:
            status = run_with_faults(machines, faults)
        found["faults"] = {"status": status, **describe(machines, "faults")}
        text = (to / "faults.log").read_text()
        text = re.sub(
            r"[^\r\n]*batch/s[^\]]*\]", "\n", text.replace(str(folder), "FOLDER")
        )
        kept = [line.strip() for line in re.split("[\r\n]", text) if line.strip()]
        (to / "faults.log").write_text("\n".join(kept) + "\n")
        time.sleep(2)
    found["left_behind"] = socket_files_left()
    (to / "machines.json").write_text(json.dumps(found, indent=1) + "\n")
    same = not (found["remote"]["differences"] or found["faults"]["differences"])
    print(json.dumps({**found, "local": None}, indent=1))
    return 0 if same else 1


def log_of(folder: pathlib.Path) -> str:
    """Returns what the runs so far have printed."""
    return (folder / "log").read_text()


def socket_files_left() -> list[str]:
    """Returns namespaces of this program that are still there."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if line.startswith(_PREFIX)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
