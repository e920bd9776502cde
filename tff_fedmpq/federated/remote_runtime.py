"""The clients of a round on other machines, by workers that may fail.

    process.next(state, ids)
       |  select: messages to clients                        here
       v
    queue of clients, biggest first --> whichever connection is free:
       |  work: read own examples, train, pack               `tff_fedmpq.worker`s
       v
    results in the order of the ids
       |  finish: decode, add, next state                    here
       v

A client's result is a function of its message, which holds its seed, and of its
examples: whoever computes it, and however often, it is the same. So a client is done
again by another worker when its own is lost, and, when a worker has nothing left to do,
also while a slow one is still at it; the first result counts. Results are added in the
order of ids, in one place: their sums do not depend on who was how fast.

The numbers are those of `local_runtime`, to the last bit, where processors and threads
per operation are the same; TensorFlow's kernels round differently elsewhere.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import pathlib
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grpc
from absl import logging

from tff_fedmpq._tff import tff
from tff_fedmpq.federated import wire
from tff_fedmpq.federated.runtime import _compile, _owned_worker, _Stub
from tff_fedmpq.files import PathLike
from tff_fedmpq.version import __version__

_POLL_SECONDS = 1.0
_PATIENCE = 3.0  # A client is done twice when it takes so many times the usual.
_PATIENCE_SECONDS = 5.0  # And so many seconds more.
_LOST = {"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"}


class NoWorkersError(ConnectionError):
    """No worker is left, or one cannot be used; a run continues from its checkpoint."""


@contextlib.contextmanager
def remote_runtime(
    addresses: Sequence[str],
    *,
    tls_dir: PathLike | None = None,
    insecure: bool = False,
    data_dir: PathLike | None = None,
    answer_seconds: float = 10.0,
    wait_seconds: float = 60.0,
    log_path: PathLike | None = None,
) -> Iterator[RemoteContext]:
    """Runs the clients of this library's processes on workers, the rest here.

    Other computations, TFF's own learning processes among them, run here, as in
    `local_runtime`. A process's first round checks that workers have the same examples.

    Args:
      addresses: Workers: "host:port", "unix:/path"; "@file" for the lines of a file and
        "dns:host:port" for all hosts of a name, which are read anew all the time.
      tls_dir: Folder with this machine's ca.pem, cert.pem and key.pem.
      insecure: Whether to use a network without TLS.
      data_dir: Folder on this machine that relative paths of client data start from.
      answer_seconds: How long a worker may be silent until others do its clients.
      wait_seconds: How long to wait for a worker when there is none.
      log_path: File to append the output of this machine's own worker to.

    Raises:
      ValueError: for an address of another form or one that needs TLS; without stunnel.
      NoWorkersError: from a round: no worker left, or one without the examples.
    """
    for address in wire.read_addresses(addresses):
        if tls_dir is None:
            wire.check_plaintext(address, insecure)
    with _owned_worker(log_path, wait_seconds, 1, data_dir) as worker:
        local = tff.framework.SyncExecutionContext(**worker.context_arguments())
        with contextlib.ExitStack() as stack:
            options = tls_dir, insecure, answer_seconds, wait_seconds, log_path
            context = RemoteContext(local, addresses, *options)
            stack.callback(context.close)
            with tff.framework.get_context_stack().install(context):
                yield context


class _Job:
    """A client in a round."""

    def __init__(self, index: int, argument: Any, size: int):
        self.index, self.argument, self.size = index, argument, size
        self.started: dict[_Host, float] = {}  # Who is at it, since when.


class _Round:
    """What is left of a round; guarded by the context's lock."""

    def __init__(self, parts: Any, client_ids: list[str], jobs: list[_Job]):
        self.parts, self.client_ids, self.jobs = parts, client_ids, jobs
        self.waiting = sorted(jobs, key=lambda job: job.size)  # The biggest at the end.
        self.results: dict[int, Any] = {}
        self.error: Exception | None = None
        self.pace = 0.0  # Most seconds per example so far.
        self.report: Any = {"workers": collections.Counter(), "events": []}

    def take(self, host: _Host) -> _Job | None:
        """Returns a client for a worker: one that waits, or one that takes too long."""
        if self.error:
            return None
        while self.waiting:
            if (job := self.waiting.pop()).index not in self.results:
                return job
        now = time.monotonic()
        for job in self.jobs:
            usual = _PATIENCE_SECONDS + _PATIENCE * self.pace * (job.size + 1)
            if job.index not in self.results and self.pace and host not in job.started:
                if all(now - start > usual for start in job.started.values()):
                    return job
        return None


class RemoteContext(tff.framework.SyncContext):
    """TFF context of `remote_runtime`.

    Attributes:
      report: Of the last round: clients by worker, seconds of each part, and events.
    """

    def __init__(
        self,
        local: Any,
        addresses: Iterable[str],
        tls_dir: PathLike | None,
        insecure: bool,
        answer_seconds: float,
        wait_seconds: float,
        log_path: PathLike | None,
    ):
        self.wait_seconds, self.log_path = wait_seconds, log_path or os.devnull
        self.local, self.tls_dir, self.answer_seconds = local, tls_dir, answer_seconds
        self._given, self._insecure = list(addresses), insecure
        self.changed, self.is_closed = threading.Condition(), False
        self.round: _Round | None = None
        self.hosts: dict[str, _Host] = {}
        self.report: dict[str, Any] = {}
        self._events: list[str] = []
        self._compiled: dict[int, Any] = {}
        # What every worker shall find: by process, examples and digest by client.
        self.expected: dict[int, dict[str, tuple[int, ...]]] = {}
        self._follow_addresses()
        threading.Thread(target=self._watch, daemon=True).start()

    def invoke(self, comp: Any, arg: Any) -> Any:
        """Runs a computation here, or the round of one of our processes on workers."""
        if (split := getattr(comp, "split", None)) is None:
            return self.local.invoke(comp, arg)
        parts, (state, client_ids) = split(), arg
        client_ids = list(client_ids)
        started = time.monotonic()
        expected = self._expect(parts.inspect, client_ids)
        checked = time.monotonic()
        selected = self.local.invoke(parts.select, arg)
        jobs = [
            _Job(i, tff.structure.Struct.unnamed(*row), expected[client_ids[i]][0])
            for i, row in enumerate(selected)
        ]
        for computation in (parts.inspect, parts.work):
            self.compiled(computation)
        sent = time.monotonic()
        report, results = self._run(_Round(parts, client_ids, jobs))
        worked = time.monotonic()
        # The server keeps the tickets: no worker can forge one.
        answers = [(result, row[2]["ticket"]) for result, row in zip(results, selected)]
        pair = tff.structure.Struct.unnamed(state, answers)
        output = self.local.invoke(parts.finish, pair)
        seconds = {"check": checked - started, "select": sent - checked}
        seconds |= {"clients": worked - sent, "finish": time.monotonic() - worked}
        self.report = {**report, "seconds": seconds}
        return output

    def compiled(self, computation: Any) -> Any:
        """Returns what is sent to workers; compiled once for all connections."""
        if id(computation) not in self._compiled:
            # The original is kept, so that its id is not given to another.
            self._compiled[id(computation)] = _compile(computation), computation
        return self._compiled[id(computation)][0]

    def _expect(self, inspect: Any, client_ids: list[str]) -> dict[str, Any]:
        """Returns number and digest of the examples of clients, these included."""
        known = self.expected.setdefault(id(inspect), {})
        if new := [client for client in client_ids if client not in known]:
            rows = self.local.invoke(inspect, new)
            known |= {client: tuple(map(int, row)) for client, row in zip(new, rows)}
        return known

    def _run(self, current: _Round) -> tuple[Any, list[Any]]:
        """Waits for all results of a round and returns its report and them."""
        last_seen = time.monotonic()
        with self.changed:
            self.round = current
            current.report["events"], self._events = self._events, []
            self.changed.notify_all()
            try:
                while len(current.results) < len(current.jobs):
                    if current.error is not None:
                        raise current.error
                    self.changed.wait(_POLL_SECONDS)
                    if any(host.connections for host in self.hosts.values()):
                        last_seen = time.monotonic()
                    if time.monotonic() - last_seen > self.wait_seconds:
                        raise NoWorkersError(
                            f"None of the workers {sorted(self.hosts)} answers: "
                            + "; ".join(current.report["events"][-3:])
                        )
            finally:
                self.round = None
        current.report["workers"] = dict(sorted(current.report["workers"].items()))
        return current.report, [current.results[job.index] for job in current.jobs]

    def note(self, event: str) -> None:
        """Logs an event, which also goes into the report of the round."""
        logging.warning("Workers: %s", event)
        with self.changed:
            here = self.round.report["events"] if self.round else self._events
            here.append(event)

    def fail(self, error: Exception) -> None:
        """Ends the round under way."""
        with self.changed:
            if self.round:
                self.round.error = error
            self.changed.notify_all()

    def _follow_addresses(self) -> None:
        wanted = wire.read_addresses(self._given)
        for address in wanted:
            if self.tls_dir is None:
                wire.check_plaintext(address, self._insecure)
            if address not in self.hosts:
                self.hosts[address] = _Host(self, address)
        for address in set(self.hosts) - set(wanted):
            self.hosts.pop(address).leave("is no longer listed")

    def _watch(self) -> None:
        """Follows lists of workers that change."""
        while not self.is_closed:
            time.sleep(_POLL_SECONDS)
            try:
                self._follow_addresses()
            except (OSError, ValueError) as error:
                logging.warning("Workers: the list is left as it is: %s", error)

    def close(self) -> None:
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()
        for host in list(self.hosts.values()):
            host.leave(None)
            host.thread.join(timeout=self.answer_seconds + 2)


class _Host:
    """A worker: whether it is there, and a connection for each client at a time."""

    def __init__(self, context: RemoteContext, address: str):
        self._context, self.address = context, address
        self.connections: list[_Stub] = []
        self._gone, self._was_there = threading.Event(), True
        self.checked: set[tuple[int, str]] = set()  # Clients whose data was compared.
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        """Connects whenever the worker answers; disconnects when it does not."""
        with contextlib.ExitStack() as stack:
            target = self.address
            if self._context.tls_dir is not None and not target.startswith("unix:"):
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tff-"))
                path = f"{folder}/tls"
                log = stack.enter_context(open(self._context.log_path, "ab"))
                proxy = wire.tls_proxy(
                    path, target, self._context.tls_dir, is_client=True, log=log
                )
                stack.enter_context(proxy)
                target = f"unix:{path}"
                _wait_for(pathlib.Path(path))
            asked = False
            while not self._gone.wait(_POLL_SECONDS if asked else 0):
                asked = True
                try:
                    about = wire.ask(target, self._context.answer_seconds)
                except OSError as error:
                    self.lose(f"does not answer ({error or type(error).__name__})")
                else:
                    self._accept(target, about)

    def _accept(self, target: str, about: dict[str, Any]) -> None:
        """Opens connections to a worker that answered."""
        if not about.get("ready"):
            self.lose("has a TFF worker that does not answer")
        elif about.get("version") != __version__:
            self.lose(f"has tff_fedmpq {about.get('version')}, here is {__version__}")
        elif not self.connections and not self._gone.is_set():
            stubs = [_Stub(target) for _ in range(int(about["slots"]))]
            with self._context.changed:
                self.connections = list(stubs)
            if not self._was_there:
                self._context.note(f"{self.address} is back")
            self._was_there = True
            for stub in stubs:
                threading.Thread(target=self._serve, args=(stub,), daemon=True).start()

    def lose(self, why: str | None) -> None:
        """Closes all connections; their clients go back to the others."""
        with self._context.changed:
            stubs, self.connections = self.connections, []
            is_news, self._was_there = self._was_there, False
            current = self._context.round
            if current is not None:
                for job in current.jobs:
                    if job.started.pop(self, None) and not job.started:
                        current.waiting.append(job)
            self._context.changed.notify_all()
        self.checked.clear()
        for stub in stubs:  # Ends calls that are under way.
            stub.close()
        if is_news and why is not None:
            self._context.note(f"{self.address} {why}")

    def leave(self, why: str | None) -> None:
        """Forgets the worker."""
        self._gone.set()
        self.lose(why)

    def _serve(self, stub: _Stub) -> None:
        """Does clients on one connection, until it is lost."""
        try:
            executor = tff.framework.RemoteExecutor(stub)
            executor.set_cardinalities({tff.CLIENTS: 0})
            embedded: Any = None, None
            while stub in self.connections:
                if (task := self._next_job(stub)) is None:
                    return
                current, job = task
                self._compare(stub, current)
                if embedded[0] is not current.parts:
                    work = self._context.compiled(current.parts.work)
                    embedded = current.parts, _send(executor, work)
                begun = time.monotonic()
                result = _call(executor, embedded[1], job.argument)
                self._give(current, job, result, time.monotonic() - begun)
        except Exception as error:
            if stub.is_closed or stub not in self.connections:
                return  # It is known to be lost.
            if _is_lost(error):
                self.lose("was lost while it was in use")
                return
            # Of the computation itself: another worker would find the same.
            if isinstance(error, grpc.RpcError):
                error = ValueError(f"A client failed: {_first_line(error)}")
            self._context.fail(error)
            self.lose(None)

    def _next_job(self, stub: _Stub) -> tuple[_Round, _Job] | None:
        """Returns a client as soon as there is one; None when the worker is lost."""
        with self._context.changed:
            while stub in self.connections:
                current = self._context.round
                if current and (job := current.take(self)):
                    job.started[self] = time.monotonic()
                    return current, job
                self._context.changed.wait(_POLL_SECONDS)
        return None

    def _give(self, current: _Round, job: _Job, result: Any, seconds: float) -> None:
        with self._context.changed:
            job.started.pop(self, None)
            if job.index not in current.results:
                current.results[job.index] = result
                current.report["workers"][self.address] += 1
                current.pace = max(current.pace, seconds / (job.size + 1))
            self._context.changed.notify_all()

    def _compare(self, stub: _Stub, current: _Round) -> None:
        """Raises NoWorkersError unless the worker has the examples of this machine."""
        process = id(current.parts.inspect)
        expected = self._context.expected[process]
        left = [c for c in current.client_ids if (process, c) not in self.checked]
        if not left:
            return
        inspect = self._context.compiled(current.parts.inspect)
        executor = tff.framework.RemoteExecutor(stub)
        executor.set_cardinalities({tff.CLIENTS: len(left)})
        try:
            rows = _call(executor, _send(executor, inspect), left)
        except grpc.RpcError as error:
            if _is_lost(error):
                raise
            raise NoWorkersError(
                f"The worker {self.address} lacks the examples of clients: "
                f"{_first_line(error)}; copy them to its --data_dir."
            ) from None
        wrong = [c for c, row in zip(left, rows) if tuple(map(int, row)) != expected[c]]
        if wrong:
            raise NoWorkersError(
                f"The worker {self.address} has other examples of the clients "
                f"{wrong[:5]} than this machine: another data set or partition."
            )
        self.checked |= {(process, client) for client in left}


def _send(executor: Any, compiled: Any) -> Any:
    """Sends a computation once for all calls."""
    return asyncio.run(executor.create_value(compiled, compiled.type_signature))


def _call(executor: Any, computation: Any, argument: Any) -> Any:
    """Returns what a computation that was sent returns."""

    async def call() -> Any:
        parameter = computation.type_signature.parameter
        sent = await executor.create_value(argument, parameter)
        return await (await executor.create_call(computation, sent)).compute()

    return asyncio.run(call())


def _is_lost(error: Exception) -> bool:
    """Returns whether an error is of the connection, not of the computation."""
    if isinstance(error, tff.framework.RetryableError):
        return True
    return isinstance(error, grpc.RpcError) and error.code().name in _LOST


def _first_line(error: Any) -> str:
    return str(error.details()).split("\n")[0]


def _wait_for(path: pathlib.Path) -> None:
    deadline = time.monotonic() + 10
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
