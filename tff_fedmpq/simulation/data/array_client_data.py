"""Client data of any arrays or data sets, in files that are read by client id.

    DIRECTORY/<digest>/<row>.<leaf>    one array of one client, raw, little endian

Only client ids are sent to the process that runs clients, which reads the files itself;
every machine that runs clients needs the directory under the same path, or where paths
are relative, in its `--data_dir`. The digest is that of ids and arrays, so that one
directory serves several client data.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tff_fedmpq._tff import tff
from tff_fedmpq.federated.population import as_client_ids
from tff_fedmpq.federated.tasks import split_example
from tff_fedmpq.files import PathLike

_CHUNK_BYTES = 2**24
_PAD = "pad them to one, as by tf.keras.utils.pad_sequences or Dataset.padded_batch"
_READABLE = "bool float16 float32 float64 int8 int16 int32 int64 uint8 uint16".split()


class _Leaf(NamedTuple):
    """Type and shape of one array's entries, for one example."""

    dtype: np.dtype
    shape: tuple[int, ...]


def client_data_from_arrays(
    arrays: Mapping[Any, Any], directory: PathLike, *, relative: bool = False
) -> tff.simulation.datasets.ClientData:
    """Writes clients' arrays into files, and returns a `ClientData` that reads them.

    Files that hold the same already are kept. One client's examples have to fit in
    memory, all of them need not: arrays may be memory-mapped.

    Args:
      arrays: By client id, a string or a whole number: (x, y), (x, y, sample_weight) or
        a mapping of these names, any structures of arrays [n, ...] with the same n,
        which may be 0; or a `tf.data.Dataset` of such examples.
      directory: Directory of the files; made where it does not exist.
      relative: Whether a worker reads them below its own `--data_dir`, not `directory`.

    Raises:
      TypeError, ValueError: for arrays that differ between clients in more than n, for
        examples of unequal shapes, and for types of which there are no raw bytes.
    """
    if not isinstance(arrays, Mapping) or not arrays:
        raise TypeError(
            "arrays has to be a mapping of client ids to (x, y), not empty."
        )
    ids, values = as_client_ids(list(arrays)), list(arrays.values())
    first = _load(ids[0], values[0])
    split_example(first)
    specs = [_Leaf(a.dtype, a.shape[1:]) for a in tf.nest.flatten(first)]
    unknown = {s.dtype.name for s in specs if s.dtype.name not in _READABLE}
    if unknown:
        raise TypeError(f"arrays: expected numbers of {_READABLE}, found {unknown}.")
    digest = hashlib.sha256(repr((ids, specs)).encode())
    for client_id, value in zip(ids, values):
        for array in _checked_leaves(client_id, value, first, specs):
            digest.update(repr(array.shape).encode())
            for chunk in _chunks(array):
                digest.update(chunk)
    folder = pathlib.Path(directory).expanduser().resolve() / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for row, (client_id, value) in enumerate(zip(ids, values)):
        for i, array in enumerate(_checked_leaves(client_id, value, first, specs)):
            _write(folder / f"{row}.{i}", array)
    # Structure alone, for the function that is kept has to hold no data.
    structure = tf.nest.map_structure(lambda _: 0, first)

    def read_client(client_id: tf.Tensor) -> tf.data.Dataset:
        matches = tf.equal(tf.constant(ids), client_id)
        problem = tf.strings.join(["No data for client ", client_id])
        known = tf.debugging.Assert(tf.reduce_any(matches), [problem])
        with tf.control_dependencies([known]):
            row = tf.strings.as_string(tf.argmax(matches))
        # Eagerly it is read here, not on a worker.
        is_elsewhere = relative and not tf.executing_eagerly()
        prefix = f"{folder.name if is_elsewhere else folder}{os.sep}"
        leaves = []
        for i, (dtype, shape) in enumerate(specs):
            path = tf.strings.join([prefix, row, f".{i}"])
            raw = tf.io.decode_raw(tf.io.read_file(path), tf.as_dtype(dtype))
            leaves.append(tf.reshape(raw, [-1, *shape]))
        return tf.data.Dataset.from_tensor_slices(
            tf.nest.pack_sequence_as(structure, leaves)
        )

    return tff.simulation.datasets.ClientData.from_clients_and_tf_fn(ids, read_client)


def client_data_from_tf_dataset(
    datasets: Mapping[Any, tf.data.Dataset], directory: PathLike
) -> tff.simulation.datasets.ClientData:
    """Does as `client_data_from_arrays` for data sets of examples by client id.

    They are read twice, and have to give the same examples in the same order.
    """
    for client_id, dataset in datasets.items():
        if not isinstance(dataset, tf.data.Dataset):
            raise TypeError(
                f"datasets: expected a tf.data.Dataset of client {client_id!r}, found "
                f"{type(dataset).__name__}."
            )
    return client_data_from_arrays(datasets, directory)


def _load(client_id: str, value: Any) -> Any:
    """Returns a client's examples as a structure of arrays [n, ...].

    ValueError for examples of unequal shapes.
    """
    unequal = ValueError(
        f"arrays: client {client_id!r} has examples of unequal shapes; {_PAD}."
    )
    if not isinstance(value, tf.data.Dataset):
        parts = tf.nest.flatten(value)
        if any(isinstance(part, tf.RaggedTensor) for part in parts):
            raise unequal
        arrays = [np.asanyarray(part) for part in parts]
        if any(a.dtype == object and a.size and np.ndim(a.flat[0]) for a in arrays):
            raise unequal
        return tf.nest.pack_sequence_as(value, arrays)
    specs = tf.nest.flatten(value.element_spec)
    if any(isinstance(spec, tf.RaggedTensorSpec) for spec in specs):
        raise unequal
    empty = tf.nest.map_structure(
        lambda spec: np.zeros(
            [0, *(n or 0 for n in spec.shape)], spec.dtype.as_numpy_dtype
        ),
        value.element_spec,
    )
    try:
        batches = list(value.batch(1024).as_numpy_iterator()) or [empty]
    except tf.errors.InvalidArgumentError as error:
        if "different shapes" not in str(error):  # The data set's own.
            raise
        raise unequal from None
    if len({tuple(a.shape[1:] for a in tf.nest.flatten(b)) for b in batches}) > 1:
        raise unequal
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *batches)


def _checked_leaves(
    client_id: str, value: Any, first: Any, specs: list[_Leaf]
) -> list[np.ndarray]:
    """Returns the arrays of one client, or raises an error that names it."""
    value = _load(client_id, value)
    try:
        tf.nest.assert_same_structure(first, value)
    except (TypeError, ValueError):
        raise ValueError(
            f"arrays: client {client_id!r} has another structure than the first one."
        ) from None
    leaves = tf.nest.flatten(value)
    found = [_Leaf(a.dtype, a.shape[1:]) for a in leaves]
    counts = {a.shape[0] if a.ndim else None for a in leaves}
    if found != specs:
        raise ValueError(
            f"arrays: client {client_id!r} has examples of {_describe(found)}, the "
            f"first one of {_describe(specs)}; where lengths differ, {_PAD}."
        )
    if None in counts:
        raise ValueError(
            f"arrays: client {client_id!r} has numbers where arrays [n, ...] are "
            "expected; lists of numbers have to be made arrays."
        )
    if len(counts) > 1:
        raise ValueError(
            f"arrays: client {client_id!r} has arrays of {counts} examples; expected "
            "one number."
        )
    return leaves


def _describe(specs: list[_Leaf]) -> str:
    return ", ".join(f"{spec.dtype}{list(spec.shape)}" for spec in specs)


def _chunks(array: np.ndarray) -> Iterator[bytes]:
    """Yields the bytes of an array, of which no more than a part is in memory."""
    rows = max(
        1, _CHUNK_BYTES // max(1, array.itemsize * int(np.prod(array.shape[1:])))
    )
    little = array.dtype.newbyteorder("<")
    for begin in range(0, len(array), rows):
        yield np.ascontiguousarray(array[begin : begin + rows], little).tobytes()


def _write(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes a file whole or not at all, unless it holds the same already."""
    if path.is_file() and path.stat().st_size == array.nbytes:
        with open(path, "rb") as file:
            if all(file.read(len(chunk)) == chunk for chunk in _chunks(array)):
                return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines(_chunks(array))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
