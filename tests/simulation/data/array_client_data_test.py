"""Client data of arrays and data sets, read from files by client id."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from oracles.seeds import set_random_seed

import tff_fedmpq
from tff_fedmpq import client_data_from_arrays, client_data_from_tf_dataset
from tff_fedmpq.baselines.fedavg import FedAvgConfig, build_fedavg


def make(count, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 3)).astype(dtype), rng.integers(0, 2, count)


def read(client_data, client_id):
    dataset = client_data.create_tf_dataset_for_client(client_id)
    return list(dataset.as_numpy_iterator())


def assert_examples(found, arrays):
    count = len(tf.nest.flatten(arrays)[0])
    assert len(found) == count
    for i, example in enumerate(found):
        tf.nest.map_structure(
            lambda value, array, i=i: np.testing.assert_array_equal(value, array[i]),
            example,
            arrays,
        )


STRUCTURES = {
    "pair": make(5),
    "weighted": (*make(5), np.arange(5.0)),
    "mapping": dict(zip("xy", make(5))),
    "features by name": ({"b": make(5)[0], "a": make(5)[1]}, make(5)[1]),
    "two labels": (make(5)[0], (make(5)[1], np.ones([5, 2, 2], bool))),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_examples_are_those_of_the_arrays(tmp_path, name):
    arrays = {"b/..": STRUCTURES[name], "a": STRUCTURES[name]}
    arrays["b/.."] = tf.nest.map_structure(lambda array: array[:2], arrays["b/.."])
    arrays["c"] = tf.nest.map_structure(lambda array: array[:0], arrays["a"])
    client_data = client_data_from_arrays(arrays, tmp_path)
    assert client_data.client_ids == ["b/..", "a", "c"]
    for client_id, of_client in arrays.items():
        assert_examples(read(client_data, client_id), of_client)
    # No id is a path.
    assert [path.parent for path in tmp_path.rglob("*.0")] == 3 * list(
        tmp_path.iterdir()
    )


@pytest.mark.parametrize(
    "dtype", ["float16", "float64", ">f4", "int8", "uint16", "bool"]
)
def test_types_are_kept(tmp_path, dtype):
    arrays = {1: (make(4)[0].astype(dtype), make(4)[1])}
    client_data = client_data_from_arrays(arrays, tmp_path)
    assert_examples(read(client_data, "1"), arrays[1])


def test_data_sets_and_memory_maps_are_arrays_too(tmp_path):
    x, y = make(3000)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    empty = dataset.take(0)
    by_array = client_data_from_arrays({"a": (mapped, y)}, tmp_path / "1")
    by_dataset = client_data_from_tf_dataset({"a": dataset, "b": empty}, tmp_path / "2")
    assert_examples(read(by_array, "a"), (x, y))
    assert_examples(read(by_dataset, "a"), (x, y))
    assert read(by_dataset, "b") == []
    with pytest.raises(TypeError, match="tf.data.Dataset of client 'a'"):
        client_data_from_tf_dataset({"a": (x, y)}, tmp_path)


def test_files_are_raw_rows(tmp_path):
    x, y = make(4)
    client_data_from_arrays({"a": (x, y), "b": make(0)}, tmp_path / "new")
    (folder,) = (tmp_path / "new").iterdir()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["0.0", "0.1", "1.0", "1.1"]
    np.testing.assert_array_equal(np.fromfile(folder / "0.0", "<f4"), x.ravel())
    np.testing.assert_array_equal(np.fromfile(folder / "0.1", "<i8"), y)
    assert (folder / "1.0").stat().st_size == 0


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["empty", "other bytes", "missing"])
def test_whole_files_are_kept_and_others_mended(tmp_path, damage):
    arrays = {"a": make(4), "b": make(3, seed=1)}
    client_data_from_arrays(arrays, tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 4
    inodes = [path.stat().st_ino for path in files]
    content = files[0].read_bytes()
    files[0].write_bytes(b"" if damage == "empty" else bytes(len(content)))
    if damage == "missing":
        files[0].unlink()
    again = client_data_from_arrays(arrays, tmp_path)
    assert files[0].read_bytes() == content
    assert [path.stat().st_ino for path in files[1:]] == inodes[1:]
    assert_examples(read(again, "a"), arrays["a"])
    # Other arrays have a folder of their own.
    client_data_from_arrays({"a": make(4, seed=2), "b": make(3)}, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("second", "kind", "text"),
    [
        ((make(4)[0][:, :2], make(4)[1]), ValueError, "'b' has examples of"),
        (make(4, dtype=np.float64), ValueError, "'b' has examples of"),
        ((make(4)[0], make(3)[1]), ValueError, "'b' has arrays of"),
        (make(4)[:1], ValueError, "'b' has another structure"),
        (dict(zip("xy", make(4))), ValueError, "'b' has another structure"),
    ],
)
def test_clients_that_differ_are_named(tmp_path, second, kind, text):
    with pytest.raises(kind, match=text) as error:
        client_data_from_arrays({"a": make(4), "b": second}, tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def lengths_of(*lengths):
    """A data set of pairs of a sequence and a class."""
    return tf.data.Dataset.from_generator(
        lambda: ((np.ones(length, np.float32), 1) for length in lengths),
        output_signature=(tf.TensorSpec([None]), tf.TensorSpec((), tf.int32)),
    )


RAGGED = tf.ragged.constant([[1.0, 2.0], [3.0]])
UNEQUAL = {
    "data set": lengths_of(3, 2),
    "batches of one length": lengths_of(*[3] * 1024, 2),
    "ragged data set": tf.data.Dataset.from_tensor_slices((RAGGED, [0, 1])),
    "ragged tensor": (RAGGED, np.zeros(2)),
    "array of lists": (np.array([[1, 2], [3]], object), np.zeros(2)),
    "array of arrays": (np.array([np.ones(2), np.ones(1)], object), np.zeros(2)),
}


@pytest.mark.parametrize("name", UNEQUAL)
def test_unequal_lengths_are_to_be_padded(tmp_path, name):
    with pytest.raises(ValueError, match="'a' has examples of unequal.*; pad") as error:
        client_data_from_arrays({"a": UNEQUAL[name]}, tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_padded_sequences_are_client_data(tmp_path):
    """Lengths that differ between clients are refused; padded to one, they are read."""
    clients = {"a": lengths_of(3, 3), "b": lengths_of(2)}
    with pytest.raises(ValueError, match="'b' has examples of .*pad them to one"):
        client_data_from_tf_dataset(clients, tmp_path)
    padded = {
        client_id: dataset.padded_batch(2, ([4], [])).unbatch()
        for client_id, dataset in clients.items()
    }
    (example,) = read(client_data_from_tf_dataset(padded, tmp_path), "b")
    np.testing.assert_array_equal(example[0], [1, 1, 0, 0])


@pytest.mark.parametrize(
    ("arrays", "kind", "text"),
    [
        ({}, TypeError, "not empty"),
        ([make(4)], TypeError, "mapping of client ids"),
        ({"a": make(4)[0]}, ValueError, r"pairs \(x, y\)"),
        ({"a": (np.array(["text"]), np.zeros(1))}, TypeError, "expected numbers"),
        ({"a": (make(2)[0], [0, 1])}, ValueError, "numbers where arrays"),
        ({1: make(4), "1": make(4)}, ValueError, "given twice"),
    ],
)
def test_what_is_no_client_data_is_refused(tmp_path, arrays, kind, text):
    with pytest.raises(kind, match=text):
        client_data_from_arrays(arrays, tmp_path)


def test_an_unknown_client_is_said(tmp_path):
    client_data = client_data_from_arrays({"a": make(4)}, tmp_path)
    with pytest.raises(Exception, match="No data for client zoe"):
        list(client_data.serializable_dataset_fn(tf.constant("zoe")))


def test_a_worker_reads_the_files_and_gets_no_data(runtime, tmp_path):
    """The same round as with data in the graph, whose computation is far larger."""
    arrays = {"a": make(2000), "b": make(1000, seed=1)}

    def model_fn():
        set_random_seed(0)
        layer = tf.keras.layers.Dense(2)
        return tf.keras.Sequential([tf.keras.Input([3]), layer])

    test_data = tff.simulation.datasets.TestClientData(arrays)
    client_data = client_data_from_arrays(arrays, tmp_path / "files")
    outputs, sizes = [], []
    for data in (test_data, client_data):
        config = FedAvgConfig(epochs=1, batch_size=100)
        process = build_fedavg(model_fn, {"a": 4, "b": 4}, data, config)
        outputs.append(process.next(process.initialize(), ["a", "b"]))
        proto = tff.framework.ConcreteComputation.get_proto(process.next)
        sizes.append(proto.ByteSize())
    tf.nest.map_structure(np.testing.assert_array_equal, *outputs)
    assert sizes[0] - sizes[1] > 0.9 * 3000 * (12 + 8)
    shutil.rmtree(tmp_path / "files")
    with pytest.raises(Exception, match="No such file"):
        process.next(process.initialize(), ["a", "b"])


def test_much_data_in_a_graph_is_warned_of(caplog, monkeypatch):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    for megabytes, is_said in ((19, False), (21, True)):
        x = np.zeros([megabytes * 1000, 1000], np.uint8)
        arrays = {"a": (x, np.zeros(len(x), np.uint8))}
        data = tff.simulation.datasets.TestClientData({"a": (x[:1], x[:1, 0])})
        monkeypatch.setattr(data, "_tensor_slices_dict", arrays)  # It copies slowly.
        with pytest.raises(Stop):
            tff_fedmpq.build_fedavg(stop, {"a": 4}, data)
        assert ("client_data_from_arrays" in caplog.text) == is_said
