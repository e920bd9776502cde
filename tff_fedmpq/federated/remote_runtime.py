"""The clients of a round on other machines, by workers that may fail.

    process.next(state, ids)
       |  select: a client's message                          here, one after another
       v
    queue of clients (`remote_round`) --> whichever connection is free (`remote_host`):
       |  work: read own examples, train, pack                `tff_fedmpq.worker`s
       v
    results in the order of the ids
       |  accumulate: check, decode, add                      here, as they come
       v
    finish: next state                                        here

A client's result is a function of its message, which holds its seed, and of its
examples: whoever computes it, and however often, it is the same. So a client is done
again by another worker when its own is lost, and, when a worker has nothing left to do,
also while a slow one is still at it; the first result counts. Results are added in the
order of ids, in one place: their sums do not depend on who was how fast.

The numbers are those of `local_runtime`, to the last bit, where processors and threads
per operation are the same; TensorFlow's kernels round differently elsewhere.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import logging

from tff_fedmpq._tff import tff
from tff_fedmpq.federated import wire
from tff_fedmpq.federated.remote_calls import Calls, WeakTable, is_lost
from tff_fedmpq.federated.remote_host import Host, NoWorkersError
from tff_fedmpq.federated.remote_round import Round
from tff_fedmpq.federated.runtime import (
    Worker,
    compile_computation,
    owned_worker,
    sync_context,
)
from tff_fedmpq.files import PathLike

_POLL_SECONDS = 1.0
_MESSAGES = 2  # How many are made at the same time.


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
    with owned_worker(log_path, wait_seconds, 1, data_dir) as worker:
        with contextlib.ExitStack() as stack:
            options = tls_dir, insecure, answer_seconds, wait_seconds, log_path
            context = RemoteContext(worker, addresses, *options)
            stack.callback(context.close)
            with tff.framework.get_context_stack().install(context):
                yield context


class RemoteContext(tff.framework.SyncContext):
    """TFF context of `remote_runtime`.

    Attributes:
      report: Of the last round: clients by worker, seconds of each part, and events.
    """

    def __init__(
        self,
        worker: Worker,
        addresses: Iterable[str],
        tls_dir: PathLike | None,
        insecure: bool,
        answer_seconds: float,
        wait_seconds: float,
        log_path: PathLike | None,
    ):
        self.wait_seconds, self.log_path = wait_seconds, log_path or os.devnull
        self.tls_dir, self.answer_seconds = tls_dir, answer_seconds
        self.local = sync_context(worker)
        self._worker, self._own = worker, Calls(worker.stub, self.compiled)
        self._given, self._insecure = list(addresses), insecure
        self.changed, self.is_closed = threading.Condition(), False
        self.round: Round | None = None
        self.hosts: dict[str, Host] = {}
        self.report: dict[str, Any] = {}
        self._events: list[str] = []
        self._compiled = WeakTable()
        # What workers shall find, by `inspect`: examples and digest by client.
        self.expected = WeakTable()
        self._follow_addresses()
        threading.Thread(target=self._watch, daemon=True).start()

    def invoke(self, comp: Any, arg: Any) -> Any:
        """Runs a computation here, or the round of one of our processes on workers."""
        if (split := getattr(comp, "split", None)) is None:
            return self.local.invoke(comp, arg)
        started, parts, (state, client_ids) = time.monotonic(), split(), arg
        client_ids = list(client_ids)
        expected = self._expect(parts.inspect, client_ids)
        sizes = [expected[client_id][0] for client_id in client_ids]
        slots = max(1, self._count_connections())
        current = Round(parts, client_ids, sizes, slots)
        checked = time.monotonic()
        for computation in (parts.inspect, parts.work):
            self.compiled(computation)
        with self._under_way(current):
            added = self._add_up(current, state)
        whole = tff.structure.Struct.unnamed(state, *added)
        output = self.local.invoke(parts.finish, whole)
        times = [started, checked, current.first_sent, current.last_back]
        times = [time or checked for time in times] + [time.monotonic()]
        names = "check", "first_message", "clients", "finish"
        seconds = {n: b - a for n, a, b in zip(names, times, times[1:])}
        self.report = {**current.report, "seconds": seconds}
        return output

    def _add_up(self, current: Round, state: Any) -> list[Any]:
        """Returns the sums over all clients; also their answers, if `finish` takes any.

        Messages are made, and results added, while workers are busy.
        """
        parts, own, answers = current.parts, self._own, []
        takes_answers = len(parts.finish.type_signature.parameter) > 2
        present = own.send(state, parts.select.type_signature.parameter[0])
        sums, num_added = own.start(parts.zero), 0
        asking = (
            (job, own.start(parts.select, present, job.client_id))
            for job in current.order
        )
        asked: collections.deque[Any] = collections.deque()
        while num_added < len(current.jobs):
            asked.extend(itertools.islice(asking, _MESSAGES - len(asked)))
            self._wait(current, num_added, bool(asked))
            if num_added in current.results:
                answer = current.release(num_added)
                sums = own.start(parts.accumulate, sums, answer)
                num_added += 1
                if takes_answers:
                    answers.append(answer)
            elif current.wants_messages:
                job, selected = asked.popleft()
                key, message, ticket = own.get(selected)
                with self.changed:
                    current.offer(job, (job.client_id, key, message), ticket)
                    self.changed.notify_all()
        return [own.get(sums), answers][: 1 + takes_answers]

    def _wait(self, current: Round, index: int, has_messages: bool) -> None:
        """Waits for the result of a client, or until workers want a message.

        Raises NoWorkersError if there is no worker for too long, and what ended the
        round.
        """

        def is_busy() -> bool:
            wants = has_messages and current.wants_messages
            return index in current.results or wants or current.error is not None

        with self.changed:
            while not is_busy():
                self.changed.wait(_POLL_SECONDS)
                now = time.monotonic()
                if self._count_connections():
                    self._last_seen = now
                elif now - self._last_seen > self.wait_seconds:
                    raise NoWorkersError(
                        f"None of the workers {sorted(self.hosts)} answers: "
                        + "; ".join(current.report["events"][-3:])
                    )
            if current.error is not None:
                raise current.error

    @contextlib.contextmanager
    def _under_way(self, current: Round) -> Iterator[None]:
        """Lets workers take clients of a round inside the block."""
        self._last_seen = time.monotonic()
        with self.changed:
            self.round = current
            current.report["events"], self._events = self._events, []
        try:
            yield
        except Exception as error:
            if is_lost(error):  # Other workers' errors do not come here.
                event = "The TFF worker ended while it was in use"
                raise self._worker.error(event) from error
            raise
        finally:
            with self.changed:
                self.round = None
        for name in ("workers", "busy_seconds"):
            current.report[name] = dict(sorted(current.report[name].items()))

    def compiled(self, computation: Any) -> Any:
        """Returns what is sent to workers; compiled once for all connections."""
        if (compiled := self._compiled.get(computation)) is None:
            self._compiled[computation] = compiled = compile_computation(computation)
        return compiled

    def _expect(self, inspect: Any, client_ids: list[bytes]) -> dict[str, Any]:
        """Returns number and digest of the examples of clients, these included."""
        if (known := self.expected.get(inspect)) is None:
            self.expected[inspect] = known = {}
        if new := [client for client in client_ids if client not in known]:
            rows = self.local.invoke(inspect, new)
            known |= {client: tuple(map(int, row)) for client, row in zip(new, rows)}
        return known

    def _count_connections(self) -> int:
        return sum(len(host.connections) for host in list(self.hosts.values()))

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
                self.hosts[address] = Host(self, address)
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
