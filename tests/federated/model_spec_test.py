"""Which weights are kernels, in which order they stand, and that none gets lost."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_fedmpq.federated import model_spec
from tff_fedmpq.federated.model_spec import (
    FloatWeights,
    ModelSpec,
    float_non_trainable_variables,
    float_rest_variables,
)
from tff_fedmpq.keras import QuantDense, quantize_model


@st.composite
def specs(draw):
    """Specs in which kernels and other weights stand in any order."""
    is_kernel = tuple(draw(st.lists(st.booleans(), max_size=8)))
    num_non_trainable = draw(st.integers(min_value=0, max_value=4))
    shapes = tuple((i + 1, 2) for i in range(len(is_kernel)))
    return ModelSpec(
        tuple(f"layer{i}" for i in range(sum(is_kernel))),
        shapes,
        is_kernel,
        tuple((i + 20,) for i in range(num_non_trainable)),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(specs())
def test_split_and_join_are_inverse(spec):
    trainable = tuple(f"t{i}" for i in range(len(spec.trainable_shapes)))
    non_trainable = tuple(f"n{i}" for i in range(len(spec.non_trainable_shapes)))
    weights = spec.split(trainable, non_trainable)
    assert len(weights.kernels) == len(spec.kernel_shapes)
    assert len(weights.rest) == len(spec.rest_shapes)
    assert spec.join(weights) == (trainable, non_trainable)
    assert spec.split(*spec.join(weights)) == weights


@settings(max_examples=60, deadline=None, derandomize=True)
@given(specs())
def test_shapes_are_split_as_weights_are(spec):
    split = spec.split(spec.trainable_shapes, spec.non_trainable_shapes)
    assert split == FloatWeights(spec.kernel_shapes, spec.rest_shapes)
    assert spec.layer_sizes.tolist() == [2 * n for n, _ in spec.kernel_shapes]


def test_a_model_is_read_in_keras_order(problem):
    model = problem.model_fn()
    spec = problem.spec
    assert spec.trainable_shapes == tuple(
        tuple(v.shape) for v in model.trainable_variables
    )
    assert spec.non_trainable_shapes == ((4,), (4,))
    assert spec.is_kernel == (True, False, False, True, False)
    assert spec.kernel_names == ("conv", "classifier")
    assert spec.kernel_shapes == ((3, 3, 3, 4), (36, 4))
    assert spec.rest_shapes == ((4,), (4,), (4,), (4,), (4,))
    assert spec.layer_sizes.tolist() == [108, 144]


def test_join_gives_what_keras_set_weights_takes(problem):
    model = problem.model_fn()
    rng = np.random.default_rng(0)
    weights = FloatWeights(
        [
            rng.normal(size=shape).astype(np.float32)
            for shape in problem.spec.kernel_shapes
        ],
        [
            rng.normal(size=shape).astype(np.float32)
            for shape in problem.spec.rest_shapes
        ],
    )
    trainable, non_trainable = problem.spec.join(weights)
    for variable, value in zip(model.trainable_variables, trainable):
        variable.assign(value)
    for variable, value in zip(model.non_trainable_variables, non_trainable):
        variable.assign(value)
    convolution, normalization, _, _, dense = model.layers
    np.testing.assert_array_equal(convolution.kernel, weights.kernels[0])
    np.testing.assert_array_equal(dense.kernel, weights.kernels[1])
    rest = [normalization.gamma, normalization.beta, dense.bias]
    rest += [normalization.moving_mean, normalization.moving_variance]
    for variable, value in zip(rest, weights.rest):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize("activation_bits", [None, 4])
def test_a_float_model_has_no_kernels(problem, activation_bits):
    model = quantize_model(problem.model_fn(), None, activation_bits)
    spec = ModelSpec.from_model(model)
    assert spec.kernel_names == spec.kernel_shapes == ()
    assert not any(spec.is_kernel)
    assert spec.layer_sizes.shape == (0,)
    assert spec.rest_shapes == spec.trainable_shapes + spec.non_trainable_shapes


def test_a_frozen_layer_is_refused_with_advice_that_can_be_followed():
    def model(frozen):
        head = tf.keras.layers.Dense(2)
        model = tf.keras.Sequential([tf.keras.Input([3]), frozen, head])
        return quantize_model(model, 4)

    with pytest.raises(ValueError, match=r"trainable=False.*bit_width=None"):
        ModelSpec.from_model(model(tf.keras.layers.Dense(5, trainable=False)))
    frozen = QuantDense(5, bit_width=None, trainable=False)
    spec = ModelSpec.from_model(model(frozen))
    assert spec.kernel_shapes == ((5, 2),)
    assert (3, 5) in spec.rest_shapes


def test_a_layer_too_large_for_a_message_is_refused(problem, monkeypatch):
    model = quantize_model(problem.model_fn(), 8)
    sizes = ModelSpec.from_model(model).layer_sizes
    monkeypatch.setattr(model_spec, "_MAX_LAYER_SIZE", sizes.max())
    with pytest.raises(ValueError, match="split the layer"):
        ModelSpec.from_model(model)
    monkeypatch.setattr(model_spec, "_MAX_LAYER_SIZE", sizes.max() + 1)
    ModelSpec.from_model(model)


def test_layers_left_in_float_are_rest(problem):
    inner = problem.model_fn()
    model = tf.keras.Sequential(
        [tf.keras.layers.Input((8, 8, 3)), tf.keras.layers.SeparableConv2D(3, 1), inner]
    )
    spec = ModelSpec.from_model(quantize_model(model, 4))
    assert spec.kernel_shapes == problem.spec.kernel_shapes
    assert spec.rest_shapes[:3] == ((1, 1, 3, 1), (1, 1, 3, 3), (3,))


def test_scales_bit_widths_and_counters_are_not_averaged(problem):
    model = problem.scheme.build_client_model(problem.model_fn)
    normalization = model.layers[1]
    statistics = [normalization.moving_mean, normalization.moving_variance]
    assert [v.name for v in float_non_trainable_variables(model)] == [
        v.name for v in statistics
    ]
    # Keras lists four variables more: a scale and a bit-width per quantized layer.
    assert len(model.non_trainable_variables) == 2 + 4
    shapes = tuple(tuple(v.shape) for v in float_rest_variables(model))
    assert shapes == problem.spec.rest_shapes
    counting = tf.keras.Sequential([tf.keras.layers.Dropout(0.5), *model.layers])
    counting.build((None, 8, 8, 3))
    assert ModelSpec.from_model(counting).rest_shapes == problem.spec.rest_shapes


def test_moments_of_parts_average_to_those_of_the_whole():
    """Clients' inputs in equal parts: averaged moments are those of all together."""
    model = quantize_model(
        tf.keras.Sequential(
            [
                tf.keras.layers.Dense(3, use_bias=False, input_shape=(2,)),
                tf.keras.layers.BatchNormalization(),
                tf.keras.layers.Dense(3),
                tf.keras.layers.BatchNormalization(scale=False),
            ]
        ),
        4,
        4,
    )
    spec = ModelSpec.from_model(model)
    assert len(spec.batch_statistics) == 2
    rest = [v.numpy() for v in float_rest_variables(model)]
    rng = np.random.default_rng(0)
    inputs = rng.normal([[[0.0]], [[5.0]]], 2.0, [2, 1000, 3]).astype(np.float32)
    sent = []
    for part in inputs:
        for mean, variance in spec.batch_statistics:
            rest[mean], rest[variance] = part.mean(0), part.var(0)
        assert_same(spec.from_moments(spec.to_moments(rest)), rest, rtol=1e-4)
        sent.append(spec.to_moments(rest))
    pooled = spec.from_moments([(a + b) / 2 for a, b in zip(*sent)])
    whole = inputs.reshape(-1, 3)
    for mean, variance in spec.batch_statistics:
        np.testing.assert_allclose(pooled[mean], whole.mean(0), rtol=1e-4)
        np.testing.assert_allclose(pooled[variance], whole.var(0), rtol=1e-3)


def test_variances_do_not_fall_below_zero():
    spec = ModelSpec((), (), (), ((1,), (1,)), ((0, 1),))
    _, variance = spec.from_moments([tf.constant([3.0]), tf.constant([8.9999])])
    assert variance.numpy() == 0


def assert_same(found, expected, rtol):
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=rtol)
