"""Tests of the digits that come with scikit-learn."""

import numpy as np

from tff_fedmpq.simulation import data as datasets


def test_every_digit_is_there_once():
    from sklearn.datasets import load_digits

    dataset = datasets.load_digits()
    assert dataset.train_images.shape == (1437, 8, 8, 1)
    assert dataset.test_images.shape == (360, 8, 8, 1)
    images = np.concatenate([dataset.train_images, dataset.test_images])[..., 0]
    # Greys 0..16 are spread over 0..255.
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    greys = np.rint(images / 255 * 16)
    found = sorted((label, *g.ravel()) for label, g in zip(labels, greys))
    original = load_digits()
    expected = sorted(
        (label, *g.ravel()) for label, g in zip(original.target, original.images)
    )
    assert found == expected
    assert (images.min(), images.max()) == (0, 255)


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
