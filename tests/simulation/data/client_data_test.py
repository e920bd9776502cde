"""Tests of client data read from files inside the computation."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from tff_fedmpq.simulation.data import ImageDataset
from tff_fedmpq.simulation.data import client_data as client_data_lib
from tff_fedmpq.simulation.data.partitions import Partition


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    return ImageDataset(
        name="random",
        source="a test",
        train_images=rng.integers(0, 256, (20, 5, 4, 3), np.uint8),
        train_labels=rng.integers(0, 300, 20, np.int32),
        test_images=rng.integers(0, 256, (2, 5, 4, 3), np.uint8),
        test_labels=rng.integers(0, 300, 2, np.int32),
        num_classes=300,
    )


@pytest.fixture
def partition():
    return Partition(([7, 3, 11], [], [0, 19]), alpha=1.0, seed=0, dataset="random")


def test_the_folder_of_files_keeps_its_name(tmp_path, partition):
    # Runs of earlier versions find their files again.
    images = np.arange(20 * 5 * 4 * 3).reshape(20, 5, 4, 3).astype(np.uint8)
    labels = np.arange(20, dtype=np.int32)
    dataset = ImageDataset("random", "a test", images, labels, images, labels, 20)
    folder = client_data_lib.write_client_files(tmp_path, dataset, partition)
    assert folder.name == "b2d1a5dbb0f45aa6"


def check_examples(examples, dataset, indices):
    examples = list(examples)
    assert len(examples) == len(indices)
    for (image, label), index in zip(examples, indices):
        np.testing.assert_array_equal(image, dataset.train_images[index])
        np.testing.assert_array_equal(label, dataset.train_labels[index])


def test_files_are_raw_rows_in_the_partitions_order(tmp_path, dataset, partition):
    folder = client_data_lib.write_client_files(tmp_path / "new", dataset, partition)

    names = [f"{client}.{kind}" for client in "012" for kind in ("images", "labels")]
    assert folder.is_absolute()
    assert sorted(path.name for path in folder.iterdir()) == names
    images = np.fromfile(folder / "0.images", np.uint8).reshape(-1, 5, 4, 3)
    np.testing.assert_array_equal(images, dataset.train_images[[7, 3, 11]])
    labels = np.fromfile(folder / "0.labels", "<i4")
    np.testing.assert_array_equal(labels, dataset.train_labels[[7, 3, 11]])
    assert (folder / "1.images").stat().st_size == 0
    assert (folder / "1.labels").stat().st_size == 0


@pytest.mark.faults
def test_whole_files_are_kept_and_others_mended(tmp_path, dataset, partition):
    folder = client_data_lib.write_client_files(tmp_path, dataset, partition)
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    whole = (folder / "2.images").read_bytes()
    (folder / "2.images").write_bytes(whole[:-1])
    (folder / "0.labels").unlink()
    images = (folder / "1.images").read_bytes()
    (folder / "1.images").write_bytes(bytes(len(images)))

    assert client_data_lib.write_client_files(tmp_path, dataset, partition) == folder

    assert (folder / "2.images").read_bytes() == whole
    assert (folder / "1.images").read_bytes() == images
    after = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert after.keys() == before.keys()
    for name in ("0.images", "1.labels", "2.labels"):
        assert after[name] == before[name]


def test_another_partition_of_equal_sizes_gets_its_own_files(
    tmp_path, dataset, partition
):
    other = Partition(([3, 7, 11], [], [0, 19]), alpha=1.0, seed=0)
    moved = Partition(([7, 3, 11, 0], [], [19]), alpha=1.0, seed=0)
    for given in (partition, other, moved):
        client_data = client_data_lib.build_client_data(tmp_path, dataset, given)
        for client, indices in zip(client_data.client_ids, given.client_indices):
            examples = client_data.create_tf_dataset_for_client(client)
            check_examples(examples, dataset, indices)
    assert len(list(tmp_path.iterdir())) == 3


def test_ids_and_types_are_static(tmp_path, dataset, partition):
    client_data = client_data_lib.build_client_data(tmp_path, dataset, partition)

    assert client_data.client_ids == ["0", "1", "2"]
    assert client_data.element_type_structure == (
        tf.TensorSpec([5, 4, 3], tf.uint8),
        tf.TensorSpec([], tf.int32),
    )
    signature = str(client_data.dataset_computation.type_signature)
    assert signature == "(str -> <uint8[5,4,3],int32>*)"


def test_a_relative_directory_is_found_from_elsewhere(
    tmp_path, dataset, partition, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    client_data = client_data_lib.build_client_data("here", dataset, partition)
    monkeypatch.chdir("/")
    examples = client_data.create_tf_dataset_for_client("2")
    check_examples(examples, dataset, [0, 19])


def test_computation_on_the_tff_runtime(tmp_path, dataset, partition):
    client_data = client_data_lib.build_client_data(tmp_path, dataset, partition)
    read = client_data.dataset_computation

    @tff.tensorflow.computation(tff.SequenceType(read.type_signature.result.element))
    def summarize(examples):
        # Order-sensitive: sum of (position + 1) * label, then of all pixels.
        def add(state, example):
            count, labels, pixels = state
            image, label = example
            count += 1
            labels += count * label
            return count, labels, pixels + tf.reduce_sum(tf.cast(image, tf.int32))

        return examples.reduce((0, 0, 0), add)

    @tff.federated_computation(tff.FederatedType(np.str_, tff.CLIENTS))
    def run(client_ids):
        return tff.federated_map(summarize, tff.federated_map(read, client_ids))

    for ids in (["0", "1", "2"], ["2", "0"]):
        for client_id, found in zip(ids, run(ids)):
            indices = partition.client_indices[int(client_id)]
            labels = dataset.train_labels[indices]
            expected = (
                len(indices),
                int(np.sum((np.arange(len(indices)) + 1) * labels)),
                int(dataset.train_images[indices].sum()),
            )
            assert tuple(found) == expected


@pytest.mark.faults
def test_a_partition_of_other_data_is_refused(tmp_path, dataset):
    named = Partition(([0],), alpha=1.0, seed=0, dataset="cifar10")
    with pytest.raises(ValueError, match="expected one of random, found one of cifar"):
        client_data_lib.build_client_data(tmp_path, dataset, named)
    longer = Partition(([20],), alpha=1.0, seed=0)
    with pytest.raises(ValueError, match="expected positions below 20"):
        client_data_lib.build_client_data(tmp_path, dataset, longer)
    other = Partition(([0], [1]), client_ids=("a", "b"))
    with pytest.raises(ValueError, match="client_data_from_arrays"):
        client_data_lib.build_client_data(tmp_path, dataset, other)
    assert not list(tmp_path.iterdir())
