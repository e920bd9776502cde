"""Which weights are kernels, in which order they stand, and that none gets lost."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_fedmpq.keras import QuantDense, quantize_model, variables
from tff_fedmpq.keras.variables import (
    FloatWeights,
    ModelSpec,
    float_non_trainable_variables,
    float_parameter_variables,
)


def make_model():
    """Kernels of 108 and 144 weights; BatchNorm and a bias between and after them."""
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(4, 3, strides=2, use_bias=False, name="conv"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(4, name="classifier"),
        ]
    )


@pytest.fixture(scope="module")
def spec():
    return ModelSpec.from_model(quantize_model(make_model(), 8))


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
    assert len(weights.float_parameters) == len(spec.float_parameter_shapes)
    assert spec.join(weights) == (trainable, non_trainable)
    assert spec.split(*spec.join(weights)) == weights


@settings(max_examples=60, deadline=None, derandomize=True)
@given(specs())
def test_shapes_are_split_as_weights_are(spec):
    split = spec.split(spec.trainable_shapes, spec.non_trainable_shapes)
    assert split == FloatWeights(spec.kernel_shapes, spec.float_parameter_shapes)
    assert spec.layer_sizes.tolist() == [2 * n for n, _ in spec.kernel_shapes]


def test_a_model_is_read_in_keras_order(spec):
    model = make_model()
    assert spec.trainable_shapes == tuple(
        tuple(v.shape) for v in model.trainable_variables
    )
    assert spec.non_trainable_shapes == ((4,), (4,))
    assert spec.is_kernel == (True, False, False, True, False)
    assert spec.kernel_names == ("conv", "classifier")
    assert spec.kernel_shapes == ((3, 3, 3, 4), (36, 4))
    assert spec.float_parameter_shapes == ((4,), (4,), (4,), (4,), (4,))
    assert spec.layer_sizes.tolist() == [108, 144]


def test_join_gives_what_keras_set_weights_takes(spec):
    model = make_model()
    rng = np.random.default_rng(0)
    weights = FloatWeights(
        [rng.normal(size=shape).astype(np.float32) for shape in spec.kernel_shapes],
        [
            rng.normal(size=shape).astype(np.float32)
            for shape in spec.float_parameter_shapes
        ],
    )
    trainable, non_trainable = spec.join(weights)
    for variable, value in zip(model.trainable_variables, trainable):
        variable.assign(value)
    for variable, value in zip(model.non_trainable_variables, non_trainable):
        variable.assign(value)
    convolution, normalization, _, _, dense = model.layers
    np.testing.assert_array_equal(convolution.kernel, weights.kernels[0])
    np.testing.assert_array_equal(dense.kernel, weights.kernels[1])
    others = [normalization.gamma, normalization.beta, dense.bias]
    others += [normalization.moving_mean, normalization.moving_variance]
    for variable, value in zip(others, weights.float_parameters):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize("activation_bits", [None, 4])
def test_a_float_model_has_no_kernels(activation_bits):
    model = quantize_model(make_model(), None, activation_bits)
    spec = ModelSpec.from_model(model)
    assert spec.kernel_names == spec.kernel_shapes == ()
    assert not any(spec.is_kernel)
    assert spec.layer_sizes.shape == (0,)
    assert (
        spec.float_parameter_shapes == spec.trainable_shapes + spec.non_trainable_shapes
    )


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
    assert (3, 5) in spec.float_parameter_shapes


def test_a_layer_too_large_for_a_message_is_refused(monkeypatch):
    model = quantize_model(make_model(), 8)
    sizes = ModelSpec.from_model(model).layer_sizes
    monkeypatch.setattr(variables, "_MAX_LAYER_SIZE", sizes.max())
    with pytest.raises(ValueError, match="split the layer"):
        ModelSpec.from_model(model)
    monkeypatch.setattr(variables, "_MAX_LAYER_SIZE", sizes.max() + 1)
    ModelSpec.from_model(model)


def test_layers_left_in_float_are_float_parameters(spec):
    inner = make_model()
    model = tf.keras.Sequential(
        [tf.keras.Input((8, 8, 3)), tf.keras.layers.PReLU(shared_axes=[1, 2]), inner]
    )
    outer = ModelSpec.from_model(quantize_model(model, 4))
    assert outer.kernel_shapes == spec.kernel_shapes
    assert outer.float_parameter_shapes[0] == (1, 1, 3)


def test_scales_bit_widths_and_counters_are_not_averaged(spec):
    model = quantize_model(make_model(), 8)
    normalization = model.layers[1]
    statistics = [normalization.moving_mean, normalization.moving_variance]
    assert [v.name for v in float_non_trainable_variables(model)] == [
        v.name for v in statistics
    ]
    # Keras lists four variables more: a scale and a bit-width per quantized layer.
    assert len(model.non_trainable_variables) == 2 + 4
    shapes = tuple(tuple(v.shape) for v in float_parameter_variables(model))
    assert shapes == spec.float_parameter_shapes
    counting = tf.keras.Sequential([tf.keras.layers.Dropout(0.5), *model.layers])
    counting.build((None, 8, 8, 3))
    assert (
        ModelSpec.from_model(counting).float_parameter_shapes
        == spec.float_parameter_shapes
    )
