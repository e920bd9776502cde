"""Calls of computations on a TFF worker.

TFF's contexts send a computation with each call, and wait for its result. Here it is
sent once, and what it returns stays on the worker until somebody asks for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Callable

import grpc

from tff_fedmpq._tff import tff
from tff_fedmpq.federated.waiting import wait_for

_LOST = {"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"}


class WeakTable:
    """Values of objects, each kept for as long as its object is.

    Objects are told apart by identity: to compare computations takes all of them.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Any, Any]] = {}

    def get(self, key: Any) -> Any:
        """Returns the value of an object, or None."""
        return self._kept.get(id(key), (None,))[0]

    def __setitem__(self, key: Any, value: Any) -> None:
        kept, number = self._kept, id(key)
        kept[number] = value, weakref.ref(key, lambda _: kept.pop(number, None))


class OnWorker:
    """A value that is on a worker, or will be: it may still be computed there."""

    def __init__(self, value: Any):
        self.value = value


class Calls:
    """Computations on one worker; for one thread at a time.

    Args:
      stub: Connection to the worker.
      compiled: What is sent of a computation.
      cardinalities: How many there are of each placement.
    """

    def __init__(
        self,
        stub: Any,
        compiled: Callable[[Any], Any],
        cardinalities: Mapping[Any, int] | None = None,
    ):
        self._executor = tff.framework.RemoteExecutor(stub)
        self._executor.set_cardinalities({tff.CLIENTS: 0, **(cardinalities or {})})
        self._compiled = compiled
        self._sent = WeakTable()

    def send(self, value: Any, type_signature: tff.Type) -> OnWorker:
        """Sends a value that several calls take."""
        return OnWorker(wait_for(self._executor.create_value(value, type_signature)))

    def start(self, computation: Any, *arguments: Any) -> OnWorker:
        """Starts a computation on arguments that are here or on the worker."""
        return OnWorker(wait_for(self._start(computation, arguments)))

    def get(self, value: OnWorker) -> Any:
        """Waits for a value and returns it; raises what its computation raised."""
        return wait_for(value.value.compute())

    async def _start(self, computation: Any, arguments: Any) -> Any:
        create = self._executor.create_value
        if (function := self._sent.get(computation)) is None:
            compiled = self._compiled(computation)
            function = await create(compiled, compiled.type_signature)
            self._sent[computation] = function
        parameter, argument = function.type_signature.parameter, None
        if any(isinstance(part, OnWorker) for part in arguments):
            parts = [
                part.value if isinstance(part, OnWorker) else await create(part, kind)
                for part, kind in zip(arguments, parameter)
            ]
            argument = await self._executor.create_struct(parts)
        elif arguments:
            whole = tff.structure.Struct.unnamed(*arguments)
            argument = await create(whole if arguments[1:] else arguments[0], parameter)
        return await self._executor.create_call(function, argument)


def is_lost(error: Exception) -> bool:
    """Returns whether an error is of the connection, not of the computation."""
    if isinstance(error, tff.framework.RetryableError):
        return True
    return isinstance(error, grpc.RpcError) and error.code().name in _LOST


def first_line(error: Any) -> str:
    """Returns what gRPC says of a computation that failed."""
    return str(error.details()).split("\n")[0]
