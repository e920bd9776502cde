"""Kills a run at random moments, resumes it each time, and compares what it leaves.

    python .ci/kill_and_resume.py WORK_DIR docs/results/faults/kills.log

Trains FedMPQ on digits without interruption, then again with SIGKILLs: two of three at
a moment drawn from twice the time that a run needs until its first round is saved, the
third when a file of a round appears, within the time that saving takes. A run that ends
before its next kill is compared, and another one is begun. After each kill the TFF
worker has to end by itself. Results, records and the last state have to be the same to
the last bit, but for seconds.

With `--seconds`, it ends after the kill that is then under way; called again with the
same WORK_DIR, it goes on. The log is complete when its last line says so.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_EXAMPLE = str(_ROOT / "examples" / "cifar10_fedmpq.py")
_RUN = (
    "--dataset=digits --preset=quick --rounds=24 --num_clients=6 --clients_per_round=6"
)
_TIMES = {"seconds", "seconds_training", "checksum"}
_SEED = 28
_SAVING_SECONDS = 0.02
_ENDING_SECONDS = 20.0  # That a worker may take to end after its parent.


class Trial:
    """Runs in a folder, and what was done to them."""

    def __init__(self, folder: pathlib.Path, log: pathlib.Path):
        self.folder, self._log = folder, log
        self._state = folder / "progress.json"
        self.kills, self.runs, self.first_seconds = 0, 0, 0.0
        if self._state.exists():
            vars(self).update(json.loads(self._state.read_text()))

    def save(self) -> None:
        names = "kills", "runs", "first_seconds"
        content = {name: getattr(self, name) for name in names}
        self._state.write_text(json.dumps(content))

    def write(self, line: str) -> None:
        print(line, flush=True)
        with open(self._log, "a") as file:
            file.write(f"{line}\n")

    def start(self, output_dir: pathlib.Path) -> subprocess.Popen[bytes]:
        """Starts or continues the run."""
        command = [sys.executable, _EXAMPLE, *_RUN.split(), "--resume"]
        with open(self.folder / "output.log", "ab") as out:
            return subprocess.Popen(
                [*command, f"--output_dir={output_dir}"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def run_whole(self) -> None:
        """Runs without interruption, which also tells how long a start takes."""
        output_dir, started = self.folder / "whole", time.monotonic()
        process = self.start(output_dir)
        while not files_of(output_dir, "checkpoints/round_*.npz"):
            if process.poll() is not None:
                raise SystemExit(f"The run failed; see {self.folder / 'output.log'}.")
            time.sleep(0.02)
        self.first_seconds = time.monotonic() - started
        if process.wait():
            raise SystemExit(f"The run failed; see {self.folder / 'output.log'}.")
        self.write(f"{_RUN}\nthe first round is saved after {self.first_seconds:.1f} s")

    def kill_once(self) -> None:
        """Resumes the present run and kills it, or compares it if it ends before."""
        rng = np.random.default_rng([_SEED, self.kills])
        output_dir = self.folder / f"run{self.runs}"
        at_save = self.kills % 3 == 2
        delay = rng.uniform(0, _SAVING_SECONDS if at_save else 2 * self.first_seconds)
        before = len(files_of(output_dir, "rounds/*.json"))
        process = self.start(output_dir)
        started = time.monotonic()
        while at_save and process.poll() is None:
            names = files_of(output_dir, "rounds/.*.tmp", "rounds/*.json")
            if len(names) > before:
                break
            time.sleep(0.0005)
        end = time.monotonic() + delay
        while process.poll() is None and time.monotonic() < end:
            time.sleep(min(0.01, max(0.0, end - time.monotonic())))
        if process.poll() is not None:
            if process.returncode:
                raise SystemExit(f"Failed to resume: status {process.returncode}.")
            self.compare(output_dir)
            self.runs += 1
            return
        family = descendants(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seconds = time.monotonic() - started
        self.kills += 1
        self.write(
            f"kill {self.kills:>2} of run {self.runs + 1} after {seconds:5.2f} s: "
            f"{describe(output_dir)}; {len(family)} processes end"
        )
        wait_for_end(family)

    def finish(self) -> None:
        """Lets the last run end, and compares it."""
        output_dir = self.folder / f"run{self.runs}"
        if self.start(output_dir).wait():
            raise SystemExit("Failed to resume.")
        self.compare(output_dir)
        self.write(
            f"{self.kills} kills, {self.runs + 1} runs: all are bit-identical to the "
            "uninterrupted run"
        )

    def compare(self, output_dir: pathlib.Path) -> None:
        """Raises SystemExit unless a finished run equals the uninterrupted one."""
        whole = self.folder / "whole"
        if result_of(output_dir) != result_of(whole):
            raise SystemExit(f"{output_dir}: result.json is another one.")
        (state,), (expected,) = (
            files_of(path, "checkpoints/round_24.npz") for path in (output_dir, whole)
        )
        with np.load(state) as found, np.load(expected) as wanted:
            for name in set(wanted.files) - {"records"}:  # Digests, of seconds too.
                if found[name].tobytes() != wanted[name].tobytes():
                    raise SystemExit(f"{state}: tensor {name} is another one.")
        left = files_of(output_dir, "**/.*.tmp", "**/damaged_*")
        if left:
            raise SystemExit(f"Left behind: {left}.")
        self.write(f"run {self.runs + 1} ends, bit-identical")
        shutil.rmtree(output_dir)


def files_of(folder: pathlib.Path, *patterns: str) -> list[pathlib.Path]:
    """Returns the files of a folder, which may not exist, that match patterns."""
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def result_of(output_dir: pathlib.Path) -> object:
    """Returns a result without what may differ between equal runs."""
    result = json.loads((output_dir / "result.json").read_text())
    rounds = [
        {key: value for key, value in record.items() if key not in _TIMES}
        for record in result.pop("rounds")
    ]
    return {k: v for k, v in result.items() if k not in _TIMES}, rounds


def describe(output_dir: pathlib.Path) -> str:
    """Returns what a killed run had written."""
    states = files_of(output_dir, "checkpoints/round_*.npz")
    done = max((int(path.stem.removeprefix("round_")) for path in states), default=0)
    records = len(files_of(output_dir, "rounds/*.json"))
    unfinished = [path.name for path in files_of(output_dir, "**/.*.tmp")]
    phase = "no file of the run" if not output_dir.exists() else f"{done} rounds saved"
    if records > done:
        phase += f", record {records} without its state"
    if (output_dir / "result.json").exists():
        phase += ", result written"
    for name in unfinished:
        phase += f", {name.split('.')[1]} half-written"
    return phase


def descendants(pid: int) -> list[int]:
    """Returns the processes that a process has started, and that they have."""
    found: list[int] = []
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *descendants(child)]
    return found


def wait_for_end(pids: list[int]) -> None:
    """Returns when these processes have ended; SystemExit if they do not."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while any(is_running(pid) for pid in pids):
        if time.monotonic() > deadline:
            raise SystemExit(f"Processes {pids} outlive the run.")
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Returns whether a process exists and is no zombie."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


def main() -> None:
    """Kills, resumes and compares."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("work_dir", type=pathlib.Path)
    parser.add_argument("log", type=pathlib.Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    options.work_dir.mkdir(parents=True, exist_ok=True)
    options.log.parent.mkdir(parents=True, exist_ok=True)
    trial = Trial(options.work_dir, options.log)
    if not trial.first_seconds:
        trial.run_whole()
    while trial.kills < options.kills:
        trial.save()
        if time.monotonic() > end:
            return
        trial.kill_once()
    trial.save()
    trial.finish()


if __name__ == "__main__":
    main()
