"""Client data that a computation reads from files named by client id.

    Partition --> files, two per client --> ClientData --> dataset_computation
                  0.images  0.labels        ids "0", "1", ...   str -> <image, label>*

`dataset_computation` has the type `(str -> <uint8[h,w,c], int32>*)`: only client ids
are sent to the process that runs it, and this process reads the files itself. Every
machine that runs clients needs the directory under the same path, or where paths are
relative, in its `--data_dir`.

Files are raw: images uint8[n, h, w, c] row by row, labels int32[n] little endian.
Their folder is named by a digest of them, so that partitions can share a directory.
"""

import hashlib
import os
import pathlib

import numpy as np
import tensorflow as tf

from tff_fedmpq._tff import tff
from tff_fedmpq.files import PathLike, write_atomically
from tff_fedmpq.simulation.data.image_dataset import ImageDataset
from tff_fedmpq.simulation.data.partitions import Partition


def build_client_data(
    directory: PathLike,
    dataset: ImageDataset,
    partition: Partition,
    *,
    relative: bool = False,
) -> tff.simulation.datasets.ClientData:
    """Builds a `ClientData` of the training examples, over files in `directory`.

    Client ids are in the partition's order. A client without examples has an empty
    dataset. A partition that was made for other data is a ValueError. With `relative`,
    a worker reads them below its own folder (its `--data_dir`), not `directory`.
    """
    folder = write_client_files(directory, dataset, partition)
    image_shape = dataset.image_shape

    def read_client(client_id: tf.Tensor) -> tf.data.Dataset:
        # Eagerly it is read here, not on a worker.
        is_elsewhere = relative and not tf.executing_eagerly()
        prefix = f"{folder.name if is_elsewhere else folder}{os.sep}"
        images = tf.io.read_file(tf.strings.join([prefix, client_id, ".images"]))
        labels = tf.io.read_file(tf.strings.join([prefix, client_id, ".labels"]))
        images = tf.reshape(tf.io.decode_raw(images, tf.uint8), [-1, *image_shape])
        labels = tf.io.decode_raw(labels, tf.int32, little_endian=True)
        return tf.data.Dataset.from_tensor_slices((images, labels))

    return tff.simulation.datasets.ClientData.from_clients_and_tf_fn(
        [str(client) for client in range(partition.num_clients)], read_client
    )


def write_client_files(
    directory: PathLike, dataset: ImageDataset, partition: Partition
) -> pathlib.Path:
    """Writes each client's training examples and returns the files' absolute folder.

    Files that are there are kept if they hold the same. They are written atomically, so
    that an interrupted call can be repeated. Errors are those of `build_client_data`.
    """
    if partition.dataset and partition.dataset != dataset.name:
        raise ValueError(
            f"partition: expected one of {dataset.name}, found one of "
            f"{partition.dataset}; partition the labels of {dataset.name}."
        )
    if partition.client_ids != tuple(map(str, range(partition.num_clients))):
        raise ValueError(
            f"partition: expected clients 0, 1, ..., found {partition.client_ids[:3]}; "
            "use client_data_from_arrays(partition.split(images, labels), directory)."
        )
    highest = max(indices.max(initial=-1) for indices in partition.client_indices)
    if highest >= len(dataset.train_labels):
        raise ValueError(
            f"partition: expected positions below {len(dataset.train_labels)}, the "
            f"number of examples, found {highest}; it was made for other data."
        )
    folder = pathlib.Path(directory).expanduser().resolve()
    folder /= _digest(dataset, partition)
    folder.mkdir(parents=True, exist_ok=True)
    for client, indices in enumerate(partition.client_indices):
        images = dataset.train_images[indices]
        labels = dataset.train_labels[indices].astype("<i4")
        for name, array in ((f"{client}.images", images), (f"{client}.labels", labels)):
            path, content = folder / name, array.tobytes()
            if not path.is_file() or path.read_bytes() != content:
                write_atomically(path, content)
    return folder


def _digest(dataset: ImageDataset, partition: Partition) -> str:
    """Returns the folder name for the contents of the files, 16 hexadecimal digits."""
    digest = hashlib.sha256(repr(dataset.image_shape).encode())
    digest.update(partition.sizes.astype("<i8").tobytes())
    digest.update(np.ascontiguousarray(dataset.train_images).data)
    digest.update(dataset.train_labels.astype("<i4").tobytes())
    for indices in partition.client_indices:
        digest.update(indices.astype("<i8").tobytes())
    return digest.hexdigest()[:16]
