"""TFF's execution context, which forgets computations that nobody holds any more.

TFF's own keeps what it compiled, 128 computations, and the worker the graphs of all
that it ran, once for each number of clients in a round: of a tiny model 45 MB here and
300 MB there, for every process that a program builds as clients join or leave. Here a
compiled computation goes with its source; and once those that are gone outweigh those
that are in use, the worker's executors are closed, which frees their graphs.
"""

from __future__ import annotations

import weakref
from typing import Any, Callable

from tff_fedmpq._tff import tff


class ExecutorFactory(tff.framework.ResourceManagingExecutorFactory):
    """Keeps an executor for each of the last numbers of clients, and closes others."""

    def create_executor(self, cardinalities: Any) -> Any:
        before = dict(self._executors)
        executor = super().create_executor(cardinalities)
        for key in before.keys() - self._executors.keys():
            before[key].close()  # TFF would leave it, and its graphs, in the worker.
        return executor

    def close(self) -> None:
        """Closes all executors; later ones are new."""
        for executor in self._executors.values():
            executor.close()
        self._executors.clear()


class ExecutionContext(tff.framework.AsyncExecutionContext):
    """As TFF's, with less memory; arguments are its own but for the factory."""

    def __init__(
        self,
        executor_fn: ExecutorFactory,
        compiler_fn: Callable[[tff.Computation], tff.Computation],
        **arguments: Any,
    ):
        super().__init__(executor_fn, compiler_fn, **arguments)
        self._compiler_pipeline = _Compiler(compiler_fn)
        self._calls = 0  # In progress.

    async def invoke(self, comp: Any, arg: Any) -> Any:
        compiler = self._compiler_pipeline
        if not self._calls and compiler.forgotten_bytes > compiler.used_bytes:
            self.executor_factory.close()
            compiler.forgotten_bytes = 0
        self._calls += 1
        try:
            return await super().invoke(comp, arg)
        finally:
            self._calls -= 1


class _Compiler:
    """Compiles each computation once, as long as it exists."""

    def __init__(self, compiler_fn: Callable[[tff.Computation], tff.Computation]):
        self._compiler_fn = compiler_fn
        self._compiled: Any = weakref.WeakKeyDictionary()
        self.used_bytes = self.forgotten_bytes = 0

    def compile(self, computation: tff.Computation) -> tff.Computation:
        compiled = self._compiled.get(computation)
        if compiled is None:
            compiled = self._compiled[computation] = self._compiler_fn(computation)
            proto = tff.framework.ConcreteComputation.get_proto(compiled)
            self.used_bytes += proto.ByteSize()
            forget = weakref.finalize(computation, self._forget, proto.ByteSize())
            forget.atexit = False
        return compiled

    def _forget(self, size: int) -> None:
        self.used_bytes -= size
        self.forgotten_bytes += size
