"""Tests of the data set that every loader returns."""

import numpy as np
import pytest

from tff_fedmpq.simulation.data import DatasetError, ImageDataset


def small_dataset(**changes):
    rng = np.random.default_rng(0)
    fields = {
        "name": "random",
        "source": "a test",
        "train_images": rng.integers(0, 256, (2_500, 3, 2, 3), np.uint8),
        "train_labels": np.zeros(2_500, np.int32),
        "test_images": np.zeros((1, 3, 2, 3), np.uint8),
        "test_labels": np.zeros(1, np.int32),
        "num_classes": 1,
    }
    return ImageDataset(**{**fields, **changes})


def test_channel_statistics_are_those_of_all_training_images():
    dataset = small_dataset()
    mean, deviation = dataset.channel_statistics()
    assert mean.dtype == deviation.dtype == np.float32
    wide = dataset.train_images.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(deviation, wide.std(axis=(0, 1, 2)), rtol=1e-6)


def test_a_constant_channel_can_be_divided_by():
    images = np.full((2_500, 3, 2, 3), 7, np.uint8)
    images[0, 0, 0, 2] = 8
    mean, deviation = small_dataset(train_images=images).channel_statistics()
    np.testing.assert_array_equal(mean[:2], 7.0)
    np.testing.assert_array_equal(deviation[:2], 1.0)
    np.testing.assert_allclose(deviation[2], images[..., 2].std(), rtol=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_may_have_any_number_of_channels(channels):
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 2, channels), np.uint8)
    labels = np.zeros(9, np.int32)
    dataset = small_dataset(
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    assert dataset.image_shape == (3, 2, channels)
    mean, _ = dataset.channel_statistics()
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)), rtol=1e-6)


def test_images_of_ones_own_are_not_augmented():
    assert small_dataset().augment is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"test_images": np.zeros((1, 3, 2, 3))}, "test: expected images uint8"),
        ({"test_images": np.zeros((1, 3, 2), np.uint8)}, r"found uint8\[1, 3, 2\]"),
        ({"test_images": np.zeros((1, 3, 2, 1), np.uint8)}, "images of one shape"),
        ({"test_images": np.zeros((1, 3, 3, 3), np.uint8)}, "images of one shape"),
        (
            {"test_images": np.zeros((0, 3, 2, 3), np.uint8)},
            r"labels int32\[0\]",
        ),
        ({"train_labels": np.zeros(2_500, np.int64)}, "train: expected labels int32"),
        ({"train_labels": np.ones(2_500, np.int32)}, r"labels 0\.\.0, found 1\.\.1"),
    ],
)
def test_a_dataset_checks_its_arrays(changes, message):
    with pytest.raises(DatasetError, match=message):
        small_dataset(**changes)


def test_an_empty_split_is_refused():
    nothing = np.zeros((0, 3, 2, 3), np.uint8)
    with pytest.raises(DatasetError, match="expected at least one image"):
        small_dataset(test_images=nothing, test_labels=np.zeros(0, np.int32))
