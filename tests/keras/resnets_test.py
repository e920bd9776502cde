"""Residual networks: size, seeds, normalisation of the input, dtype of the output."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from oracles.seeds import set_random_seed

from tff_fedmpq.keras import resnet, resnet20, resnet44


def tiny(**kwargs):
    return resnet(8, (8, 8, 3), 4, **kwargs)


def images(seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 255, size=[3, 8, 8, 3]).astype(np.float32)


def kernels(model):
    return [v for v in model.trainable_variables if "kernel" in v.name]


def num_kernel_weights(depth, channels, num_classes):
    """By hand, from table 6 of He et al. and a 1x1 shortcut where filters change."""
    blocks = (depth - 2) // 6
    total, num_inputs = 9 * channels * 16, 16
    for filters in (16, 32, 64):
        total += 9 * num_inputs * filters + (2 * blocks - 1) * 9 * filters * filters
        total += num_inputs * filters if num_inputs != filters else 0
        num_inputs = filters
    return total + 64 * num_classes


@pytest.mark.parametrize(
    "build, depth, num_classes, num_kernels, millions",
    [(resnet20, 20, 10, 22, 0.27), (resnet44, 44, 200, 46, 0.67)],
)
def test_size(build, depth, num_classes, num_kernels, millions):
    model = build()
    assert len(kernels(model)) == num_kernels
    weights = sum(kernel.shape.num_elements() for kernel in kernels(model))
    assert weights == num_kernel_weights(depth, 3, num_classes)
    assert weights / 1e6 == pytest.approx(millions, abs=0.01)
    assert model.output_shape == (None, num_classes)
    assert model.count_params() < 1.03 * weights  # BatchNorm and biases are few.


@pytest.mark.parametrize("depth", [0, 2, 7, 9, 19, 21, -4])
def test_wrong_depth(depth):
    with pytest.raises(ValueError, match=rf"6n \+ 2.*found {depth}"):
        resnet(depth, (8, 8, 3), 4)


def test_halves_the_image_twice():
    model = tiny()
    sizes = [model.get_layer(f"stage{i}_block1_relu").output_shape for i in (1, 2, 3)]
    assert sizes == [(None, 8, 8, 16), (None, 4, 4, 32), (None, 2, 2, 64)]


def test_same_seed_same_weights_whatever_the_global_state():
    set_random_seed(1)
    first = tiny(seed=5)
    set_random_seed(2)
    again, other = tiny(seed=5), tiny(seed=60)
    for one, two, three in zip(kernels(first), kernels(again), kernels(other)):
        np.testing.assert_array_equal(one, two)
        assert np.any(one.numpy() != three.numpy())


def test_without_seed_weights_come_from_keras():
    models = []
    for seed in (7, 7, 8):
        set_random_seed(seed)
        models.append(kernels(tiny())[0].numpy())
    np.testing.assert_array_equal(models[0], models[1])
    assert np.any(models[0] != models[2])


@pytest.mark.parametrize("seed", [0, None])
def test_no_two_layers_share_their_weights(seed):
    """Not even with another model, of the next seed."""
    by_shape = {}
    next_seed = seed if seed is None else seed + 1
    for kernel in kernels(tiny(seed=seed)) + kernels(tiny(seed=next_seed)):
        by_shape.setdefault(tuple(kernel.shape), []).append(kernel.numpy())
    assert max(len(group) for group in by_shape.values()) > 1
    for group in by_shape.values():
        assert len(np.unique([kernel.ravel() for kernel in group], axis=0)) == len(
            group
        )


def test_pixel_statistics_normalise_the_input():
    mean, std = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]
    model = tiny(seed=3, pixel_statistics=(mean, std))
    plain = tiny(seed=3)
    x = images()
    np.testing.assert_allclose(
        model.get_layer("pixels")(x), (x - mean) / std, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        model(x), plain(((x - mean) / std).astype(np.float32)), rtol=1e-3, atol=1e-4
    )
    assert np.max(np.abs(model(x) - plain(x))) > 1e-2


def test_output_is_float32_logits():
    output = tiny(seed=0)(images())
    assert output.dtype == tf.float32
    assert np.all(np.isfinite(output))
    assert np.any(output.numpy() < 0)
    assert np.any(np.abs(np.sum(output, axis=-1) - 1) > 1e-3)


def test_output_is_float32_under_a_mixed_policy():
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = tiny(seed=0)
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
    assert model.get_layer("stem_conv").compute_dtype == "bfloat16"
    assert model(images()).dtype == tf.float32
