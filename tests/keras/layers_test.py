"""Layers on integer codes: what all of them have to pass, and the ReLU of k bits."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import tensorflow as tf
from oracles import quantization as oracle
from oracles.seeds import set_random_seed

from tff_fedmpq import keras
from tff_fedmpq.keras import (
    IntegerSGD,
    QuantConv2D,
    QuantDense,
    QuantDepthwiseConv2D,
    QuantReLU,
    quantized_kernels,
)
from tff_fedmpq.quantization import gaussian
from tff_fedmpq.quantization.representations import OFFSET_BINARY

ORACLES = {
    "offset_binary": oracle.OFFSET_BINARY,
    "sign_magnitude": oracle.SIGN_MAGNITUDE,
}
every_representation = pytest.mark.parametrize("representation", sorted(ORACLES))


class QuantizedLayerBase:
    """The tests of a layer; a subclass says which layer, and what it differs from.

    Attributes:
      quantized: the class under test.
      stock: the Keras class whose function it computes.
      arguments: of both.
      input_shape: without the batch.
      kernel_name: as in `kernel_regularizer`.
      kernel_attribute: where the stock layer keeps its kernel.
    """

    quantized: type
    stock: type
    arguments: dict
    input_shape: tuple
    kernel_name = "kernel"
    kernel_attribute = "kernel"

    def make(self, **kwargs):
        """A built layer with a bias that is not zero."""
        layer = self.quantized(**{**self.common(), **kwargs})
        layer.build((None, *self.input_shape))
        return layer

    def make_stock(self, **kwargs):
        layer = self.stock(**{**self.common(), **kwargs})
        layer.build((None, *self.input_shape))
        return layer

    def common(self):
        return {
            **self.arguments,
            f"{self.kernel_name}_initializer": tf.keras.initializers.HeNormal(seed=1),
            "bias_initializer": tf.keras.initializers.RandomNormal(seed=2),
        }

    def make_stock_like(self, layer, **kwargs):
        """The stock layer with the weights that the codes of `layer` stand for."""
        stock = self.make_stock(**kwargs)
        stock.set_weights([dequantized(layer), layer.bias.numpy()])
        return stock

    def make_model(self, **kwargs):
        layer = self.quantized(**{**self.common(), **kwargs})
        head = tf.keras.layers.Dense(
            2, kernel_initializer=tf.keras.initializers.HeNormal(seed=3)
        )
        model = tf.keras.Sequential(
            [tf.keras.Input(self.input_shape), layer, tf.keras.layers.Flatten(), head]
        )
        # Op by op, which is quicker than tracing; optimizer_test traces.
        model.compile(IntegerSGD(seed=4), "mse", run_eagerly=True)
        return model

    def inputs(self, batch=4, seed=0):
        rng = np.random.default_rng(seed)
        return rng.normal(size=[batch, *self.input_shape]).astype(np.float32)

    def targets(self, batch=4):
        return np.random.default_rng(9).normal(size=[batch, 2]).astype(np.float32)

    # --- configuration and saving ---

    def test_config_round_trip(self):
        layer = self.quantized(
            **self.common(),
            bit_width=3,
            activation="relu",
            activation_bits=4,
            representation="offset_binary",
            scale_rule="max",
            lasso_strength=0.25,
        )
        config = tf.keras.layers.serialize(layer)
        copy = tf.keras.layers.deserialize(config)
        assert type(copy) is self.quantized
        assert copy.get_config() == layer.get_config()
        assert (
            copy.get_config().items()
            >= {
                "bit_width": 3,
                "activation_bits": 4,
                "representation": "offset_binary",
                "scale_rule": "max",
                "lasso_strength": 0.25,
            }.items()
        )
        layer.build((None, *self.input_shape))
        copy.build((None, *self.input_shape))
        np.testing.assert_array_equal(copy(self.inputs()), layer(self.inputs()))

    def test_keras_file_round_trip(self, tmp_path):
        """Predictions are equal, and so is the training that follows."""
        model = self.make_model(
            bit_width=5, activation="relu", activation_bits=4, lasso_strength=0.01
        )
        x, y = self.inputs(), self.targets()
        model.train_on_batch(x, y)
        model.save(tmp_path / "model.keras")
        loaded = tf.keras.models.load_model(tmp_path / "model.keras")
        assert type(loaded.layers[0]) is self.quantized
        assert isinstance(loaded.optimizer, IntegerSGD)
        np.testing.assert_array_equal(loaded(x), model(x))
        loaded.run_eagerly = True
        for _ in range(2):
            assert loaded.train_on_batch(x, y) == model.train_on_batch(x, y)
        for one, two in zip(loaded.variables, model.variables):
            np.testing.assert_array_equal(one, two)

    def test_weights_round_trip_through_a_checkpoint(self, tmp_path):
        layer = self.make(bit_width=4)
        tf.train.Checkpoint(layer=layer).write(str(tmp_path / "weights"))
        other = self.make(bit_width=7, scale_rule="max")
        status = tf.train.Checkpoint(layer=other).read(str(tmp_path / "weights"))
        status.assert_consumed()
        np.testing.assert_array_equal(other(self.inputs()), layer(self.inputs()))

    # --- the function ---

    def test_is_the_stock_layer_without_quantization(self):
        layer = self.make(bit_width=None, activation="relu")
        stock = self.make_stock(activation="relu")
        assert [w.shape for w in layer.weights] == [w.shape for w in stock.weights]
        assert layer.quantized_kernel is None
        x = self.inputs()
        np.testing.assert_array_equal(layer(x), stock(x))
        results = []
        for each in (layer, stock):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.sin(each(x)))
            results.append(tape.gradient(loss, each.trainable_variables))
        for one, two in zip(*results):
            np.testing.assert_array_equal(one, two)

    @every_representation
    @pytest.mark.parametrize("bit_width", [1, 2, 5, 8])
    def test_is_the_stock_layer_of_the_dequantized_kernel(
        self, representation, bit_width
    ):
        layer = self.make(bit_width=bit_width, representation=representation)
        stock = self.make_stock_like(layer)
        x = self.inputs()
        np.testing.assert_allclose(layer(x), stock(x), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            getattr(layer, self.kernel_attribute), stock.get_weights()[0], rtol=1e-6
        )

    def test_activation_bits_quantize_the_output(self):
        layer = self.make(activation="relu", activation_bits=3)
        x = 5 * self.inputs(batch=8)
        position = np.clip(self.make_stock_like(layer)(x), 0, 6) / (6 / 7)
        clear = np.abs(position - np.floor(position) - 0.5) > 1e-3
        assert len(np.unique(np.rint(position))) > 4
        np.testing.assert_allclose(
            layer(x).numpy()[clear], (6 / 7 * np.rint(position))[clear], rtol=1e-5
        )

    def test_keras_policies(self):
        layer = self.make(dtype="mixed_bfloat16")
        output = layer(self.inputs())
        assert output.dtype == tf.bfloat16
        assert layer.quantized_kernel.codes.dtype == tf.uint8
        assert layer.quantized_kernel.scale.dtype == tf.float32
        np.testing.assert_allclose(
            tf.cast(output, tf.float32), self.make()(self.inputs()), atol=0.1
        )
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.cast(layer(self.inputs()), tf.float32))
        gradient = tape.gradient(loss, layer.quantized_kernel.codes)
        assert gradient.dtype == tf.float32
        assert np.any(gradient)

    # --- the variables ---

    def test_codes_are_the_only_kernel(self):
        layer = self.make(bit_width=4)
        kernel = layer.quantized_kernel
        assert kernel.codes.dtype == tf.uint8
        shape = self.make_stock().get_weights()[0].shape
        like_kernel = [v for v in layer.variables if v.shape == shape]
        assert len(like_kernel) == 1
        assert like_kernel[0] is kernel.codes
        assert np.max(kernel.codes) <= 15
        assert kernel.bit_width.dtype == tf.int32 and int(kernel.bit_width) == 4
        trainable = [v.name for v in layer.trainable_variables]
        assert trainable == [kernel.codes.name, layer.bias.name]
        assert len(layer.variables) == 4  # Codes, bias, scale, bit-width.

    @pytest.mark.parametrize(
        ("representation", "bit_width", "scale_rule"),
        [
            ("offset_binary", 1, "max"),
            ("sign_magnitude", 8, "max"),
            ("sign_magnitude", 1, "least_squares"),
            ("offset_binary", 3, "least_squares"),
            ("sign_magnitude", 3, "widening"),
            ("offset_binary", 8, "widening"),
            ("sign_magnitude", 1, "widening"),
        ],
    )
    def test_initial_codes_describe_what_the_initializer_gave(
        self, representation, bit_width, scale_rule
    ):
        layer = self.make(
            bit_width=bit_width, representation=representation, scale_rule=scale_rule
        )
        weights = self.make_stock().get_weights()[0]
        expected = ORACLES[representation]
        scale = float(layer.quantized_kernel.scale)
        largest = 2 * np.max(np.abs(weights))
        if scale_rule == "max":
            assert scale == pytest.approx(largest, rel=1e-6)
        elif scale_rule == "widening" and bit_width > 2:
            root_mean_square = np.sqrt(np.mean(np.square(weights)))
            step = root_mean_square * gaussian.STEPS[bit_width - 1]
            assert scale >= (1 - 1e-5) * step * (2**bit_width - 1)
        else:  # How near it is to the least error: see tests of scales.
            errors = [
                oracle.squared_error(expected, weights, s, bit_width)
                for s in (scale, largest)
            ]
            assert errors[0] <= errors[1]
        clear = ~oracle.is_near_tie(expected, weights, scale, bit_width)
        np.testing.assert_array_equal(
            layer.quantized_kernel.codes.numpy()[clear],
            oracle.nearest_codes(expected, weights, scale, bit_width)[clear],
        )

    def test_keras_seed_decides_the_initial_codes(self):
        def initial_codes(seed):
            set_random_seed(seed)
            layer = self.quantized(**self.arguments)
            layer.build((None, *self.input_shape))
            return layer.quantized_kernel.codes.numpy()

        np.testing.assert_array_equal(initial_codes(1), initial_codes(1))
        assert np.any(initial_codes(1) != initial_codes(2))

    def test_other_bit_width_keeps_the_weights(self):
        """In a function that was traced before."""
        layer = self.make(bit_width=8)
        call = tf.function(layer)
        before = dequantized(layer)
        call(self.inputs())
        layer.quantized_kernel.set_bit_width(5)
        assert np.max(layer.quantized_kernel.codes) <= 31
        delta = float(layer.quantized_kernel.scale) / 31
        assert np.max(np.abs(dequantized(layer) - before)) <= 0.501 * delta
        np.testing.assert_allclose(
            call(self.inputs()),
            self.make_stock_like(layer)(self.inputs()),
            rtol=1e-5,
            atol=1e-5,
        )
        assert call.experimental_get_tracing_count() == 1

    # --- training ---

    @every_representation
    @pytest.mark.parametrize("bit_width", [1, 4, 8])
    def test_gradient_of_codes(self, representation, bit_width):
        """dL/du = delta dL/dW, with dL/dW from the stock layer."""
        layer = self.make(bit_width=bit_width, representation=representation)
        stock = self.make_stock_like(layer)
        x = self.inputs()
        gradients = []
        for each in (layer, stock):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.sin(each(x)))
            gradients.append(tape.gradient(loss, each.trainable_variables))
        (of_codes, of_bias), (of_weights, stock_bias) = gradients
        assert of_codes.dtype == tf.float32
        delta = float(layer.quantized_kernel.scale) / (2**bit_width - 1)
        expected = delta * of_weights.numpy()
        assert np.any(expected)
        np.testing.assert_allclose(
            of_codes, expected, rtol=1e-4, atol=1e-5 * np.max(np.abs(expected))
        )
        np.testing.assert_allclose(of_bias, stock_bias, rtol=1e-4, atol=1e-5)

    def test_one_training_step(self):
        model = self.make_model(bit_width=4)
        kernel = quantized_kernels(model)[0]
        before, scale = kernel.codes.numpy(), float(kernel.scale)
        loss = model.train_on_batch(self.inputs(), self.targets())
        assert np.isfinite(loss)
        assert kernel.codes.dtype == tf.uint8
        assert np.any(kernel.codes.numpy() != before)
        assert np.max(kernel.codes) <= 15
        assert float(kernel.scale) == scale
        assert int(kernel.bit_width) == 4

    def test_every_trainable_variable_moves(self):
        model = self.make_model(bit_width=4, lasso_strength=1e-4)
        before = [variable.numpy() for variable in model.trainable_variables]
        for _ in range(3):
            model.train_on_batch(self.inputs(), self.targets())
        assert len(before) == 4
        for variable, old in zip(model.trainable_variables, before):
            assert np.any(variable.numpy() != old), variable.name

    def test_kernel_regularizer_reaches_the_codes(self):
        layer = self.make(
            bit_width=4,
            **{f"{self.kernel_name}_regularizer": tf.keras.regularizers.L2(0.1)},
        )
        weights = dequantized(layer)
        with tf.GradientTape() as tape:
            (loss,) = layer.losses
        assert float(loss) == pytest.approx(0.1 * np.sum(weights**2), rel=1e-5)
        delta = float(layer.quantized_kernel.scale) / 15
        np.testing.assert_allclose(
            tape.gradient(loss, layer.quantized_kernel.codes),
            delta * 2 * 0.1 * weights,
            rtol=1e-5,
        )

    # --- wrong arguments ---

    def test_constraint_is_refused(self):
        with pytest.raises(ValueError, match="constraint"):
            self.make(**{f"{self.kernel_name}_constraint": "non_neg"})
        self.make(bit_width=None, **{f"{self.kernel_name}_constraint": "non_neg"})

    @pytest.mark.parametrize(
        "wrong, message",
        [
            ({"bit_width": 0}, "bit_width.*1 to 8.*found 0"),
            ({"bit_width": 9}, "bit_width.*1 to 8.*found 9"),
            ({"bit_width": 2.5}, "bit_width.*1 to 8.*found 2.5"),
            ({"representation": "gray"}, "representation 'gray'.*sign_magnitude"),
            ({"scale_rule": "mean"}, "scale rule 'mean'.*least_squares"),
            ({"activation_bits": 4}, "activation_bits.*ReLU"),
            ({"activation": "softmax", "activation_bits": 4}, "activation_bits.*ReLU"),
            ({"activation": "relu", "activation_bits": 0}, "activation_bits.*found 0"),
            ({"activation": "relu", "activation_bits": 9}, "activation_bits.*found 9"),
            ({"lasso_strength": -0.1}, "lasso_strength.*found -0.1"),
            ({"lasso_strength": float("nan")}, "lasso_strength.*found nan"),
        ],
        ids=str,
    )
    def test_wrong_arguments(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            self.quantized(**{**self.arguments, **wrong})


def dequantized(layer):
    """delta (u - z), in NumPy."""
    kernel = layer.quantized_kernel
    table = oracle.levels(
        ORACLES[layer.representation], kernel.scale.numpy(), int(kernel.bit_width)
    )
    return table[kernel.codes.numpy()].astype(np.float32)


class TestQuantConv2D(QuantizedLayerBase):
    quantized = QuantConv2D
    stock = tf.keras.layers.Conv2D
    arguments = {"filters": 6, "kernel_size": 3, "strides": 2, "padding": "same"}
    input_shape = (6, 6, 4)

    @pytest.mark.parametrize(
        "more", [{"groups": 2}, {"strides": 1, "dilation_rate": 2}], ids=str
    )
    def test_other_convolutions(self, more):
        layer = self.make(bit_width=4, **more)
        stock = self.make_stock_like(layer, **more)
        np.testing.assert_allclose(
            layer(self.inputs()), stock(self.inputs()), rtol=1e-5, atol=1e-5
        )


class TestQuantDense(QuantizedLayerBase):
    quantized = QuantDense
    stock = tf.keras.layers.Dense
    arguments = {"units": 7}
    input_shape = (9,)


class TestQuantDepthwiseConv2D(QuantizedLayerBase):
    quantized = QuantDepthwiseConv2D
    stock = tf.keras.layers.DepthwiseConv2D
    arguments = {"kernel_size": 3, "depth_multiplier": 2, "padding": "valid"}
    input_shape = (5, 5, 3)
    kernel_name = "depthwise"
    kernel_attribute = "depthwise_kernel"


class TestQuantConv1D(QuantizedLayerBase):
    quantized = keras.QuantConv1D
    stock = tf.keras.layers.Conv1D
    arguments = {"filters": 6, "kernel_size": 3, "padding": "causal"}
    input_shape = (6, 4)


class TestQuantConv3D(QuantizedLayerBase):
    quantized = keras.QuantConv3D
    stock = tf.keras.layers.Conv3D
    arguments = {"filters": 4, "kernel_size": 2}
    input_shape = (3, 3, 3, 2)


class TestQuantConv2DTranspose(QuantizedLayerBase):
    quantized = keras.QuantConv2DTranspose
    stock = tf.keras.layers.Conv2DTranspose
    arguments = {"filters": 5, "kernel_size": 3, "strides": 2}
    input_shape = (3, 3, 4)


class TestQuantEinsumDense(QuantizedLayerBase):
    quantized = keras.QuantEinsumDense
    stock = tf.keras.layers.EinsumDense
    arguments = {"equation": "ab,bcd->acd", "output_shape": (3, 4), "bias_axes": "cd"}
    input_shape = (5,)


# Layers share what is saved, and differ in the one operation that calls the kernel.
SAVED = (TestQuantConv2D, TestQuantDense, TestQuantDepthwiseConv2D)


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in SAVED else pytest.param(kind, marks=pytest.mark.slow)
        for kind in QuantizedLayerBase.__subclasses__()
    ],
)
def test_saved_model_round_trip(kind, tmp_path):
    kind = kind()
    model = kind.make_model(bit_width=3, activation="relu", activation_bits=4)
    x = kind.inputs()
    model.train_on_batch(x, kind.targets())
    model.save(tmp_path / "model", save_format="tf")
    loaded = tf.keras.models.load_model(tmp_path / "model")
    np.testing.assert_array_equal(loaded(x), model(x))
    assert len(quantized_kernels(loaded)) == 1
    # And without this package's classes.
    served = tf.saved_model.load(str(tmp_path / "model"))
    np.testing.assert_allclose(served(x), model(x), rtol=1e-6)


class TestQuantReLU:
    def test_output(self):
        x = np.array([-3, 0, 0.9, 1.9, 3.1, 5.9, 40], np.float32)
        result = QuantReLU(2)(x)
        np.testing.assert_allclose(result, [0, 0, 0, 2, 4, 6, 6], atol=1e-6)
        result = QuantReLU(2, clip_value=3.0)(x)
        np.testing.assert_allclose(result, [0, 0, 1, 2, 3, 3, 3], atol=1e-6)

    def test_config_round_trip(self):
        layer = QuantReLU(3, clip_value=2.0, name="relu")
        copy = tf.keras.layers.deserialize(tf.keras.layers.serialize(layer))
        assert copy.get_config() == layer.get_config()
        x = np.linspace(-1, 3, 50, dtype=np.float32)
        np.testing.assert_array_equal(copy(x), layer(x))

    def test_policy(self):
        x = tf.random.stateless_uniform([4, 5], [1, 2], 0, 7)
        result = QuantReLU(4, dtype="mixed_bfloat16")(x)
        assert result.dtype == tf.bfloat16

    @pytest.mark.parametrize("bits", [0, 9, 2.5])
    def test_wrong_bits(self, bits):
        with pytest.raises(ValueError, match="activation_bits.*1 to 8"):
            QuantReLU(bits)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (QuantDense(3), "kernel"),
        (QuantConv2D(3, 3), "kernel"),
        (QuantDepthwiseConv2D(3), "depthwise_kernel"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_layer_has_no_kernel_before_it_is_built(layer, name):
    assert not hasattr(layer, name)
    layer.build([1, 8, 8, 2])
    assert hasattr(layer, name)


def test_config_of_quantized_activation_gives_no_warning():
    layer = QuantDense(3, activation="relu", activation_bits=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.get_config()


# --- arguments ----------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, 9, 2.5, "4", [4], float("nan"), float("inf")])
def test_wrong_bit_widths_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match="bit_width has to be an integer from 1 to 8"):
        QuantDense(3, bit_width=wrong)


@pytest.mark.parametrize(
    "whole", [4.0, np.int64(4), np.float32(4), np.array(4), tf.constant(4)]
)
def test_whole_numbers_of_any_type_are_bit_widths(whole):
    layer = QuantDense(3, bit_width=whole)
    layer.build([None, 2])
    assert int(layer.quantized_kernel.bit_width) == layer.get_config()["bit_width"] == 4


def test_a_representation_is_saved_by_name():
    layer = QuantDense(3, representation=OFFSET_BINARY)
    assert layer.get_config()["representation"] == "offset_binary"
    with pytest.raises(ValueError, match="Unknown representation None"):
        QuantDense(3, representation=None)


def test_functions_are_no_initializers_of_codes():
    """Called twice, they may give scale and codes of different weights."""
    QuantDense(3, kernel_initializer=tf.random_normal_initializer()).build([None, 2])
    layer = QuantDense(3, kernel_initializer=lambda shape, dtype: tf.ones(shape, dtype))
    with pytest.raises(TypeError, match="Keras initializer"):
        layer.build([None, 2])


def test_a_deep_copy_of_a_layer_has_codes_of_its_own():
    layer = QuantDense(3, "relu", bit_width=3, activation_bits=4, name="one")
    x = tf.random.normal([5, 4])
    expected = layer(x)
    copied = copy.deepcopy(layer)
    tf.debugging.assert_equal(copied(x), expected)
    (kernel,), (own,) = map(quantized_kernels, (layer, copied))
    kernel.codes.assign(tf.zeros_like(kernel.codes))
    tf.debugging.assert_equal(copied(x), expected)
    assert own.codes.quantized_kernel is own
    assert own.codes is copied.trainable_variables[0]


def test_a_layer_that_builds_its_parts_when_called_is_copied():
    x = tf.random.normal([2, 5, 6])
    layer = keras.QuantMultiHeadAttention(2, 3, bit_width=4)
    expected = layer(x, x)
    copied = copy.deepcopy(layer)
    for kernel in quantized_kernels(layer):
        kernel.codes.assign(tf.zeros_like(kernel.codes))
    assert len(quantized_kernels(copied)) == 4
    tf.debugging.assert_equal(copied(x, x), expected)
    assert not copy.deepcopy(keras.QuantMultiHeadAttention(2, 3)).weights


@pytest.mark.parametrize("clip_value", [0, -1.0, float("nan")])
def test_relu_is_clipped_above_zero(clip_value):
    with pytest.raises(ValueError, match="clip_value has to be above 0"):
        QuantReLU(4, clip_value)
