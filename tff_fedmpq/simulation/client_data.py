"""Client data that is read inside the computation, from files named by client id.

    partition --> files, two per client --> ClientData --> dataset_computation
                  0.images  0.labels         ids "0", "1", ...   str -> <image, label>*

The type of `dataset_computation` is `(str -> <uint8[h,w,3], int32>*)`: only client ids
go to the process that runs it, and this process reads the files itself.  Every machine
that runs clients needs the directory under the same path.

Files are raw: images uint8[n, h, w, 3] row by row, labels int32[n] little endian.
They lie in a folder named by a digest of all they hold, so that files of another
partition or data set are never taken for them and several may share a directory.
"""

from __future__ import annotations

import hashlib
import os
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_fedmpq.simulation import datasets
from tff_fedmpq.simulation import partition as partition_lib
from tff_fedmpq.simulation.files import PathLike, write_atomically

_IMAGES = ".images"
_LABELS = ".labels"


def write_client_files(
    directory: PathLike,
    dataset: datasets.ImageDataset,
    partition: partition_lib.Partition,
) -> pathlib.Path:
    """Writes each client's training examples, in the partition's order.

    A file that is there with the right size is kept.  Each file is written whole or
    not at all, so that an interrupted call can be repeated.

    Args:
      directory: Where to put the folder of files; made where it does not exist.
      dataset: The data set whose training examples are given out.
      partition: Which of them each client has.

    Returns:
      The absolute path of the folder that holds `<client id>.images` and
      `<client id>.labels`.

    Raises:
      ValueError: The partition was made for other data.
    """
    _check_match(dataset, partition)
    folder = pathlib.Path(directory).expanduser().resolve()
    folder /= _digest(dataset, partition)
    folder.mkdir(parents=True, exist_ok=True)
    image_bytes = int(np.prod(dataset.image_shape))
    for client, indices in enumerate(partition.client_indices):
        images, labels = folder / f"{client}{_IMAGES}", folder / f"{client}{_LABELS}"
        if not _has_size(images, indices.size * image_bytes):
            content = dataset.train_images[indices].tobytes()
            write_atomically(images, content)
        if not _has_size(labels, indices.size * 4):
            content = dataset.train_labels[indices].astype("<i4").tobytes()
            write_atomically(labels, content)
    return folder


def build_client_data(
    directory: PathLike,
    dataset: datasets.ImageDataset,
    partition: partition_lib.Partition,
) -> tff.simulation.datasets.ClientData:
    """Builds a `ClientData` over files that the computation reads by client id.

    Args:
      directory: Where the files are, or are to be written; see `write_client_files`.
      dataset: The data set whose training examples are given out.
      partition: Which of them each client has.

    Returns:
      A `ClientData` with the client ids "0", "1", ... in the partition's order, and
      elements (image uint8[h, w, 3], label int32[]).  A client without examples has
      an empty dataset.

    Raises:
      ValueError: The partition was made for other data.
    """
    folder = write_client_files(directory, dataset, partition)
    prefix = f"{folder}{os.sep}"
    image_shape = dataset.image_shape

    def read_client(client_id: tf.Tensor) -> tf.data.Dataset:
        images = tf.io.read_file(tf.strings.join([prefix, client_id, _IMAGES]))
        labels = tf.io.read_file(tf.strings.join([prefix, client_id, _LABELS]))
        images = tf.reshape(tf.io.decode_raw(images, tf.uint8), [-1, *image_shape])
        labels = tf.io.decode_raw(labels, tf.int32, little_endian=True)
        return tf.data.Dataset.from_tensor_slices((images, labels))

    client_ids = [str(client) for client in range(partition.num_clients)]
    return tff.simulation.datasets.ClientData.from_clients_and_tf_fn(
        client_ids, read_client
    )


def _check_match(
    dataset: datasets.ImageDataset, partition: partition_lib.Partition
) -> None:
    if partition.dataset and partition.dataset != dataset.name:
        raise ValueError(
            f"partition: expected one of {dataset.name}, found one of "
            f"{partition.dataset}; partition the labels of {dataset.name}."
        )
    partition.check_fits(len(dataset.train_labels))


def _digest(dataset: datasets.ImageDataset, partition: partition_lib.Partition) -> str:
    """Name of the folder for what the files hold, 16 hexadecimal digits."""
    digest = hashlib.sha256(repr(dataset.image_shape).encode())
    digest.update(partition.sizes.astype("<i8").tobytes())
    digest.update(np.ascontiguousarray(dataset.train_images).data)
    digest.update(dataset.train_labels.astype("<i4").tobytes())
    for indices in partition.client_indices:
        digest.update(indices.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _has_size(path: pathlib.Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
