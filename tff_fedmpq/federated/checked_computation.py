"""A computation whose arguments are checked in Python before it runs."""

from __future__ import annotations

import re
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from tff_fedmpq._tff import tff


class CheckedComputation(tff.framework.ConcreteComputation):
    """A computation of two arguments, which a Python function gets before it runs.

    Errors of our assertions inside of it become a ValueError of one line.
    """

    def __init__(self, computation: tff.Computation, function: Callable[..., Any]):
        super().__init__(
            computation_proto=tff.framework.ConcreteComputation.get_proto(computation),
            context_stack=tff.framework.get_context_stack(),
            annotated_type=computation.type_signature,
        )
        self.split = getattr(computation, "split", None)  # Of `remote_runtime`.
        self._names = tff.structure.name_list(computation.type_signature.parameter)
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        named = dict(zip(self._names, args)) | kwargs
        if len(args) + len(kwargs) != 2 or set(named) != set(self._names):
            raise TypeError(f"Expected the arguments {', '.join(self._names)}.")
        return self._function(self._call, *(named[name] for name in self._names))

    def _call(self, *args: Any) -> Any:
        try:
            return super().__call__(*args)
        except Exception as error:  # gRPC's, with ten lines of where it came from.
            found = re.search(r"assertion failed: \[(.*?)\]\s*(?:\[|\\n|$)", str(error))
            if found is None:
                raise
            raise ValueError(found[1]) from None


def is_reference(value: Any) -> bool:
    """Returns whether an argument stands for a value, as in federated programs."""
    kinds = tff.Value, tff.program.MaterializableValueReference
    return any(isinstance(part, kinds) for part in tf.nest.flatten(value))


def shapes_of(value: Any) -> list[list[int | None]]:
    """Returns the shapes of all tensors of a value, or of a type."""
    if isinstance(value, tff.Type):
        value = tff.types.type_to_tf_tensor_specs(value)
    return [list(getattr(x, "shape", np.shape(x))) for x in tf.nest.flatten(value)]
