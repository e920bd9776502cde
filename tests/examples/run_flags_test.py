"""How programs end: one line that says how to go on, and a status."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys

import pytest
import tensorflow as tf
from absl import flags

FULL = OSError(errno.ENOSPC, "No space left on device", "runs/fedmpq/config.json")


def raised(error, cause=None):
    error.__cause__ = cause
    return error


def interrupted():
    raise KeyboardInterrupt


def terminated():
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        pass


@pytest.fixture
def run(monkeypatch):
    """The function; the flags that its module defines are gone afterwards."""
    monkeypatch.setattr(sys, "argv", ["program"])
    handler, before = signal.getsignal(signal.SIGTERM), set(flags.FLAGS)
    yield importlib.import_module("run_flags").run
    signal.signal(signal.SIGTERM, handler)
    del sys.modules["run_flags"]
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


@pytest.mark.parametrize(
    ("ending", "status", "words"),
    [
        (FULL, 2, ["No space left", "config.json", "--resume"]),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 2, ["--resume"]),
        (
            tf.errors.ResourceExhaustedError(None, None, "runs/a;\nNo space left"),
            2,
            ["No space left", "--resume"],
        ),
        (raised(RuntimeError("A save failed."), FULL), 2, ["save failed", "--resume"]),
        (ValueError("alpha has to be above 0"), 2, ["alpha has to be above 0"]),
        (interrupted, 130, ["Interrupted", "--resume"]),
        (terminated, 143, ["Terminated", "--resume"]),
    ],
)
def test_a_program_ends_in_one_line(run, capsys, ending, status, words):
    def main():
        if callable(ending):
            ending()
        raise ending

    assert run(main) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words)


def test_lost_workers_are_no_matter_of_files(run, capsys):
    def main():
        raise ConnectionError("No worker answers.")

    assert run(main) == 2
    assert capsys.readouterr().err == "Error: No worker answers.\n"


def test_an_error_of_ours_keeps_its_traceback(run):
    def main():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(main)


def test_success_is_status_0(run, capsys):
    assert run(lambda: None) == 0
    assert not capsys.readouterr().err
