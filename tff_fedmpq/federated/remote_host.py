"""A worker on another machine: whether it is there, and the clients that it does."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc

from tff_fedmpq._tff import tff
from tff_fedmpq.federated import wire
from tff_fedmpq.federated.remote_calls import Calls, WeakTable, first_line, is_lost
from tff_fedmpq.federated.remote_round import Job, Round
from tff_fedmpq.federated.runtime import Stub
from tff_fedmpq.version import __version__

if TYPE_CHECKING:
    from tff_fedmpq.federated.remote_runtime import RemoteContext

_POLL_SECONDS = 1.0


class NoWorkersError(ConnectionError):
    """No worker is left, or one cannot be used; a run continues from its checkpoint."""


class Host:
    """A worker: whether it is there, and a connection for each client at a time."""

    def __init__(self, context: RemoteContext, address: str):
        self._context, self.address = context, address
        self.connections: list[Stub] = []
        self._gone, self._was_there = threading.Event(), True
        self._checked = WeakTable()  # By process, the clients whose data was compared.
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
            stubs = [Stub(target) for _ in range(int(about["slots"]))]
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
            if self._context.round is not None:
                self._context.round.put_back(self)
            self._context.changed.notify_all()
        self._checked = WeakTable()
        for stub in stubs:  # Ends calls that are under way.
            stub.close()
        if is_news and why is not None:
            self._context.note(f"{self.address} {why}")

    def leave(self, why: str | None) -> None:
        """Forgets the worker."""
        self._gone.set()
        self.lose(why)

    def _serve(self, stub: Stub) -> None:
        """Does clients on one connection, until it is lost."""
        try:
            calls = Calls(stub, self._context.compiled)
            while self._do_next(calls, stub):
                pass
        except Exception as error:
            if stub.is_closed or stub not in self.connections:
                return  # It is known to be lost.
            if is_lost(error):
                self.lose("was lost while it was in use")
                return
            # Of the computation itself: another worker would find the same.
            if isinstance(error, grpc.RpcError):
                error = ValueError(f"A client failed: {first_line(error)}")
            self._context.fail(error)
            self.lose(None)

    def _do_next(self, calls: Calls, stub: Stub) -> bool:
        """Does a client as soon as there is one; False when the worker is lost."""
        if (task := self._next_job(stub)) is None:
            return False
        current, job, argument = task
        self._compare(stub, current)
        begun = time.monotonic()
        result = calls.get(calls.start(current.parts.work, *argument))
        with self._context.changed:
            current.give(self, job, result, time.monotonic() - begun)
            self._context.changed.notify_all()
        return True

    def _next_job(self, stub: Stub) -> tuple[Round, Job, Any] | None:
        """Returns a client as soon as there is one; None when the worker is lost."""
        with self._context.changed:
            while stub in self.connections:
                current = self._context.round
                if current and (job := current.take(self)):
                    self._context.changed.notify_all()  # Another message is wanted.
                    return current, job, job.argument
                self._context.changed.wait(_POLL_SECONDS)
        return None

    def _compare(self, stub: Stub, current: Round) -> None:
        """Raises NoWorkersError unless the worker has the examples of this machine."""
        inspect = current.parts.inspect
        expected = self._context.expected.get(inspect)
        checked = self._checked.get(inspect) or set()
        left = [job.client_id for job in current.jobs if job.client_id not in checked]
        if not left:
            return
        calls = Calls(stub, self._context.compiled, {tff.CLIENTS: len(left)})
        try:
            rows = calls.get(calls.start(inspect, left))
        except grpc.RpcError as error:
            if is_lost(error):
                raise
            raise NoWorkersError(
                f"The worker {self.address} lacks the examples of clients: "
                f"{first_line(error)}; copy them to its --data_dir."
            ) from None
        wrong = [c for c, row in zip(left, rows) if tuple(map(int, row)) != expected[c]]
        if wrong:
            raise NoWorkersError(
                f"The worker {self.address} has other examples of the clients "
                f"{[client_id.decode() for client_id in wrong[:5]]} than this machine: "
                "another data set or partition."
            )
        self._checked[inspect] = checked | set(left)


def _wait_for(path: pathlib.Path) -> None:
    deadline = time.monotonic() + 10
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
