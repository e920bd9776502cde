"""TensorFlow functions that every graph has for itself.

A `tf.function` keeps the graphs in which it was traced. Those of a module would keep
what every federated process was built of, 40 MB for that of a tiny model.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

import tensorflow as tf

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
