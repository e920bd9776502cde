"""Tests of the digits that come with scikit-learn."""

import numpy as np
import pytest

from tff_fedmpq.simulation import data as datasets


@pytest.mark.parametrize("image_size", [8, 32])
def test_digits_are_repeated_pixels(image_size):
    from sklearn.datasets import load_digits

    dataset = datasets.load_digits(image_size)
    assert dataset.image_shape == (image_size, image_size, 1)
    assert dataset.train_images.shape[0] == 1437
    assert dataset.test_images.shape[0] == 360
    step = image_size // 8
    images = np.concatenate([dataset.train_images, dataset.test_images])
    small = images[:, ::step, ::step, 0]
    for y in range(image_size):
        for x in range(image_size):
            expected = small[:, y // step, x // step]
            np.testing.assert_array_equal(images[:, y, x, 0], expected)
    # Every original is there once, its greys 0..16 spread over 0..255.
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    greys = np.rint(small / 255 * 16)
    found = sorted((label, *g.ravel()) for label, g in zip(labels, greys))
    original = load_digits()
    expected = sorted(
        (label, *g.ravel()) for label, g in zip(original.target, original.images)
    )
    assert found == expected
    assert (small.min(), small.max()) == (0, 255)


def test_digits_have_their_own_size_and_network_and_no_augmentation():
    dataset = datasets.load("digits")
    assert dataset.image_shape == (8, 8, 1)
    assert dataset.model == "resnet8"
    assert dataset.augment is None


def test_digits_split_is_stratified_and_fixed():
    np.random.seed(1)
    first = datasets.load("digits", "ignored")
    np.random.seed(2)
    second = datasets.load("digits")
    np.testing.assert_array_equal(first.test_images, second.test_images)
    train, test = np.bincount(first.train_labels), np.bincount(first.test_labels)
    np.testing.assert_allclose(test, (train + test) / 5, atol=1.0)


@pytest.mark.parametrize("image_size", [0, 4, 28, -8])
def test_digits_need_a_multiple_of_eight(image_size):
    with pytest.raises(ValueError, match="image_size: expected a positive multiple"):
        datasets.load_digits(image_size)
