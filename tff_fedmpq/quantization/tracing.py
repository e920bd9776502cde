"""TensorFlow functions that every graph has for itself, so that none keeps graphs.

A `tf.function` keeps those in which it was traced, and TensorFlow those of gradients:
all that federated processes were built of, 40 MB for that of a tiny model.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, Callable

import tensorflow as tf
from tensorflow.python.framework import ops

_FUNCTIONS = "_tff_fedmpq_functions"  # Attribute of a graph.


def traced(signature: Any = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a function as `tf.function` does, without AutoGraph.

    It is traced once for each outermost graph, if any, and ends with it. `signature` is
    its `input_signature`.
    """
    trace = functools.partial(tf.function, input_signature=signature, autograph=False)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        shared = trace(function)

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            with tf.init_scope():
                if tf.executing_eagerly():
                    own = shared
                else:
                    graph = tf.compat.v1.get_default_graph()
                    of_graph = getattr(graph, _FUNCTIONS, {})
                    setattr(graph, _FUNCTIONS, of_graph)
                    if function not in of_graph:
                        of_graph[function] = trace(function)
                    own = of_graph[function]
            return own(*args)

        return call

    return decorate


@contextlib.contextmanager
def forgotten_gradients() -> Iterator[None]:
    """Unregisters, after the block, gradients of functions that were traced in it.

    TensorFlow keeps them, and so their graphs, which once they are whole need none.
    """
    registry = ops.gradient_registry._registry
    before = set(registry)
    try:
        yield
    finally:
        for name in set(registry) - before:
            del registry[name]
