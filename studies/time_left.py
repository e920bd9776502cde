"""Prints how long a run will still take, once its first round has been timed."""

from __future__ import annotations

import pathlib
import threading
import time

_POLL_SECONDS = 0.5


class TimeLeft:
    """Watches a run's directory from a thread; a context manager around the run."""

    def __init__(self, work_dir: pathlib.Path, rounds: int, later_runs: int):
        """Initializes the watch.

        Args:
          work_dir: Directory of the run, where each round leaves a record.
          rounds: Rounds of the run.
          later_runs: Number of runs that follow it.
        """
        self._work_dir, self._rounds, self._later = work_dir, rounds, later_runs
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._begun, self._before = time.monotonic(), count_rounds(self._work_dir)
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            done = count_rounds(self._work_dir)
            if done > self._before:
                seconds = time.monotonic() - self._begun
                print(self.describe(seconds / (done - self._before), done), flush=True)
                return

    def describe(self, seconds_per_round: float, done: int) -> str:
        """Returns the sentence that is printed after a round."""
        left = format_seconds(seconds_per_round * (self._rounds - done))
        if not self._later:
            return f"About {left} left."
        later = format_seconds(seconds_per_round * self._rounds * self._later)
        return (
            f"About {left} left for this run, {later} for {self._later} more of this "
            "length."
        )


def count_rounds(work_dir: pathlib.Path) -> int:
    """Returns how many rounds of a run were recorded."""
    return len(list(work_dir.glob("rounds/*.json")))


def format_seconds(seconds: float) -> str:
    """Returns a duration such as "40 s", "12 min" or "2 h 05 min"."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"
