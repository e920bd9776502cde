"""Which images a run trains on, and on which it is evaluated."""

from __future__ import annotations

import numpy as np
import pytest

from tff_fedmpq.simulation import data as datasets
from tff_fedmpq.simulation.config import ExperimentConfig
from tff_fedmpq.simulation.data import ImageDataset
from tff_fedmpq.simulation.experiment import load_dataset

NUM_TRAIN, NUM_TEST = 200, 30


@pytest.fixture(autouse=True)
def numbered_images(monkeypatch):
    """A data set whose training images show their number; test images are from 200."""
    numbers = np.arange(NUM_TRAIN + NUM_TEST, dtype=np.uint8)
    images = np.broadcast_to(numbers[:, None, None, None], [len(numbers), 2, 2, 3])
    labels = (numbers % 10).astype(np.int32)
    dataset = ImageDataset(
        "digits",
        "made here",
        images[:NUM_TRAIN],
        labels[:NUM_TRAIN],
        images[NUM_TRAIN:],
        labels[NUM_TRAIN:],
        10,
    )
    monkeypatch.setattr(datasets, "load", lambda name, data_dir: dataset)


def load(**settings) -> tuple[list[int], list[int]]:
    """Returns the numbers of training and of test images; labels are checked."""
    dataset = load_dataset(ExperimentConfig(dataset="digits", **settings), None)
    splits = []
    for images, labels in (
        (dataset.train_images, dataset.train_labels),
        (dataset.test_images, dataset.test_labels),
    ):
        numbers = images[:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(labels, numbers % 10)
        assert len(set(numbers)) == len(numbers)
        splits.append(numbers.tolist())
    return splits[0], splits[1]


def test_all_by_default():
    train, test = load()
    assert train == list(range(NUM_TRAIN))
    assert test == list(range(NUM_TRAIN, NUM_TRAIN + NUM_TEST))


def test_a_subset_leaves_the_test_images():
    train, test = load(train_examples=50, seed=1)
    assert len(train) == 50 and max(train) < NUM_TRAIN
    assert test == list(range(NUM_TRAIN, NUM_TRAIN + NUM_TEST))
    assert train != load(train_examples=50, seed=2)[0]


@pytest.mark.parametrize(("wanted", "trained"), [(None, 160), (50, 50), (180, 160)])
def test_validation_images_are_held_out_of_training(wanted, trained):
    train, validation = load(train_examples=wanted, validation_examples=40)
    assert (len(train), len(validation)) == (trained, 40)
    assert not set(train) & set(validation)
    assert max(train + validation) < NUM_TRAIN  # No test image anywhere.


def test_holding_out_leaves_a_subset_as_it_is():
    assert (
        load(train_examples=50)[0] == load(train_examples=50, validation_examples=40)[0]
    )


def test_something_has_to_be_left_to_train_on():
    with pytest.raises(ValueError, match="fewer than the 200 training images.*200"):
        load(validation_examples=200)
