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


def check_examples(examples, dataset, indices):
    examples = list(examples)
    assert len(examples) == len(indices)
    for (image, label), index in zip(examples, indices):
        np.testing.assert_array_equal(image, dataset.train_images[index])
        np.testing.assert_array_equal(label, dataset.train_labels[index])


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


def test_clients_keep_the_ids_of_a_partition(tmp_path, dataset):
    partition = Partition(([4], [1, 2]), client_ids=("zoe", "al"))
    client_data = client_data_lib.build_client_data(tmp_path, dataset, partition)
    assert client_data.client_ids == ["zoe", "al"]
    examples = client_data.create_tf_dataset_for_client("al")
    check_examples(examples, dataset, [1, 2])


@pytest.mark.faults
def test_a_partition_of_other_data_is_refused(tmp_path, dataset):
    named = Partition(([0],), alpha=1.0, seed=0, dataset="cifar10")
    with pytest.raises(ValueError, match="expected one of random, found one of cifar"):
        client_data_lib.build_client_data(tmp_path, dataset, named)
    longer = Partition(([20],), alpha=1.0, seed=0)
    with pytest.raises(ValueError, match="made for other data"):
        client_data_lib.build_client_data(tmp_path, dataset, longer)
    assert not list(tmp_path.iterdir())
