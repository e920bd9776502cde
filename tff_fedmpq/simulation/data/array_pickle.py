"""Reads pickles of plain values and NumPy arrays, such as CIFAR's, from anybody.

Unpicklers trust what they read. One wrong byte can name a function to call, ask for a
memo of gigabytes, or make NumPy's own `__setstate__` end the process. This one is
Python's in Python, whose memo grows with what is in it. It knows few opcodes, keys of
dictionaries that are text, and arrays, which it makes of their bytes.
"""

from __future__ import annotations

import io
import os
import pickle
import re
from typing import Any

import numpy as np

# Of lists, tuples, text, bytes, numbers and NumPy's arrays.
_OPCODES = (
    "PROTO FRAME STOP MARK EMPTY_DICT EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE "
    "TUPLE1 TUPLE2 TUPLE3 NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "
    "BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES "
    "BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"
).split()
_DTYPES = re.compile("[iuf][1248]|b1")


class _DType:
    """A dtype of numbers."""

    def __init__(self, name: Any, *_: Any):
        if not _DTYPES.fullmatch(os.fsdecode(name)):
            raise pickle.UnpicklingError(f"it has an array of {name!r}")
        self.value = np.dtype(os.fsdecode(name))

    def __setstate__(self, state: Any) -> None:
        order: Any = os.fsdecode(state[1])
        self.value = self.value.newbyteorder(order)


class _Array:
    """An array of numbers; constructors give an empty one, whose state is the rest."""

    def __init__(self, *_: Any):
        self.value = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        values = np.frombuffer(content, dtype.value)
        self.value = values.reshape(shape, order="F" if is_fortran else "C")


_GLOBALS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
}


_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):
    """Knows no other objects than arrays; raises KeyError for other opcodes."""

    dispatch = {
        code: _PythonUnpickler.dispatch[code]
        for code in (getattr(pickle, name)[0] for name in _OPCODES)
    }

    stack: Any  # The base sets it.

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core.", "numpy.core.")  # As NumPy 2 writes.
        if (module, name) not in _GLOBALS:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no official file does, refused"
            )
        return _GLOBALS[module, name]

    def _set_items(self) -> None:
        items = self.pop_mark()
        # The hash of a tuple that is nested deeply enough would end the process.
        if not all(isinstance(key, (bytes, str)) for key in items[::2]):
            raise pickle.UnpicklingError("it has a key that is no text")
        self.stack[-1].update(zip(items[::2], items[1::2]))

    def _set_item(self) -> None:
        self.metastack.append(self.stack[:-2])
        self.stack = self.stack[-2:]
        self._set_items()

    dispatch[pickle.SETITEMS[0]] = _set_items
    dispatch[pickle.SETITEM[0]] = _set_item


def load(content: bytes) -> Any:
    """Returns what a pickle holds, arrays for `as_array`; raises nearly any error."""
    return _Unpickler(io.BytesIO(content), encoding="bytes").load()


def as_array(value: Any) -> np.ndarray:
    """Returns an array, or a list of numbers as one; else TypeError."""
    if isinstance(value, _Array):
        return value.value
    is_list = isinstance(value, list)
    if not is_list or not all(isinstance(x, (int, float)) for x in value):
        raise TypeError("it has no array or list of numbers where one should be")
    return np.asarray(value)
