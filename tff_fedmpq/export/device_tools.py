"""Stores a TFLite file's weights in few bits, and runs the file as a device does.

This program runs in an environment of its own, in which the packages of LiteRT and
TFLite Micro are, and imports nothing of tff_fedmpq::

    python device_tools.py write litert|micro FOLDER
    python device_tools.py run litert|micro FOLDER

`write` reads ``FOLDER/float.tflite``, whose weights are float constants, and
``kernels.npz``: per kernel its codes minus ``2**(b-1)``, int8, and a row (b, half) of
``bits``. It finds each kernel among the constants, as a factor per channel, such as a
folded BatchNorm's, times ``code + half / 2``. In the place of the constant come
integers and the operations that make the same floats of them::

    integers -> DEQUANTIZE -> [ADD half a step] -> [MUL per channel] -> operation

Odd integers ``2 code + 1`` need no ADD and are taken where they fit. `run` feeds
``inputs.npz``, and writes ``outputs.npz``. Both write ``FOLDER/report.json``.
"""

from __future__ import annotations

import itertools
import json
import operator
import pathlib
import sys
from dataclasses import dataclass

import numpy as np

_CLOSE = 1e-5  # Largest relative error of a constant that is a kernel.
_MICRO_ARENA = 2**24
_LUT_BITS = 7  # Of TFLite Micro's lookup tables.


@dataclass(frozen=True)
class Kernel:
    """Codes of a kernel in the order of a constant of the file.

    Attributes:
      codes: Codes less ``2**(bits - 1)``, int8 of the constant's shape.
      bits: Bits per code.
      is_half: Whether the levels are ``codes + 1/2``.
      axis: Axis of the constant with a factor per channel; None is one for all.
      factors: Factors of the levels, float32.
    """

    codes: np.ndarray
    bits: int
    is_half: bool
    axis: int | None
    factors: np.ndarray

    def integers(self, largest: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """Returns integers up to `largest`, their factors, and if half is to add."""
        odd = 2 * self.codes.astype(np.int16) + 1
        if self.is_half and odd.max(initial=0) <= largest:
            return odd.astype(np.int8), self.factors / 2, False
        return self.codes, self.factors, self.is_half

    def along(self, values: np.ndarray) -> np.ndarray:
        """Returns values per channel in a shape that multiplies the constant."""
        shape = [1] * self.codes.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        return values.astype(np.float32).reshape(shape)


def find_kernel(constant, kernels) -> tuple[int, Kernel] | None:
    """Returns the number of the kernel that a float constant holds, and how."""
    for number, (codes, bits, is_half) in enumerate(kernels):
        if codes.size != constant.size:
            continue
        for order in itertools.permutations(range(codes.ndim)):
            moved = codes.transpose(order)
            if not _same_order(moved.shape, constant.shape):
                continue
            moved = moved.reshape(constant.shape)
            for axis in (None, 0, constant.ndim - 1):
                factors = _factors(constant, moved + is_half / 2, axis)
                if factors is not None:
                    return number, Kernel(moved, bits, is_half, axis, factors)
    return None


def _same_order(shape, other) -> bool:
    """Returns whether a reshape joins or splits neighbouring axes only."""
    one, two = (
        set(itertools.accumulate((1, *s), operator.mul)) for s in (shape, other)
    )
    return one <= two or two <= one


def _factors(constant, levels, axis) -> np.ndarray | None:
    """Returns the factors with ``constant = factors * levels``, or None."""
    if axis is None:
        rows, products = levels.reshape(1, -1), constant.reshape(1, -1)
    else:
        count = constant.shape[axis]
        if count == constant.size:  # One weight is a multiple of any.
            return None
        rows = np.moveaxis(levels, axis, 0).reshape(count, -1)
        products = np.moveaxis(constant, axis, 0).reshape(count, -1)
    rows, products = rows.astype(np.float64), products.astype(np.float64)
    squares = (rows * rows).sum(1)
    factors = (rows * products).sum(1) / np.where(squares > 0, squares, 1)
    errors = np.abs(products - factors[:, None] * rows).max(1)
    if (errors > _CLOSE * np.abs(products).max(1)).any():
        return None
    return factors.astype(np.float32)


def write(target: str, folder: pathlib.Path) -> dict:
    """Writes ``FOLDER/device.tflite`` and returns what it stores."""
    from tflite_micro import compression
    from tflite_micro.tensorflow.lite.micro.compression import model_editor
    from tflite_micro.tensorflow.lite.micro.tools import (
        tflite_flatbuffer_align_wrapper,
    )

    with np.load(folder / "kernels.npz") as file:
        bits = file["bits"].tolist()
        kernels = [(file[str(i)], *row) for i, row in enumerate(bits)]
    model = model_editor.read((folder / "float.tflite").read_bytes())
    found, tables = set(), []
    for number, subgraph in enumerate(model.subgraphs):
        for tensor in list(subgraph.tensors):
            _use_int8(tensor)
            if tensor.buffer is None or not _is_float_constant(tensor):
                continue
            match = find_kernel(tensor.array, kernels)
            if match is None:
                continue
            found.add(match[0])
            stored = _replace(subgraph, tensor, match[1], target)
            if target == "micro" and match[1].bits <= _LUT_BITS:
                tables.append((number, stored, match[1].bits))
    model_editor.prune_buffers(model)  # The floats.
    content = bytes(model.build())
    if tables:
        content = bytes(compression.compress(content, _table_specs(tables)))
    (folder / "unaligned.tflite").write_bytes(content)
    tflite_flatbuffer_align_wrapper.align_tflite_model(
        str(folder / "unaligned.tflite"), str(folder / "device.tflite")
    )
    return {"found": sorted(found)}


def _use_int8(tensor) -> None:
    """Turns quantized activations from uint8 into int8, which is the same numbers."""
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    if tensor.dtype == schema.TensorType.UINT8 and tensor.quantization is not None:
        tensor.dtype = schema.TensorType.INT8
        zeros = np.atleast_1d(tensor.quantization.zero_points)
        tensor.quantization.zero_points = [int(zero) - 128 for zero in zeros]


def _is_float_constant(tensor) -> bool:
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    return tensor.dtype == schema.TensorType.FLOAT32 and len(tensor.buffer.data) > 4


def _replace(subgraph, tensor, kernel: Kernel, target: str):
    """Lets operations make a float constant of integers; returns the integers' tensor.

    LiteRT reads int4 where they fit, TFLite Micro has one factor per DEQUANTIZE.
    """
    from tflite_micro.tensorflow.lite.micro.compression import model_editor
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    is_litert = target == "litert"
    is_int4 = is_litert and kernel.bits <= 4
    values, factors, adds_half = kernel.integers(7 if is_int4 else 127)
    axis = kernel.axis if factors.size > 1 else None
    multiplies = axis is not None and not is_litert
    scales = np.ones(1, np.float32) if multiplies else factors
    quantization = model_editor.Quantization(
        scales.tolist(), [0] * scales.size, axis if scales.size > 1 else None
    )
    stored = subgraph.add_tensor(
        name=f"{tensor.name}_codes",
        shape=tensor.shape,
        dtype=schema.TensorType.INT4 if is_int4 else schema.TensorType.INT8,
        data=_nibbles(values) if is_int4 else values.tobytes(),
        quantization=quantization,
    )
    steps: list = [("Dequantize", None)]
    if adds_half:
        half = np.full(1, 0.5, np.float32) if multiplies else kernel.along(factors / 2)
        steps.append(("Add", half))
    if multiplies:
        steps.append(("Mul", kernel.along(factors)))
    operations, source = [], stored
    for number, (name, operand) in enumerate(steps):
        is_last = number == len(steps) - 1
        result = tensor if is_last else tensor.copy(f"{tensor.name}_{number}")
        result.buffer = None
        opcode = getattr(schema.BuiltinOperator, name.upper())
        operation = model_editor.Operator(opcode, [source], [result])
        if operand is not None:
            constant = model_editor.Tensor(operand.shape, tensor.dtype, data=operand)
            operation.inputs.append(constant)
            kind = getattr(schema.BuiltinOptions, f"{name}Options")
            operation._fb.builtinOptionsType = kind
            operation._fb.builtinOptions = getattr(schema, f"{name}OptionsT")()
        operations.append(operation)
        source = result
    first = min(map(subgraph.operators.index, subgraph.consumers_of(tensor)), default=0)
    subgraph.operators[first:first] = operations
    return stored


def _nibbles(values: np.ndarray) -> bytes:
    """Returns int4 in bytes, the first in the low half."""
    flat = values.reshape(-1).view(np.uint8) & 15
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    return (flat[::2] | flat[1::2] << 4).tobytes()


def _table_specs(tables) -> list:
    """Returns TFLite Micro's specification of lookup tables, one per kernel."""
    from tflite_micro.tensorflow.lite.micro.compression import spec

    return [
        spec.Tensor(
            subgraph,
            tensor.index,
            [spec.LookUpTableCompression(bits, spec.PerTensor())],
        )
        for subgraph, tensor, bits in tables
    ]


def run(target: str, folder: pathlib.Path) -> dict:
    """Feeds each example of ``inputs.npz`` to the device's runtime."""
    content = (folder / "device.tflite").read_bytes()
    given, got = _names(content)
    with np.load(folder / "inputs.npz") as file:
        inputs = [file[_input_name(name)] for name in given]
    invoke = (_litert if target == "litert" else _micro)(content, len(got))
    outputs = [invoke([x[i : i + 1] for x in inputs]) for i in range(len(inputs[0]))]
    # The converter numbers the outputs, and may store them in another order.
    order = sorted(range(len(got)), key=lambda i: int(got[i].rpartition(":")[2]))
    parts = list(zip(*outputs))
    joined = {str(i): np.concatenate(parts[j]) for i, j in enumerate(order)}
    np.savez(folder / "outputs.npz", **joined)
    return {"examples": len(outputs)}


def _names(content: bytes) -> tuple[list[str], list[str]]:
    """Returns the names of a file's inputs and outputs."""
    from tflite_micro.tensorflow.lite.micro.compression import model_editor

    subgraph = model_editor.read(content).subgraphs[0]
    return [t.name for t in subgraph.inputs], [t.name for t in subgraph.outputs]


def _input_name(name: str) -> str:
    return name.removeprefix("serving_default_").rpartition(":")[0]


def _litert(content: bytes, num_outputs: int):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    given, got = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.allocate_tensors()

    def invoke(example):
        for detail, value in zip(given, example):
            interpreter.set_tensor(detail["index"], value)
        interpreter.invoke()
        return [interpreter.get_tensor(detail["index"]) for detail in got]

    return invoke


def _micro(content: bytes, num_outputs: int):
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(content, arena_size=_MICRO_ARENA)

    def invoke(example):
        for index, value in enumerate(example):
            interpreter.set_input(value, index)
        interpreter.invoke()
        return [interpreter.get_output(index).copy() for index in range(num_outputs)]

    return invoke


if __name__ == "__main__":
    action, target, folder = sys.argv[1:]
    report = {"write": write, "run": run}[action](target, pathlib.Path(folder))
    pathlib.Path(folder, "report.json").write_text(json.dumps(report))
