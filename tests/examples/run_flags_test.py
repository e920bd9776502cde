"""How programs end: one line that says how to go on, and a status."""

from __future__ import annotations

import errno
import os
import signal
import sys

import pytest
import run_flags
import tensorflow as tf

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


@pytest.fixture(autouse=True)
def no_flags(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program"])
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


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
def test_a_program_ends_in_one_line(capsys, ending, status, words):
    def main():
        if callable(ending):
            ending()
        raise ending

    assert run_flags.run(main) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words)


def test_an_error_of_ours_keeps_its_traceback():
    def main():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_flags.run(main)


def test_success_is_status_0(capsys):
    assert run_flags.run(lambda: None) == 0
    assert not capsys.readouterr().err
