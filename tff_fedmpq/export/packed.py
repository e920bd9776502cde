"""Packed file of a quantized Keras model: true bits, scales, floats, architecture.

Layout, in little-endian order::

    8 bytes   MAGIC
    uint16    version
    uint16    0
    uint64    size of the file
    32 bytes  SHA-256 of all other bytes
    uint32    size of the header
    header    compressed JSON: the Keras configuration, and a row per variable
    body      of each variable its bytes, or the packed codes of its kernel

Reading checks size and checksum before anything else, and builds a new model only of
what it allows: registered classes, Keras's own layers, and functions of an allowlist.
Nothing is imported or executed because a file names it.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tff_fedmpq.export.allowed_configs import UnsafeModelError, check_config
from tff_fedmpq.export.report import ExportReport, report_of
from tff_fedmpq.files import PathLike, write_atomically
from tff_fedmpq.keras.quantized_kernel import quantized_kernels
from tff_fedmpq.keras.quantized_model import refusing_optimizers
from tff_fedmpq.quantization.packing import pack_numpy, packed_size, unpack_numpy

MAGIC = b"\x89FedMPQ\n"
VERSION = 1
_FIXED = struct.Struct("<8sHHQ32sI")
_DIGEST = slice(20, 52)
_LARGEST_HEADER = 2**26  # Bytes of JSON: a small file must not fill the memory.
_OTHER_WEIGHTS = 2**16  # Bit-widths, and states of layers, which no file holds.
_FUNCTIONAL = tf.keras.Sequential.__bases__[0]


class PackedFileError(ValueError):
    """A file cannot be read as a packed model."""


class ForeignFileError(PackedFileError):
    """It is a file of another kind."""


class FutureVersionError(PackedFileError):
    """It is of a version that this release does not know."""


class DamagedFileError(PackedFileError):
    """It is not as it was written."""


class UnsafeFileError(PackedFileError):
    """Its architecture names code that a file must not bring."""


def write_packed(model: tf.keras.Model, path: PathLike) -> ExportReport:
    """Writes a quantized model to a file, and returns what it stores.

    Sequential and functional models; others raise TypeError. ValueError for layers that
    `read_packed` would refuse, such as Lambda.
    """
    if not isinstance(model, _FUNCTIONAL):
        raise TypeError(
            "A packed file holds a Sequential or functional model; found "
            f"{type(model).__name__}."
        )
    config = json.loads(model.to_json())
    check_config(config)
    rows, parts = [], []
    for variable, kernel in _stored_variables(model):
        if kernel is None:
            value = np.asarray(variable)
            rows.append([value.dtype.name, 0, list(value.shape)])
            parts.append(_little_endian(value).tobytes())
        else:
            bits, codes = int(kernel.bit_width.numpy()), variable.numpy()
            rows.append(["uint8", bits, list(codes.shape)])
            parts.append(pack_numpy(codes.reshape(-1), bits).tobytes())
    header = json.dumps({"model": config, "variables": rows}, separators=(",", ":"))
    header_bytes = lzma.compress(header.encode(), preset=9 | lzma.PRESET_EXTREME)
    body = header_bytes + b"".join(parts)
    fixed = _FIXED.pack(
        MAGIC, VERSION, 0, _FIXED.size + len(body), bytes(32), len(header_bytes)
    )
    content = bytearray(fixed + body)
    content[_DIGEST] = _digest(content)
    write_atomically(path, bytes(content))
    _check_equal(model, read_packed(path))
    return report_of(model, path)


def read_packed(path: PathLike) -> tf.keras.Model:
    """Returns the model of a packed file, with the same codes, scales and floats.

    Layers of `register_quantized_layer` have to be registered before. Files that are
    damaged or not for this release raise a `PackedFileError` that says what was found.
    """
    return unpack_model(pathlib.Path(path).read_bytes(), str(path))


def unpack_model(content: bytes, name: str = "The file") -> tf.keras.Model:
    """Returns the model of a packed file's content; see `read_packed`."""
    header, body = _split(content, name)
    try:
        check_config(header["model"])
        values = list(_values(header["variables"], body))
        model = _build(header["model"], sum(value.size for _, value in values))
        _assign(model, values)
    except UnsafeModelError as error:
        raise UnsafeFileError(f"{name}: {error}") from None
    except Exception as error:  # Whatever the content makes Keras and NumPy raise.
        raise DamagedFileError(
            f"{name} cannot be built: {type(error).__name__}: {error}"
        ) from error
    model.__class__ = refusing_optimizers(type(model))
    return model


def _split(content: bytes, name: str) -> tuple[dict[str, Any], bytes]:
    """Returns header and body of a file whose frame is intact."""
    if content[: len(MAGIC)] != MAGIC:
        if MAGIC.startswith(content[: len(MAGIC)]):
            raise DamagedFileError(f"{name} is truncated: {len(content)} bytes.")
        start = bytes(content[: len(MAGIC)])
        raise ForeignFileError(f"{name} is no packed model: it begins with {start!r}.")
    if len(content) < _FIXED.size:
        raise DamagedFileError(f"{name} is truncated: {len(content)} bytes.")
    _, version, _, size, digest, header_size = _FIXED.unpack_from(content)
    if version > VERSION:
        raise FutureVersionError(
            f"{name} has version {version}; this release reads up to {VERSION}."
        )
    if size != len(content):
        raise DamagedFileError(f"{name} has {len(content)} of {size} bytes.")
    if digest != _digest(content):
        raise DamagedFileError(f"{name} is damaged: its checksum does not fit.")
    end = _FIXED.size + header_size
    try:
        decompressor = lzma.LZMADecompressor(memlimit=2**28)
        text = decompressor.decompress(content[_FIXED.size : end], _LARGEST_HEADER)
        if not decompressor.eof:
            raise ValueError("it is incomplete, or too large")
        header = json.loads(text)
        _ = header["model"], header["variables"]
    except (lzma.LZMAError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedFileError(f"{name} has no readable header: {error}") from None
    return header, content[end:]


def _digest(content: bytes | bytearray) -> bytes:
    rest = memoryview(content)
    parts = rest[: _DIGEST.start], rest[_DIGEST.stop :]
    return hashlib.sha256(b"".join(parts)).digest()


def _stored_variables(model: tf.keras.Model) -> Iterator[tuple[Any, Any]]:
    """Yields variables and, of codes, their kernel; bit-widths are in the header."""
    bit_widths = {id(kernel.bit_width) for kernel in quantized_kernels(model)}
    for variable in model.weights:
        if id(variable) not in bit_widths:
            yield variable, getattr(variable, "quantized_kernel", None)


def _little_endian(value: np.ndarray) -> np.ndarray:
    return value.astype(value.dtype.newbyteorder("<"))


def _values(rows: list[Any], body: bytes) -> Iterator[tuple[int, np.ndarray]]:
    """Yields bits, 0 of plain variables, and values; ValueError for another size."""
    start = 0
    for dtype_name, bits, shape in rows:
        dtype = tf.as_dtype(dtype_name).as_numpy_dtype
        count = int(np.prod(shape, dtype=np.int64))
        size = packed_size(count, bits) if bits else count * np.dtype(dtype).itemsize
        part = body[start : start + size]
        start += size
        if bits:
            codes = unpack_numpy(np.frombuffer(part, np.uint8), bits, count)
            yield bits, codes.reshape(shape)
        else:
            yield 0, np.frombuffer(part, np.dtype(dtype)).reshape(shape)
    if start != len(body):
        raise ValueError(f"{start} bytes of variables expected, found {len(body)}")


def _build(config: dict[str, Any], num_weights: int) -> tf.keras.Model:
    """Returns the model of a configuration, with initial weights.

    ValueError before it has more weights than the file holds, which would take memory.
    """
    left = num_weights + _OTHER_WEIGHTS

    def create(next_creator: Any, **kwargs: Any) -> tf.Variable:
        nonlocal left
        shape = [n or 1 for n in kwargs.get("shape") or ()]
        left -= int(np.prod(shape, dtype=np.float64))
        if left < 0:
            raise ValueError(f"a model of more than {num_weights} weights")
        return next_creator(**kwargs)

    with tf.variable_creator_scope(create):
        model = tf.keras.models.model_from_json(json.dumps(config))
    if not isinstance(model, _FUNCTIONAL):
        raise TypeError(f"a Sequential or functional model expected, found {model!r}")
    return model


def _assign(model: tf.keras.Model, values: list[tuple[int, np.ndarray]]) -> None:
    """Sets the variables of a new model; ValueError where they do not fit."""
    targets = list(_stored_variables(model))
    if len(targets) != len(values):
        raise ValueError(f"{len(targets)} variables expected, found {len(values)}")
    for (variable, kernel), (bits, value) in zip(targets, values):
        fits = variable.shape.is_compatible_with(value.shape)
        fits = fits and variable.dtype == value.dtype
        if not fits or (kernel is None) != (bits == 0):
            raise ValueError(f"{variable.name} is {value.dtype}{list(value.shape)}")
        variable.assign(value)
        if kernel is not None:
            kernel.bit_width.assign(bits)


def _check_equal(model: tf.keras.Model, loaded: tf.keras.Model) -> None:
    """Raises RuntimeError unless a file holds the variables of its model."""
    for one, other in zip(model.weights, loaded.weights):
        if np.asarray(one).tobytes() != np.asarray(other).tobytes():
            raise RuntimeError(f"The file does not hold {one.name}.")
