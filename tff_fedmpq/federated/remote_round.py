"""A round whose clients are done by several workers: which is next, and what is back.

    order ──> message asked for ──> waiting ──> under way ──> result ──> added
              (`RemoteContext`)                 (`Host`)                 in order of ids

Nothing here locks: all methods are called under the lock of the context.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from typing import Any

_PATIENCE = 3.0  # A client is done twice when it takes so many times the usual.
_PATIENCE_SECONDS = 5.0  # And so many seconds more.
_AHEAD = 2  # Messages that wait for each connection.


class Job:
    """A client in a round; `size` is its number of examples."""

    def __init__(self, index: int, client_id: bytes, size: int):
        self.index, self.client_id, self.size = index, client_id, size
        self.argument: Any = None  # Of its work, as soon as its message is there.
        self.ticket: Any = None  # Stays here: no worker can forge one.
        self.started: dict[Any, float] = {}  # Which workers are at it, since when.


class Round:
    """What is left of a round.

    Attributes:
      parts: The process's `RoundParts`.
      jobs: Its clients in the order given.
      order: The same in the order in which they are done.
      results: What clients returned, by index; None once it is released.
      report: Clients and seconds of work by worker, and events.
    """

    def __init__(
        self, parts: Any, client_ids: Sequence[bytes], sizes: Sequence[int], slots: int
    ):
        self.parts = parts
        self.jobs = [Job(i, c, n) for i, (c, n) in enumerate(zip(client_ids, sizes))]
        self.order = [self.jobs[i] for i in in_order(sizes, slots)]
        self.waiting: collections.deque[Job] = collections.deque()
        self.results: dict[int, Any] = {}
        self.error: Exception | None = None
        self._slots, self._pace = slots, 0.0  # Most seconds per example so far.
        self.first_sent = self.last_back = 0.0  # When.
        self.report: dict[str, Any] = {
            "workers": collections.Counter(),
            "busy_seconds": collections.Counter(),
            "events": [],
        }

    @property
    def wants_messages(self) -> bool:
        """Whether workers may soon have nothing to do."""
        return len(self.waiting) < _AHEAD * self._slots

    def offer(self, job: Job, argument: Any, ticket: Any) -> None:
        """Lets workers take a client, whose message is there now."""
        self.first_sent = self.first_sent or time.monotonic()
        job.argument, job.ticket = argument, ticket
        self.waiting.append(job)

    def take(self, host: Any) -> Job | None:
        """Returns a client for a worker: one that waits, or one that takes too long."""
        if self.error:
            return None
        now = time.monotonic()
        while self.waiting:
            job = self.waiting.popleft()
            if job.index not in self.results:
                job.started[host] = now
                return job
        if not self._pace:
            return None
        for job in self.order:
            if job.index in self.results or not job.started or host in job.started:
                continue
            usual = _PATIENCE_SECONDS + _PATIENCE * self._pace * (job.size + 1)
            if all(now - start > usual for start in job.started.values()):
                job.started[host] = now
                return job
        return None

    def put_back(self, host: Any) -> None:
        """Lets others take the clients of a worker that is lost."""
        for job in self.jobs:
            if job.started.pop(host, None) is not None and not job.started:
                self.waiting.appendleft(job)

    def give(self, host: Any, job: Job, result: Any, seconds: float) -> None:
        """Takes a client's result, of which the first counts."""
        job.started.pop(host, None)
        if job.index in self.results:
            return
        self.results[job.index], self.last_back = result, time.monotonic()
        self.report["workers"][host.address] += 1
        self.report["busy_seconds"][host.address] += seconds
        self._pace = max(self._pace, seconds / (job.size + 1))

    def release(self, index: int) -> tuple[Any, Any]:
        """Returns a client's result and ticket, and keeps neither."""
        job, result = self.jobs[index], self.results[index]
        self.results[index] = job.argument = None
        return result, job.ticket


def in_order(sizes: Sequence[int], slots: int) -> list[int]:
    """Returns the order in which clients of these sizes are done, as indices.

    It is the order given, in which results are added, but for clients that alone take
    as long as all that is left on `slots` workers: they are next, as the round would
    have to wait for them at its end.
    """
    left = dict.fromkeys(range(len(sizes)))
    by_size = sorted(left, key=lambda i: (-sizes[i], i))
    remaining, order = sum(sizes), []
    for biggest in by_size:
        while biggest in left:
            is_long = sizes[biggest] * slots >= remaining
            index = biggest if is_long else next(iter(left))
            del left[index]
            remaining -= sizes[index]
            order.append(index)
    return order
