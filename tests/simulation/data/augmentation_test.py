"""Tests of the random crop and flip, against all crops there are."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_fedmpq.simulation.data.augmentation import random_crop_and_flip


def all_crops(image, padding):
    """Every possible result for one image: {(top, left, flipped): pixels}."""
    height, width, channels = image.shape
    shape = (height + 2 * padding, width + 2 * padding, channels)
    padded = np.zeros(shape, image.dtype)
    padded[padding : padding + height, padding : padding + width] = image
    crops = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + height, left : left + width]
            crops[top, left, False] = crop
            crops[top, left, True] = crop[:, ::-1]
    return crops


def draws_of(images, results, padding):
    """Which crop each result is; fails where it is none, or more than one."""
    draws = []
    for image, result in zip(images, results):
        matches = [
            draw
            for draw, crop in all_crops(image, padding).items()
            if np.array_equal(crop, result)
        ]
        assert len(matches) == 1, matches
        draws.append(matches[0])
    return draws


def random_images(shape, dtype=np.uint8, seed=0):
    # From 1, so that padding is told from image.
    return np.random.default_rng(seed).integers(1, 256, shape).astype(dtype)


@settings(deadline=None, max_examples=25)
@given(
    count=st.integers(0, 5),
    height=st.integers(4, 7),
    width=st.integers(4, 7),
    channels=st.integers(1, 3),
    padding=st.integers(0, 3),
    dtype=st.sampled_from([np.uint8, np.float16, np.float32, np.float64]),
    seed=st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**31 - 1)),
)
def test_every_result_is_a_crop_of_its_own_image(
    count, height, width, channels, padding, dtype, seed
):
    images = random_images((count, height, width, channels), dtype)
    results = random_crop_and_flip(images, tf.constant(seed, tf.int32), padding)

    assert results.shape == images.shape
    assert results.dtype == images.dtype
    draws_of(images, results.numpy(), padding)


def test_every_offset_is_as_likely_as_the_others_and_half_are_flipped():
    images = random_images((1_200, 4, 5, 1))
    results = random_crop_and_flip(images, [1, 2], padding=1).numpy()
    tops, lefts, flips = np.array(draws_of(images, results, padding=1)).T

    # Six standard deviations: sqrt(1200 * 1/3 * 2/3) = 16, sqrt(1200 / 4) = 17.
    np.testing.assert_allclose(np.bincount(tops, minlength=3), 400, atol=98)
    np.testing.assert_allclose(np.bincount(lefts, minlength=3), 400, atol=98)
    np.testing.assert_allclose(flips.sum(), 600, atol=104)
    joint = np.bincount(6 * tops + 2 * lefts + flips, minlength=18)
    # Independent of each other: sqrt(1200 * 1/18 * 17/18) = 8.
    np.testing.assert_allclose(joint, 1_200 / 18, atol=48)


def test_the_default_padding_is_four():
    images = random_images((400, 8, 8, 1))
    results = random_crop_and_flip(images, [0, 0]).numpy()
    tops, lefts, _ = zip(*draws_of(images, results, padding=4))
    assert set(tops) == set(lefts) == set(range(9))


def test_the_seed_decides():
    images = random_images((64, 8, 8, 3))
    first = random_crop_and_flip(images, [5, 6])
    tf.random.set_seed(1)
    again = random_crop_and_flip(images, [5, 6])
    other = random_crop_and_flip(images, [5, 7])
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    "shape", [[None, 8, 8, 3], [None, None, None, 3], [None, None, None, None]]
)
def test_one_trace_serves_every_batch_size(shape):
    traced = tf.function(random_crop_and_flip).get_concrete_function(
        tf.TensorSpec(shape, tf.uint8), tf.TensorSpec([2], tf.int32)
    )
    assert traced.structured_outputs.shape.as_list() == shape
    for count in (0, 1, 5):
        images = random_images((count, 8, 8, 3))
        results = traced(tf.constant(images), tf.constant([3, 4]))
        assert results.shape == images.shape
        np.testing.assert_array_equal(results, random_crop_and_flip(images, [3, 4]))


def test_in_a_dataset_pipeline():
    images = random_images((10, 8, 8, 3))
    batches = tf.data.Dataset.from_tensor_slices(images).batch(4)
    results = list(batches.map(lambda batch: random_crop_and_flip(batch, [1, 2])))
    assert [len(batch) for batch in results] == [4, 4, 2]
    draws_of(images, np.concatenate(results), padding=4)


def test_wrong_arguments():
    images = random_images((2, 4, 4, 3))
    with pytest.raises(ValueError, match=r"images: expected shape \[n, h, w, c\]"):
        random_crop_and_flip(images[0], [0, 0])
    with pytest.raises(ValueError, match="padding: expected 0 or more pixels"):
        random_crop_and_flip(images, [0, 0], padding=-1)
