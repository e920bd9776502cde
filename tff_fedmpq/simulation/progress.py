"""A progress bar over the batches of all clients in all rounds.

Clients train in another process, inside one call of the round, so they report through a
file: each step appends its loss as a line, and a thread here reads what is new.
"""

from __future__ import annotations

import pathlib
import sys
import threading

import tensorflow as tf
import tqdm.auto

from tff_fedmpq.files import PathLike

_POLL_SECONDS = 0.5
_SMOOTHING = 0.98  # Weight of the past in the loss that is shown.


class BatchProgress:
    """Context manager that shows a tqdm bar of the `total` local steps of a run.

    `report` goes into the graph of the clients (`build_process(on_step=...)`); they
    write to the file `path`, which is emptied first.
    """

    def __init__(self, path: PathLike, total: int):
        self._path = pathlib.Path(path).resolve()
        self._path.write_text("")
        self._total = total
        self._stop = threading.Event()

    def report(self, loss: tf.Tensor) -> None:
        """Appends a step's loss to the file; a TensorFlow operation."""
        tf.print(loss, output_stream=f"file://{self._path}")

    def __enter__(self) -> BatchProgress:
        redraws = sys.stderr.isatty() or "ipykernel" in sys.modules  # Not a log file.
        self._bar = tqdm.auto.tqdm(
            total=self._total,
            unit="batch",
            dynamic_ncols=True,
            mininterval=0.5 if redraws else 30.0,
        )
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._bar.close()
        self._path.unlink(missing_ok=True)

    def skip(self, steps: int) -> None:
        """Counts steps that were taken before this run was interrupted."""
        self._bar.initial = self._bar.n = steps
        self._bar.refresh()

    def set_round(self, round_number: int, rounds: int) -> None:
        """Shows which round is under way."""
        self._bar.set_description(f"round {round_number}/{rounds}", refresh=False)

    def write(self, line: str) -> None:
        """Prints a line to standard output, above the bar."""
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()

    def _watch(self) -> None:
        """Shows what clients write, until the context is left."""
        is_over = False
        shown: float | None = None
        with open(self._path) as file:
            while not is_over:
                is_over = self._stop.wait(_POLL_SECONDS)
                losses = [float(line) for line in file.read().split()]
                for loss in losses:
                    past = loss if shown is None else shown
                    shown = _SMOOTHING * past + (1 - _SMOOTHING) * loss
                if losses:
                    self._bar.set_postfix(loss=f"{shown:.3f}", refresh=False)
                    self._bar.update(len(losses))
