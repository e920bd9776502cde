"""Tests of `tff_fedmpq.federated.runtime`, with real workers.

A process started here carries a unique environment variable that everything below
it inherits; by it the tests find, in /proc, what a run has left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import uuid
import weakref
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tff_fedmpq.federated import runtime

_ROOT = pathlib.Path(runtime.__file__).parents[2]
_MARKER = "TFF_FEDMPQ_RUNTIME_TEST"

# Ends in the way that its argument names: with a child that outlives it, and for the
# signals with a worker that is in the midst of a computation (it would never end).
_SCRIPT = """
import os, signal, sys, threading, time
import tensorflow as tf
from tff_fedmpq.federated import runtime
from tff_fedmpq._tff import tff

@tff.tensorflow.computation
def never_ends():
    return tf.io.read_file(sys.argv[2])  # A pipe into which nobody writes.

def end_by(name):
    time.sleep(1)
    os.kill(os.getpid(), getattr(signal, name))

# A job started with `&` inherits SIGINT as ignored, and so would this process.
signal.signal(signal.SIGINT, signal.default_int_handler)
ending = sys.argv[1]
with runtime.local_runtime():
    if os.fork() == 0:
        os.closerange(0, 3)
        time.sleep(60)
        os._exit(0)
    print("in the block", flush=True)
    if ending == "exception":
        raise ValueError("on purpose")
    if ending != "end":
        threading.Thread(target=end_by, args=[ending], daemon=True).start()
        never_ends()
"""
_STATUSES = {
    "end": 0,
    "exception": 1,
    "SIGINT": -signal.SIGINT,
    "SIGTERM": -signal.SIGTERM,
    "SIGKILL": -signal.SIGKILL,
}


@tff.federated_computation(tff.FederatedType(np.int32, tff.CLIENTS))
def _total(numbers):
    return tff.federated_sum(numbers)


@tff.tensorflow.computation(tff.SequenceType(np.int64))
def _sum_of_dataset(numbers):
    return numbers.reduce(np.int64(0), lambda total, number: total + number)


@tff.tensorflow.computation(tff.TensorType(np.float32, [None]))
def _plus_one(vector):
    return vector + 1.0


@pytest.fixture
def marker(monkeypatch):
    """A value of the variable; processes that still carry it are ended."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(_MARKER, value)
    yield value
    for pid in _processes_with(value):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _processes_with(marker: str, name: bytes = b"") -> list[int]:
    """Returns the processes that inherited the marker, but not this one.

    `os.environ` changes only what children inherit, not our own /proc entry.
    """
    found = []
    for directory in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (directory / "environ").read_bytes().split(b"\0")
            if f"{_MARKER}={marker}".encode() in environment:
                if name in (directory / "cmdline").read_bytes():
                    found.append(int(directory.name))
    return found


def _worker_with(marker: str) -> int:
    """Returns the worker, whose guard also has its name on the command line."""
    guards = _processes_with(marker, b"worker_guard")
    (worker,) = set(_processes_with(marker, b"worker_binary")) - set(guards)
    return worker


def _wait_until_gone(marker: str, name: bytes) -> list[int]:
    """Returns who is still there after at most 5 s."""
    deadline = time.monotonic() + 5
    while (left := _processes_with(marker, name)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _children() -> set[str]:
    """Returns this process's children, those that nobody reaped included."""
    children: set[str] = set()
    for task in pathlib.Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):  # A thread that has ended.
            children |= set(task.read_text().split())
    return children


def test_computes_what_tff_computes():
    with runtime.local_runtime() as context:
        assert tff.framework.get_context_stack().current is context
        assert _total([1, 2, 3]) == 6
        assert _total([5] * 20) == 100  # another number of clients
        assert _sum_of_dataset(tf.data.Dataset.range(5)) == 10


def test_messages_beyond_grpc_default_limit_pass():
    vector = np.arange(2_000_000, dtype=np.float32)  # 8 MB; the default is 4 MB
    with runtime.local_runtime():
        np.testing.assert_array_equal(_plus_one(vector), vector + 1)


def test_leaves_nothing_behind(marker):
    before = tff.framework.get_context_stack().current
    children = _children()
    for _ in range(2):
        with runtime.local_runtime():
            assert _total([1, 2]) == 3
            assert len(_processes_with(marker, b"worker_binary")) == 2
        assert not _processes_with(marker)
        assert _children() == children
        assert tff.framework.get_context_stack().current is before


def test_nested_runtimes_have_their_own_workers(marker):
    with runtime.local_runtime() as outer:
        with runtime.local_runtime() as inner:
            assert inner is not outer
            assert _total([1, 2]) == 3
        assert tff.framework.get_context_stack().current is outer
        assert _total([1, 2]) == 3
        assert len(_processes_with(marker, b"worker_binary")) == 2


def test_worker_outlives_the_thread_that_started_it():
    with contextlib.ExitStack() as stack:
        contexts = []
        thread = threading.Thread(
            # Installed in that thread alone, as TFF's contexts are.
            target=lambda: contexts.append(
                stack.enter_context(runtime.owned_worker(None, 60.0, None))
            )
        )
        thread.start()
        thread.join()
        arguments = contexts[0].context_arguments()
        context = tff.framework.SyncExecutionContext(**arguments)
        with tff.framework.get_context_stack().install(context):
            assert _total([1, 2]) == 3


@pytest.mark.faults
def test_a_channel_that_does_not_close_holds_nobody_up(monkeypatch):
    """As gRPC's under a clock that was set back by ten years."""
    stub, forever = runtime.Stub("unix:/nowhere"), threading.Event()
    monkeypatch.setattr(runtime, "_CLOSE_SECONDS", 0.1)
    channel, stub._own_channel = stub._own_channel, mock.Mock(close=forever.wait)
    stub.close()
    assert stub.is_closed and stub.dispose(None) is None
    forever.set()
    channel.close()


@pytest.mark.faults
def test_forked_child_does_not_keep_the_worker(marker):
    release = multiprocessing.get_context("fork").Event()
    # A daemon, so that pytest ends even if this test fails.
    child = multiprocessing.get_context("fork").Process(
        target=release.wait, daemon=True
    )
    with runtime.local_runtime():
        child.start()
        assert _total([1, 2]) == 3  # nor does its start end the worker
    assert not _processes_with(marker, b"worker_binary")
    release.set()
    child.join()


def test_a_computation_is_forgotten_with_its_graphs_in_the_worker():
    def make(number):
        return tff.tensorflow.computation(lambda: tf.constant(number))

    with runtime.local_runtime() as context:
        # Of one size, but for digits of numbers that TensorFlow counts.
        kept, other, first = make(1), make(2), make(3)
        executors = context.executor_factory._executors
        assert (kept(), other(), first(), kept()) == (1, 2, 3, 1)
        (used,) = executors.values()
        reference = weakref.ref(first)
        del first
        gc.collect()
        assert reference() is None
        assert kept() == 1 and used in executors.values()  # Not for so little.
        del kept
        gc.collect()
        assert make(4)() == 4 and used not in executors.values()
        assert other() == 2


def test_async_runtime_runs_federated_programs():
    async def run() -> int:
        return await tff.program.materialize_value(_total([1, 2, 3]))

    before = tff.framework.get_context_stack().current
    with runtime.local_async_runtime() as context:
        assert isinstance(context, tff.program.NativeFederatedContext)
        assert asyncio.run(run()) == 6
    assert tff.framework.get_context_stack().current is before


def test_log_gets_the_worker_output(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    log_path = tmp_path / "worker.log"
    log_path.write_text("kept\n")
    with runtime.local_runtime(log_path=log_path):
        pass
    log = log_path.read_text()
    assert log.startswith("kept\n")
    assert "ExecutorService started" in log
    assert "Killed" not in log


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_values_that_outlive_their_worker_are_collected_quietly():
    with runtime.local_runtime() as context:
        executor = context.executor_factory.create_executor({})
        one, type_spec = np.int32(1), tff.TensorType(np.int32)
        values = [asyncio.run(executor.create_value(one, type_spec)) for _ in range(40)]
    del values  # TFF disposes of values in batches of 20


def test_proxy_settings_do_not_matter(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with runtime.local_runtime(startup_timeout_seconds=20):
        assert _total([1, 2]) == 3


@pytest.mark.faults
def test_lost_worker_is_an_error(marker, tmp_path):
    log_path = tmp_path / "worker.log"
    with runtime.local_runtime(log_path=log_path):
        assert _total([1, 2]) == 3
        os.kill(_worker_with(marker), signal.SIGKILL)
        with pytest.raises(RuntimeError, match="exit status 137") as error:
            _total([1, 2])
    assert str(log_path) in str(error.value)


def _fake_worker(tmp_path, monkeypatch, body: str) -> None:
    path = tmp_path / "worker_binary"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setattr(runtime, "_worker_path", lambda: path)


@pytest.mark.faults
def test_worker_that_ends_at_once(tmp_path, monkeypatch, marker):
    _fake_worker(tmp_path, monkeypatch, "echo out of order >&2; exit 3")
    log_path = tmp_path / "worker.log"
    with pytest.raises(RuntimeError, match=r"status 3\)(.|\n)*out of order") as error:
        with runtime.local_runtime(log_path=log_path):
            pytest.fail("entered without a worker")
    assert str(log_path) in str(error.value)
    assert not _processes_with(marker)


@pytest.mark.faults
def test_worker_that_never_answers(tmp_path, monkeypatch, marker):
    _fake_worker(tmp_path, monkeypatch, "echo waiting; exec sleep 60")
    with pytest.raises(RuntimeError, match="startup_timeout_seconds=0.5(.|\n)*waiting"):
        with runtime.local_runtime(startup_timeout_seconds=0.5):
            pytest.fail("entered without a worker")
    assert not _processes_with(marker)


@pytest.mark.faults
def test_missing_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(tff, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(RuntimeError, match="Expected TFF's worker at .*reinstall"):
        with runtime.local_runtime():
            pytest.fail("entered without a worker")


# --- who reaches the worker -------------------------------------------------


def _environment_of(pid: int) -> dict[str, str]:
    content = pathlib.Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(entry.split("=", 1) for entry in content.split("\0") if entry)


def _listening_ports(process: str) -> set[int]:
    """Returns the TCP ports on which somebody listens in a process's network."""
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/{process}/net/{table}").open():
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


@pytest.mark.faults
def test_nobody_else_reaches_the_worker(marker):
    before = _listening_ports("self")
    with runtime.local_runtime():
        assert _total([1, 2]) == 3
        worker = _worker_with(marker)
        assert _listening_ports(str(worker)) == {8000}
        assert 8000 not in _listening_ports("self") - before
        (guard,) = _processes_with(marker, b"worker_guard")
        command = pathlib.Path(f"/proc/{guard}/cmdline").read_bytes().split(b"\0")
        path = pathlib.Path(command[command.index(b"-S") + 2].decode())
        assert path.is_socket() and path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.parent.exists()


@pytest.mark.faults
def test_a_shared_network_is_said_and_works(marker, monkeypatch, tmp_path, caplog):
    text = runtime._GUARD.read_text()
    forbidden = tmp_path / "worker_guard.py"
    forbidden.write_text(text.replace("def can_isolate() -> bool:", _FORBIDDEN))
    monkeypatch.setattr(runtime, "_GUARD", forbidden)
    with runtime.local_runtime():
        assert _total([1, 2]) == 3
    assert "can run code in the TFF worker" in caplog.text


_FORBIDDEN = "def can_isolate() -> bool:\n    return False"


@pytest.mark.faults
def test_secrets_stay_with_their_owner(marker, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    with runtime.local_runtime():
        settings = _environment_of(_worker_with(marker))
    assert "AWS_SECRET_ACCESS_KEY" not in settings
    assert settings["PATH"] == os.environ["PATH"]


@pytest.mark.faults
@pytest.mark.slow
def test_a_stopped_worker_is_an_error_after_a_while(marker):
    with runtime.local_runtime():
        os.kill(_worker_with(marker), signal.SIGSTOP)
        with pytest.raises(RuntimeError, match="it is killed"):
            _total([1, 2])


@pytest.mark.faults
def test_a_forked_child_is_told_why_it_cannot_compute():
    with runtime.local_runtime() as context:
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            try:
                context.executor_factory.create_executor({})
            except RuntimeError as error:
                os.write(write_end, str(error).encode())
            os._exit(0)
        os.close(write_end)
        with open(read_end) as answer:
            assert "forked process" in answer.read()
        os.waitpid(child, 0)


@pytest.mark.faults
def test_a_log_that_cannot_be_opened(tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "worker.log"):
        with pytest.raises(ValueError, match="log_path: .*name a file in a folder"):
            with runtime.local_runtime(log_path=path):
                pytest.fail("entered without a log")


@pytest.mark.faults
@pytest.mark.parametrize("timeout", [0, -1, float("nan"), "10", None])
def test_refuses_timeouts_that_are_not_positive(timeout):
    with pytest.raises(ValueError, match="startup_timeout_seconds > 0"):
        with runtime.local_runtime(startup_timeout_seconds=timeout):
            pytest.fail("entered with a wrong timeout")


@pytest.mark.parametrize(
    ("threads", "own", "expected"), [(1, None, "1"), (None, None, None), (1, "3", "3")]
)
def test_threads_of_an_operation(threads, own, expected, marker, monkeypatch):
    """The worker is told, but what the user has set comes first."""
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    if own is not None:
        monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", own)
    with runtime.local_runtime(intra_op_threads=threads):
        settings = _environment_of(_worker_with(marker))
    assert settings.get("TF_NUM_INTRAOP_THREADS") == expected


def test_refuses_no_threads():
    with pytest.raises(ValueError, match="intra_op_threads >= 1, got 0"):
        with runtime.local_runtime(intra_op_threads=0):
            pytest.fail("entered with a wrong number of threads")


@pytest.mark.parametrize(("clients", "threads"), [(1, 8), (3, 2), (8, 1), (100, 1)])
def test_threads_per_client_share_the_cores(clients, threads, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert runtime.threads_per_client(clients) == threads


# Others end alike: by Python's own clean-up, or, of SIGTERM, without any.
_FAST_ENDINGS = ("SIGINT", "SIGKILL")


@pytest.fixture(scope="module")
def scripts(request, tmp_path_factory):
    """The script once per selected ending, all at a time: each imports TFF."""
    selected = {
        item.callspec.params["ending"]
        for item in request.session.items
        if "scripts" in getattr(item, "fixturenames", ())
    }
    started, pipe = {}, tmp_path_factory.mktemp("scripts") / "pipe"
    os.mkfifo(pipe)
    for ending in sorted(selected):
        value = uuid.uuid4().hex
        process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, ending, str(pipe)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=_ROOT,
            env={**os.environ, _MARKER: value},
        )
        started[ending] = process, value
    yield started
    for process, value in started.values():
        for pid in _processes_with(value):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.faults
@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(ending, marks=() if ending in _FAST_ENDINGS else pytest.mark.slow)
        for ending in _STATUSES
    ],
)
def test_pipe_reaches_its_end_and_no_worker_is_left(scripts, ending):
    process, value = scripts[ending]
    assert process.wait(timeout=300) == _STATUSES[ending]
    # End-of-file comes only when nobody else holds the pipe any more.
    output, _ = process.communicate(timeout=5)
    assert b"in the block" in output
    assert _wait_until_gone(value, b"worker_binary") == []


# --- programs that do not leave the block -----------------------------------

_NEVER_LEFT = """
import contextlib
from tff_fedmpq.federated import runtime  # Before TensorFlow Federated.
import numpy as np, tensorflow_federated as tff

@tff.tensorflow.computation(np.int32)
def plus_one(x):
    return x + 1

{enter}
print(plus_one(1), flush=True)
"""


@pytest.mark.faults
@pytest.mark.parametrize(
    "enter",
    [
        "block = runtime.local_runtime(); block.__enter__()",
        *(
            pytest.param(enter, marks=pytest.mark.slow)
            for enter in (
                "s = contextlib.ExitStack(); s.enter_context(runtime.local_runtime())",
                "b = runtime.local_async_runtime(); b.__enter__(); plus_one = abs",
            )
        ),
    ],
)
def test_a_program_that_does_not_leave_the_block_ends(marker, enter):
    completed = subprocess.run(
        [sys.executable, "-c", _NEVER_LEFT.format(enter=enter)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=_ROOT,
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.split() in (["2"], ["1"])
    assert "Traceback" not in completed.stderr
    assert not _wait_until_gone(marker, b"")
