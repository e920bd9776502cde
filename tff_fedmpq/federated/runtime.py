"""TFF's worker process, owned by this library instead of by TFF.

TFF runs computations in a C++ server, `worker_binary`. That of its default context
inherits stdout and outlives a Python that is killed: `python train.py | tee log` may
never end. It also listens on all interfaces, and executes any graph for anyone. Here
`worker_guard` keeps the worker in a network of its own, reached through a Unix socket
that only its user may open, and kills it when Python ends, in whatever way. Of the
environment the worker gets only what it needs (`_PASSED_ON`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO, Any, cast

import grpc
from absl import logging

from tff_fedmpq._tff import tff
from tff_fedmpq.federated.execution_context import ExecutionContext, ExecutorFactory
from tff_fedmpq.files import PathLike
from tff_fedmpq.processor import onednn_environment

# Prefixes of the variables that the worker and the guard need.
_PASSED_ON = (
    "CUDA", "DNNL", "GRPC", "HOME", "KMP", "LANG", "LC_", "LD_", "MALLOC", "NVIDIA",
    "OMP", "ONEDNN", "PATH", "TEMP", "TF_", "TFF_", "TMP", "TZ", "XLA",
)  # fmt: skip
_CHANNEL_OPTIONS = [
    # Model states and client data travel in one message; gRPC's default is 4 MB.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A proxy configured for the internet must not get the traffic.
    ("grpc.enable_http_proxy", 0),
    # A worker that hangs ends a call; more frequent questions are refused by gRPC.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 60_000),
]
_GUARD = pathlib.Path(__file__).with_name("worker_guard.py")
_SHARED_NETWORK = (
    "This system allows no network namespaces: everyone who reaches this machine can "
    "run code in the TFF worker, as you. Allow user namespaces, or close its ports."
)
_CLOSE_SECONDS = 5.0
_ANSWER_SECONDS = 60.0  # How long a worker may take to answer between computations.
_running: set[Worker] = set()
_LOG_TAIL_BYTES = 3000


@contextlib.contextmanager
def local_runtime(
    *,
    log_path: PathLike | None = None,
    startup_timeout_seconds: float = 60.0,
    intra_op_threads: int | None = None,
) -> Iterator[tff.framework.SyncExecutionContext]:
    """Runs TFF computations in a worker process that lives as long as the block.

    Inside the block the yielded context is TFF's current one. As TFF's contexts are per
    thread, another thread has to `tff.framework.get_context_stack().install` it itself.

    Args:
      log_path: File to append the worker's output to; None keeps it for errors only.
      startup_timeout_seconds: How long the worker may take until it answers.
      intra_op_threads: How many threads share one TensorFlow operation; None = as many
        as there are cores. See `threads_per_client`.

    Raises:
      RuntimeError: If the worker is not installed or does not come up; also from a
        computation whose worker ended (TFF itself would retry it for ever).
      ValueError: If `startup_timeout_seconds` or `intra_op_threads` is not positive.
    """
    with owned_worker(log_path, startup_timeout_seconds, intra_op_threads) as worker:
        context = sync_context(worker)
        with tff.framework.get_context_stack().install(context):
            yield context


def sync_context(worker: Worker) -> tff.framework.SyncExecutionContext:
    """Returns a context that runs computations on a worker."""
    arguments = worker.context_arguments()
    context = tff.framework.SyncExecutionContext(**arguments)
    context._async_context = ExecutionContext(**arguments)
    return context


def threads_per_client(num_clients: int) -> int:
    """Returns the `intra_op_threads` that serve rounds of so many clients best.

    TFF trains the clients of a round at the same time. Where they are no fewer than the
    usable cores, each operation is quickest on one thread: none waits for another.
    """
    return max(1, len(os.sched_getaffinity(0)) // num_clients)


@contextlib.contextmanager
def local_async_runtime(
    *,
    log_path: PathLike | None = None,
    startup_timeout_seconds: float = 60.0,
    intra_op_threads: int | None = None,
) -> Iterator[tff.program.NativeFederatedContext]:
    """`local_runtime` for federated programs, such as `tff.learning.programs`.

    Computations return value references; `await tff.program.materialize_value(...)`
    gives their values. Arguments and errors are those of `local_runtime`.
    """
    with owned_worker(log_path, startup_timeout_seconds, intra_op_threads) as worker:
        native = ExecutionContext(**worker.context_arguments())
        context = tff.program.NativeFederatedContext(native)
        with tff.framework.get_context_stack().install(context):
            yield context


class Stub(tff.framework.RemoteExecutorGrpcStub):
    """A stub that can be closed and lets values outlive their worker."""

    def __init__(self, address: str):
        self.is_closed = False
        self._own_channel = grpc.insecure_channel(address, _CHANNEL_OPTIONS)
        super().__init__(self._own_channel)

    def close(self) -> None:
        self.is_closed = True
        # gRPC waits for threads of its own, for years if the clock was set back.
        closing = threading.Thread(target=self._own_channel.close, daemon=True)
        try:
            closing.start()
        except RuntimeError:  # Python ends, and starts none any more.
            self._own_channel.close()
        else:
            closing.join(_CLOSE_SECONDS)

    def dispose(self, request: Any) -> Any:
        # Collecting the values of an interrupted call would print tracebacks.
        return None if self.is_closed else super().dispose(request)


class Worker:
    """One worker process and the channel to it."""

    def __init__(
        self, log: IO[bytes], intra_op_threads: int | None, cwd: PathLike | None
    ):
        self._log, self._log_start = log, os.fstat(log.fileno()).st_size
        self._owner = os.getpid()
        self.stub: Any = None
        self._folder = tempfile.TemporaryDirectory(prefix="tff-")  # Of mode 0700.
        self._socket = os.path.join(self._folder.name, "worker")
        self.address = f"unix:{self._socket}"
        # The C library gives every thread an arena, and the worker's many threads fill
        # them one by one: its memory grew for hundreds of rounds.
        settings = {"MALLOC_ARENA_MAX": "2", **onednn_environment()}
        if intra_op_threads is not None:
            settings["TF_NUM_INTRAOP_THREADS"] = str(intra_op_threads)
        # What the user has set comes first.
        settings |= {k: v for k, v in os.environ.items() if k.startswith(_PASSED_ON)}
        guard = [sys.executable, "-I", "-S", str(_GUARD), self._socket]
        self._process = subprocess.Popen(
            [*guard, str(_worker_path())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            env=settings,
            cwd=cwd,
            # Ctrl-C is for Python, which then stops the worker in good order.
            start_new_session=True,
        )
        self._pipe: Any = self._process.stdin
        # A child made by os.fork() (multiprocessing on Linux) inherits the pipe's write
        # end, and would keep the worker alive after Python.
        os.register_at_fork(after_in_child=self._pipe.close)
        _running.add(self)
        with cast(IO[bytes], self._process.stdout) as output:
            self.is_shared = output.readline() == b"shared\n"
            if self.is_shared:
                logging.warning(_SHARED_NETWORK)

    def wait_until_ready(self, deadline: float) -> bool:
        """Returns whether the worker answers before `time.monotonic() == deadline`."""
        while self.exit_status() is None and time.monotonic() < deadline:
            # gRPC itself would try at once and then again only after a second.
            if self.stub is None and os.path.exists(self._socket):
                self.stub = Stub(self.address)
            if self.stub is not None and self.stub.is_ready:
                return True
            time.sleep(0.02)
        return False

    def exit_status(self) -> int | None:
        """Returns 128 + n after a death by signal n, None while the worker runs."""
        return self._process.poll()

    def error(self, event: str) -> RuntimeError:
        """Returns the error to raise: `event`, exit status and end of the log."""
        if self.exit_status() is not None:
            event += f" (exit status {self.exit_status()})"
        size = os.fstat(self._log.fileno()).st_size
        start = max(self._log_start, size - _LOG_TAIL_BYTES)
        # pread, because the worker writes at the shared file offset.
        tail = os.pread(self._log.fileno(), _LOG_TAIL_BYTES, start)
        text = tail.decode(errors="replace").strip() or "(nothing)"
        name = "not kept" if isinstance(self._log.name, int) else self._log.name
        return RuntimeError(f"{event}. Its log ({name}) ends with:\n{text}")

    def context_arguments(self) -> dict[str, Any]:
        """Returns what TFF's own local contexts are built with, on this worker."""
        factory = ExecutorFactory(self._create_executor)
        return {
            "executor_fn": factory,
            "compiler_fn": compile_computation,
            "transform_args": tff.tensorflow.transform_args,
            "transform_result": tff.tensorflow.transform_result,
        }

    def check(self) -> None:
        """Raises RuntimeError if computations cannot run on the worker."""
        if self.stub.is_closed:
            raise RuntimeError("The block of this TFF context's runtime has been left.")
        if os.getpid() != self._owner:
            raise RuntimeError(
                "A forked process cannot use its parent's TFF worker: enter a runtime "
                "of its own in it, or start it by multiprocessing's method 'spawn'."
            )
        # TFF retries a call that lost its worker for ever, but asks for a new
        # executor before each trial: the place to end it.
        if self.exit_status() is not None:
            raise self.error("The TFF worker ended while it was in use")
        if not self.wait_until_ready(time.monotonic() + _ANSWER_SECONDS):
            raise self.error("The TFF worker does not answer any more")

    def _create_executor(self, cardinalities: dict[Any, int]) -> Any:
        self.check()
        executor = tff.framework.RemoteExecutor(self.stub)
        executor.set_cardinalities({tff.CLIENTS: 0, **cardinalities})
        return executor

    def stop(self) -> None:
        """Ends the process and reaps it; does nothing the second time."""
        # It is None at the end of Python, which clears modules; all are stopped then.
        if not _running or self not in _running:
            return
        _running.remove(self)
        try:
            # First, for gRPC's watching thread often fails (harmlessly, but with a
            # traceback) when a channel is closed just after it lost its server.
            if self.stub is not None:
                self.stub.close()
        finally:
            self._pipe.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._folder.cleanup()


@atexit.register
def _stop_workers() -> None:
    """Ends the workers of blocks that a program did not leave.

    Left to the end of the interpreter, closing their channels would wait for ever.
    """
    for worker in list(_running):
        worker.stop()


# A forked child that ends must not end its parent's.
os.register_at_fork(after_in_child=_running.clear)


@contextlib.contextmanager
def owned_worker(
    log_path: PathLike | None,
    timeout: float,
    intra_op_threads: int | None,
    cwd: PathLike | None = None,
) -> Iterator[Worker]:
    """A worker with the folder `cwd`, ready inside the block and gone after it."""
    if not (isinstance(timeout, (int, float)) and timeout > 0):
        raise ValueError(f"Expected startup_timeout_seconds > 0 (as 60), got {timeout}")
    if intra_op_threads is not None and intra_op_threads < 1:
        raise ValueError(f"Expected intra_op_threads >= 1, got {intra_op_threads}")
    deadline = time.monotonic() + timeout
    with _open_log(log_path) as log:
        worker = Worker(log, intra_op_threads, cwd)
        try:
            if not worker.wait_until_ready(deadline):
                if worker.exit_status() is not None:
                    raise worker.error("The TFF worker ended while starting")
                event = f"did not answer within startup_timeout_seconds={timeout}"
                raise worker.error(f"The TFF worker {event}")
            yield worker
        finally:
            worker.stop()


def _open_log(path: PathLike | None) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile() if path is None else open(path, "a+b")
    except OSError as error:
        raise ValueError(f"log_path: {error}; name a file in a folder.") from None


def compile_computation(computation: tff.Computation) -> tff.Computation:
    """Compiles a computation as TFF does, without optimizing its graphs here.

    The worker's TensorFlow does so anyway; here it takes as long as building a process.
    Secure sums become sums: all of it is on this machine.
    """
    computation = tff.backends.test.replace_secure_intrinsics_with_bodies(computation)
    block = computation.to_building_block()
    block, _ = tff.tensorflow.replace_intrinsics_with_bodies(block)
    compiled = tff.framework.ConcreteComputation(
        computation_proto=block.proto, context_stack=tff.framework.get_context_stack()
    )
    return tff.backends.native.transform_to_native_form(compiled)


def _worker_path() -> pathlib.Path:
    """Returns where the installed TFF keeps its worker."""
    path = pathlib.Path(tff.__file__).parent / "data" / "worker_binary"
    if not path.is_file():
        raise RuntimeError(
            f"Expected TFF's worker at {path}, found no file there; reinstall "
            "tensorflow-federated==0.87.0 (its wheel exists for Linux x86_64)."
        )
    return path
