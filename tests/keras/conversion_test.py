"""quantize_model: which layers change, which weights stay, which models it takes."""

from __future__ import annotations

import contextlib
import logging

import numpy as np
import pytest
import tensorflow as tf
from oracles.seeds import set_random_seed

import tff_fedmpq
import tff_fedmpq.export
from tff_fedmpq.keras import (
    IntegerSGD,
    QuantActivation,
    QuantConv2D,
    QuantDense,
    QuantDepthwiseConv2D,
    QuantReLU,
    quantize_model,
    quantized_kernels,
    register_quantized_layer,
    resnet,
)

layers = tf.keras.layers

# --- models -----------------------------------------------------------------


def sequential():
    return tf.keras.Sequential(
        [
            tf.keras.Input([8, 8, 3]),
            layers.Conv2D(6, 3, activation="relu", name="conv"),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Flatten(name="flatten"),
            layers.Dense(5, activation="tanh", name="hidden"),
            layers.Dense(4, name="logits"),
        ]
    )


def with_skip_connections():
    inputs = tf.keras.Input([8, 8, 3])
    x = layers.Conv2D(6, 3, padding="same", use_bias=False)(inputs)
    x = layers.BatchNormalization()(x)
    shortcut = x
    x = layers.Activation("relu")(x)
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    x = layers.Add()([x, shortcut])
    x = x * 0.5 + shortcut  # Operators become layers of their own.
    x = layers.GlobalAveragePooling2D()(x)
    return tf.keras.Model(inputs, layers.Dense(4)(x))


def nested():
    inputs = tf.keras.Input([8, 8, 3])
    block = tf.keras.Sequential(
        [layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization()],
        name="block",
    )
    x = layers.ReLU()(block(inputs))
    inner_input = tf.keras.Input([8, 8, 4])
    y = layers.Conv2D(4, 3, padding="same", activation="relu")(inner_input)
    inner = tf.keras.Model(inner_input, layers.Add()([y, inner_input]), name="inner")
    x = inner(inner(x))  # Shared: the same weights twice.
    return tf.keras.Model(inputs, layers.Dense(4)(layers.Flatten()(x)))


BUILDERS = [sequential, with_skip_connections, nested, lambda: resnet(8, (8, 8, 3), 4)]
NAMES = ["sequential", "skip_connections", "nested", "resnet"]
every_model = pytest.mark.parametrize("build", BUILDERS[:3], ids=NAMES[:3])
every_model_and_resnet = pytest.mark.parametrize("build", BUILDERS, ids=NAMES)


def make(build, seed=0):
    """A model whose weights, biases and moving statistics are all its own."""
    set_random_seed(seed)
    model = build()
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "kernel" not in variable.name:
            variable.assign(rng.uniform(0.5, 1.5, size=variable.shape))
    return model


def images(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=[5, 8, 8, 3]).astype(np.float32)


def train_step(model):
    """One step of Keras's training, op by op, which is quicker than tracing it."""
    model.compile(
        IntegerSGD(1.0, learning_rate_unit="code"),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    return model.train_on_batch(images(), np.arange(5) % 4)


def leaves(model):
    for layer in model.layers:
        if isinstance(layer, tf.keras.Model):
            yield from leaves(layer)
        else:
            yield layer


def types(model):
    return [type(layer) for layer in leaves(model)]


@contextlib.contextmanager
def warnings_of_absl():
    """Collects what absl logs."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("absl")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


# --- structure --------------------------------------------------------------


def test_layers_of_a_sequential_model():
    quantized = quantize_model(make(sequential), 4, 3)
    assert isinstance(quantized, tf.keras.Sequential)
    assert types(quantized) == [
        QuantConv2D,
        QuantDepthwiseConv2D,
        layers.BatchNormalization,
        QuantReLU,
        layers.Flatten,
        QuantDense,
        QuantDense,
    ]
    bits = [getattr(layer, "activation_bits", None) for layer in quantized.layers]
    assert bits == [3, None, None, 3, None, 3, None]
    assert (
        quantized.get_layer("hidden").activation.function is tf.keras.activations.tanh
    )
    assert {
        layer.bit_width
        for layer in leaves(quantized)
        if hasattr(layer, "lasso_strength")
    } == {4}


@every_model_and_resnet
def test_order_of_variables_is_kept(build):
    """Codes in the place of kernels, all else in its place."""
    model = make(build)
    quantized = quantize_model(model, 8, 4)
    assert len(quantized.trainable_variables) == len(model.trainable_variables)
    for ours, theirs in zip(quantized.trainable_variables, model.trainable_variables):
        assert ours.shape == theirs.shape
        if "kernel" in theirs.name:
            assert ours.dtype == tf.uint8
            assert ours.name == theirs.name.replace("kernel", "kernel_codes")
        else:
            assert ours.dtype == tf.float32
            assert ours.name == theirs.name
    num_kernels = sum("kernel" in v.name for v in model.trainable_variables)
    assert len(quantized_kernels(quantized)) == num_kernels


@every_model
def test_the_original_is_left_alone(build):
    model = make(build)
    config, weights, x = model.get_config(), model.get_weights(), images()
    output = model(x)
    quantized = quantize_model(model, 2, 2, lasso=0.1, dtype_policy="mixed_bfloat16")
    for variable in quantized.trainable_variables:
        variable.assign(tf.zeros_like(variable))
    assert model.get_config() == config
    for one, two in zip(model.get_weights(), weights):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(model(x), output)


@pytest.mark.parametrize(
    "activation, quantized_type, span",
    [
        (lambda: layers.ReLU(), QuantReLU, 6),
        (lambda: layers.ReLU(max_value=6), QuantReLU, 6),
        (lambda: layers.Activation("relu"), QuantReLU, 6),
        (lambda: layers.ReLU(negative_slope=0.1), QuantActivation, 6.6),
        (lambda: layers.ReLU(threshold=1.0), QuantActivation, 6),
        (lambda: layers.ReLU(max_value=2.0), QuantActivation, 2),
        (lambda: layers.Activation("gelu"), QuantActivation, 6.17),
        (lambda: layers.Activation("tanh"), QuantActivation, 2),
        (lambda: layers.LeakyReLU(), QuantActivation, 7.8),
        (lambda: layers.PReLU("ones"), QuantActivation, 12),
        (lambda: layers.ELU(), QuantActivation, 7),
        (lambda: layers.Activation("softmax"), layers.Activation, 0),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_which_layers_are_a_quantized_activation(activation, quantized_type, span):
    """To half a step of their range, and one more where zero moves the range."""
    inputs = tf.keras.Input([3])
    outputs = layers.Flatten()(activation()(inputs))
    model = tf.keras.Model(inputs, outputs)
    x = np.linspace(-2, 5.9, 3 * 40, dtype=np.float32).reshape(40, 3)
    assert types(quantize_model(model, 8)) == types(model)
    quantized = quantize_model(model, 8, 8)
    assert types(quantized)[1] is quantized_type
    np.testing.assert_allclose(quantized(x), model(x), atol=1.01 * span / 255)
    assert span == 0 or np.any(quantized(x).numpy() != model(x).numpy())
    coarse = quantize_model(model, 8, 2)(x)
    assert span == 0 or len(np.unique(coarse)) <= 4
    copy = tf.keras.Model.from_config(quantized.get_config())
    copy.set_weights(quantized.get_weights())
    np.testing.assert_array_equal(copy(x), quantized(x))


def test_fused_and_separate_relu_are_the_same():
    fused = tf.keras.Sequential(
        [tf.keras.Input([6]), layers.Dense(9, activation="relu")]
    )
    separate = tf.keras.Sequential(
        [tf.keras.Input([6]), layers.Dense(9), layers.ReLU()]
    )
    separate.set_weights(fused.get_weights())
    x = 3 * np.random.default_rng(0).normal(size=[20, 6]).astype(np.float32)
    outputs = [quantize_model(model, 4, 3)(x) for model in (fused, separate)]
    np.testing.assert_array_equal(*outputs)
    assert 4 < len(np.unique(outputs[0])) <= 8


def test_relu_of_tensorflow_is_quantized():
    model = tf.keras.Sequential(
        [tf.keras.Input([6]), layers.Dense(9, activation=tf.nn.relu)]
    )
    x = 3 * np.random.default_rng(0).normal(size=[20, 6]).astype(np.float32)
    assert len(np.unique(quantize_model(model, 4, 2)(x))) <= 4


def test_quantized_layers_get_new_bits():
    model = tf.keras.Sequential(
        [
            tf.keras.Input([6]),
            QuantDense(9, bit_width=3, lasso_strength=0.5),
            layers.Dense(2),
        ]
    )
    first = model.layers[0].quantized_kernel
    with warnings_of_absl() as messages:
        same = quantize_model(model, 3)
        quantized = quantize_model(model, 7, lasso=0.1)
    assert messages == []
    np.testing.assert_array_equal(quantized_kernels(same)[0].codes, first.codes)
    widths = [int(kernel.bit_width) for kernel in quantized_kernels(quantized)]
    assert widths == [7, 7]
    assert quantized.layers[0].lasso_strength == 0.5
    kernel = quantized_kernels(quantized)[0]
    delta = float(kernel.scale) / 127
    np.testing.assert_allclose(kernel.value(), first.value(), atol=0.501 * delta)


def test_options_reach_the_layers():
    quantized = quantize_model(
        make(sequential), 3, representation="offset_binary", scale_rule="max"
    )
    for kernel in quantized_kernels(quantized):
        assert kernel.representation.name == "offset_binary"
        assert int(kernel.bit_width) == 3
    assert quantized.get_layer("conv").scale_rule == "max"


# --- weights ----------------------------------------------------------------


@every_model_and_resnet
def test_eight_bits_predict_nearly_as_float(build):
    model = make(build)
    quantized = quantize_model(model, 8)
    for training in (False, True):
        expected = model(images(), training=training).numpy()
        error = quantized(images(), training=training).numpy() - expected
        assert np.max(np.abs(error)) < 0.05 * np.max(np.abs(expected))
        assert np.any(error != 0)


@every_model
@pytest.mark.parametrize("bit_width", [3, 8])
@pytest.mark.parametrize("representation", ["sign_magnitude", "offset_binary"])
def test_kernels_are_the_nearest_levels(build, bit_width, representation):
    """Within half a step; the largest weight of offset binary lacks that level."""
    model = make(build)
    quantized = quantize_model(
        model,
        bit_width,
        representation=representation,
        scale_rule="max",
        per_channel=False,
    )
    for kernel, weight in zip(
        quantized_kernels(quantized),
        [v for v in model.trainable_variables if "kernel" in v.name],
    ):
        weight = weight.numpy()
        assert float(kernel.scale) == pytest.approx(2 * np.max(np.abs(weight)))
        delta = float(kernel.scale) / (2**bit_width - 1)
        error = np.abs(kernel.value() - weight)
        if representation == "offset_binary":  # Levels end at delta (z - 1).
            error = error[weight < delta * (2 ** (bit_width - 1) - 0.5)]
        assert np.max(error) <= 0.5001 * delta


@every_model
def test_everything_else_is_copied(build):
    """Biases, and all four of a BatchNorm's variables."""
    model = make(build)
    quantized = quantize_model(model, 4, 4)
    num_compared = 0
    for source, target in zip(leaves(model), leaves(quantized)):
        ours = {v.name: v for v in target.variables}
        for variable in source.variables:
            if "kernel" not in variable.name:
                np.testing.assert_array_equal(ours[variable.name], variable)
                num_compared += 1
    assert num_compared == sum("kernel" not in v.name for v in model.variables)
    assert any("moving_variance" in v.name for v in quantized.variables)


def test_without_copying_weights_are_fresh():
    model = make(sequential)
    quantized = quantize_model(model, 8, copy_weights=False)
    norm = quantized.get_layer("norm")
    np.testing.assert_array_equal(norm.moving_mean, np.zeros(6))
    difference = quantized.get_layer("conv").kernel - model.get_layer("conv").kernel
    assert np.max(np.abs(difference)) > 0.05


@every_model
def test_without_bit_width_kernels_are_float(build):
    """Only activations are quantized; at 8 bits that changes little."""
    model = make(build)
    same = quantize_model(model, None)
    np.testing.assert_allclose(same(images()), model(images()), rtol=1e-5, atol=1e-5)
    quantized = quantize_model(model, None, 8)
    assert quantized_kernels(quantized) == []
    assert all(v.dtype == tf.float32 for v in quantized.trainable_variables)
    for ours, theirs in zip(quantized.weights, model.weights):
        np.testing.assert_array_equal(ours, theirs)
    assert np.any(quantized(images()).numpy() != model(images()).numpy())


def test_lasso_strengths_are_shares_of_lambda():
    model = make(nested)
    quantized = quantize_model(model, 4, lasso=0.6)
    converted = [
        layer for layer in leaves(quantized) if hasattr(layer, "lasso_strength")
    ]
    assert len(converted) == 3
    sizes = np.array([layer.quantized_kernel.size for layer in converted])
    np.testing.assert_allclose(
        [layer.lasso_strength for layer in converted], 0.6 * sizes / np.sum(sizes)
    )
    assert sum(layer.lasso_strength for layer in converted) == pytest.approx(0.6)
    assert len(quantized.losses) == 3


@every_model
def test_trains(build):
    quantized = quantize_model(make(build), 4, 4, lasso=1e-4)
    before = [kernel.codes.numpy() for kernel in quantized_kernels(quantized)]
    assert np.isfinite(train_step(quantized))
    for kernel, codes in zip(quantized_kernels(quantized), before):
        assert np.any(kernel.codes.numpy() != codes)


def test_config_rebuilds_the_quantized_model():
    quantized = quantize_model(make(with_skip_connections), 5, 4)
    copy = tf.keras.Model.from_config(quantized.get_config())
    copy.set_weights(quantized.get_weights())
    np.testing.assert_array_equal(copy(images()), quantized(images()))


# --- layers without a quantized form ----------------------------------------


class Scaled(layers.Layer):
    """A layer with a kernel that this package does not know."""

    def build(self, input_shape):
        self.factors = self.add_weight("factors", [input_shape[-1]])

    def call(self, inputs):
        return inputs * self.factors


def test_unknown_layers_stay_float_and_are_named():
    inputs = tf.keras.Input([8, 3])
    x = Scaled(name="my_scaled")(inputs)
    x = layers.LayerNormalization(name="my_norm")(x)
    model = tf.keras.Model(inputs, layers.Dense(2, name="my_dense")(x))
    with warnings_of_absl() as messages:
        quantized = quantize_model(model, 4)
    (message,) = messages
    assert "17.6 % of the weights stay in float, in 1 Scaled (my_scaled)" in message
    assert "register_quantized_layer" in message
    assert "my_norm" not in message and "my_dense" not in message
    report = quantized.quantization_report
    assert report.float_share == pytest.approx(9 / 17)  # With LayerNormalization.
    assert [row.bit_width for row in report.layers] == [None, None, 4]
    assert "my_norm" in str(report) and "few weights" in str(report)
    assert len(quantized_kernels(quantized)) == 1
    for ours, theirs in zip(quantized.layers[:3], model.layers[:3]):
        assert type(ours) is type(theirs)
        for one, two in zip(ours.get_weights(), theirs.get_weights()):
            np.testing.assert_array_equal(one, two)


def test_subclasses_of_known_layers_are_not_known():
    class Other(layers.Dense):
        pass

    inputs = tf.keras.Input([4])
    with warnings_of_absl() as messages:
        model = tf.keras.Model(inputs, Other(2, name="other")(inputs))
        quantized = quantize_model(model, 4)
    assert "other" in messages[0]
    assert quantized_kernels(quantized) == []


@every_model
def test_no_warning_where_all_is_known(build):
    with warnings_of_absl() as messages:
        quantize_model(make(build), 4, 4, activation_range=5.0)
    assert messages == []


def test_no_warning_where_kernels_are_float_anyway():
    model = tf.keras.Sequential([tf.keras.Input([8, 3]), Scaled()])
    with warnings_of_absl() as messages:
        quantize_model(model, None, 4)
    assert messages == []


# --- dtype policy -----------------------------------------------------------


@pytest.mark.parametrize(
    "build", BUILDERS[:2] + BUILDERS[3:], ids=NAMES[:2] + NAMES[3:]
)
def test_mixed_policy(build):
    model = make(build)
    quantized = quantize_model(model, 8, dtype_policy="mixed_bfloat16")
    *inner, output = quantized.layers
    for layer in inner:
        if layer.weights:
            assert layer.dtype_policy.name == "mixed_bfloat16", layer.name
    assert output.compute_dtype == "float32"
    predictions = quantized(images())
    assert predictions.dtype == tf.float32
    assert all(v.dtype in (tf.uint8, tf.float32) for v in quantized.trainable_variables)
    expected = model(images()).numpy()
    error = np.max(np.abs(predictions - expected))
    assert error < 0.1 * np.max(np.abs(expected))


@pytest.mark.parametrize("bits", [None, 4])
def test_mixed_policy_trains(bits):
    quantized = quantize_model(
        make(with_skip_connections), bits, 4, dtype_policy="mixed_bfloat16"
    )
    before = quantized.trainable_variables[0].numpy()
    assert np.isfinite(train_step(quantized))
    assert np.any(quantized.trainable_variables[0].numpy() != before)


def test_without_policy_each_layer_keeps_its_own():
    model = tf.keras.Sequential(
        [
            tf.keras.Input([6]),
            layers.Dense(5, activation="relu", dtype="mixed_bfloat16"),
            layers.ReLU(dtype="mixed_bfloat16"),
            layers.Dense(2),
        ]
    )
    quantized = quantize_model(model, 4, 4)
    assert [layer.compute_dtype for layer in quantized.layers] == [
        "bfloat16",
        "bfloat16",
        "float32",
    ]


def test_mixed_policy_where_the_output_is_of_an_inner_model():
    inputs = tf.keras.Input([6])
    head = tf.keras.Sequential([layers.Dense(3), layers.Dense(2)], name="head")
    model = tf.keras.Model(inputs, head(layers.Dense(4)(inputs)))
    quantized = quantize_model(model, 8, dtype_policy="mixed_bfloat16")
    assert quantized(tf.ones([1, 6])).dtype == tf.float32


# --- models that are refused, or should be ----------------------------------


class Subclassed(tf.keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def test_subclassed_model():
    model = Subclassed()
    model(tf.ones([1, 3]))
    with pytest.raises(TypeError, match="Sequential or functional; found Subclassed"):
        quantize_model(model)


@pytest.mark.parametrize(
    "wrong", [None, layers.Dense(2), "model"], ids=["None", "layer", "name"]
)
def test_not_a_model(wrong):
    with pytest.raises(TypeError, match="Sequential or functional; found"):
        quantize_model(wrong)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"bit_width": 0}, "bit_width.*found 0"),
        ({"bit_width": 9}, "bit_width.*found 9"),
        ({"bit_width": 2.5}, "bit_width.*found 2.5"),
        ({"activation_bits": 9}, "activation_bits.*found 9"),
        ({"representation": "gray"}, "representation 'gray'"),
        ({"scale_rule": "mean"}, "scale rule 'mean'"),
        ({"lasso": -1.0}, "lasso has to be 0 or more"),
    ],
    ids=str,
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        quantize_model(make(sequential), **wrong)


@pytest.mark.parametrize("bit_width", [8, None])
def test_frozen_layers(bit_width):
    model = make(sequential)
    model.get_layer("conv").trainable = False
    quantized = quantize_model(model, bit_width)
    assert not quantized.get_layer("conv").trainable
    np.testing.assert_allclose(quantized(images()), model(images()), atol=0.2)


def test_unbuilt_model():
    with pytest.raises(ValueError, match="build"):
        quantize_model(tf.keras.Sequential([layers.Dense(2)]))


# --- what stays one layer, and what stays in float --------------------------


def relu_of(kind):
    inputs = tf.keras.Input([8, 8, 3])
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    if kind == "operation":
        x = tf.nn.relu(x)
    elif kind == "lambda":
        x = layers.Lambda(tf.nn.relu, name="lambda")(x)
    else:
        x = layers.Dense(4, activation=layers.ReLU(), name="dense")(x)
    return tf.keras.Model(inputs, x)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("operation", "tf.nn.relu"),
        ("lambda", "lambda"),
        ("layer as activation", "dense"),
    ],
)
def test_relus_that_stay_in_float_are_named(kind, name):
    with warnings_of_absl() as messages:
        quantize_model(relu_of(kind), None, 4)
    (message,) = messages
    assert "activations stay in float" in message and name in message
    with warnings_of_absl() as messages:
        quantize_model(relu_of(kind), None, None)
    assert messages == []


def test_relu6_is_quantized():
    inputs = tf.keras.Input([5])
    model = tf.keras.Model(inputs, layers.Dense(50, activation=tf.nn.relu6)(inputs))
    x = 10 * np.random.default_rng(0).normal(size=[9, 5])
    outputs = quantize_model(model, 8, 2)(x)
    np.testing.assert_allclose(np.unique(outputs), [0, 2, 4, 6])


def test_a_layer_in_an_inner_model_and_outside_stays_one():
    shared = layers.Dense(4, name="shared")
    inner_inputs, inputs = tf.keras.Input([4]), tf.keras.Input([4])
    inner = tf.keras.Model(inner_inputs, shared(inner_inputs), name="inner")
    model = tf.keras.Model(inputs, shared(inner(inputs)))
    quantized = quantize_model(model, 8, lasso=1.0)
    assert len(quantized.trainable_variables) == len(model.trainable_variables) == 2
    assert quantized.get_layer("shared").lasso_strength == 1.0  # All of the weights.
    x = np.random.default_rng(0).normal(size=[6, 4]).astype(np.float32)
    np.testing.assert_allclose(quantized(x), model(x), atol=0.05)
    # It gives the output, if not only that.
    assert quantize_model(model, dtype_policy="mixed_bfloat16")(x).dtype == tf.float32


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "float64"])
def test_policies_of_other_variables_are_refused(policy):
    with pytest.raises(ValueError, match="variables in float32"):
        quantize_model(make(sequential), dtype_policy=policy)


def test_a_policy_is_not_for_layers_of_integers():
    inputs = tf.keras.Input([1], dtype=tf.int64)
    x = layers.IntegerLookup(vocabulary=[3, 5, 7], name="lookup")(inputs)
    x = layers.Flatten()(layers.Embedding(4, 2)(x))
    model = tf.keras.Model(inputs, layers.Dense(2)(layers.Dense(3, name="hidden")(x)))
    quantized = quantize_model(model, 8, dtype_policy="mixed_bfloat16")
    assert quantized.get_layer("hidden").compute_dtype == "bfloat16"
    x = tf.constant([[5], [9]], tf.int64)
    np.testing.assert_allclose(quantized(x), model(x), atol=0.01)


# --- models that are easily got wrong ---------------------------------------


def adapted_normalization():
    layer = layers.Normalization()
    layer.adapt(np.array([[10.0, -2.0], [14.0, 2.0]], np.float32))
    return layer


def normalizing(norm):
    return tf.keras.Sequential([tf.keras.Input([2]), norm, layers.Dense(3)])


_IMAGES = np.array([[11.0, 5.0]], np.float32)
_NORMALIZED = [[(11 - 12) / 2, (5 - 0) / 2]]


@pytest.mark.parametrize("copy_weights", [True, False])
def test_statistics_that_a_layer_was_adapted_to_are_kept(copy_weights):
    model = normalizing(adapted_normalization())
    found = quantize_model(model, 8, copy_weights=copy_weights).layers[0]
    np.testing.assert_allclose(found(_IMAGES), _NORMALIZED, rtol=1e-6)
    assert found.weights == []


def test_statistics_are_kept_in_a_graph():
    """As on clients, in a TFF computation, of a model that was built before."""
    model = normalizing(adapted_normalization())
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        found = quantize_model(model, 8, copy_weights=False).layers[0]
        normalized = session.run(found(tf.constant(_IMAGES)))
    np.testing.assert_allclose(normalized, _NORMALIZED, rtol=1e-6)
    assert found.weights == []


def test_statistics_of_axes_that_are_apart_are_kept():
    norm = layers.Normalization(axis=(1, 3))
    data = np.arange(2 * 2 * 3 * 4, dtype=np.float32).reshape(2, 2, 3, 4) ** 2
    norm.adapt(data)
    model = tf.keras.Sequential([tf.keras.Input([2, 3, 4]), norm, layers.Flatten()])
    found = quantize_model(model, 8).layers[0]
    np.testing.assert_allclose(found(data), norm(data), rtol=1e-6)


def test_a_layer_that_is_not_adapted_may_be_made_in_a_graph():
    with tf.Graph().as_default():
        model = normalizing(layers.Normalization())
        found = quantize_model(model, 8, copy_weights=False).layers[0]
        assert len(found.weights) == 3


def test_a_layer_that_is_yet_to_be_adapted_can_be():
    (norm, _) = quantize_model(normalizing(layers.Normalization()), 8).layers
    norm.adapt(np.array([[10.0, -2.0], [14.0, 2.0]], np.float32))
    np.testing.assert_allclose(norm(np.array([[12.0, 2.0]])), [[0, 1]], atol=1e-6)


def test_a_layer_may_give_two_outputs():
    """And keeps its policy there, whatever another layer is called."""
    a, b = tf.keras.Input([4], name="a"), tf.keras.Input([4], name="b")
    hidden, head = layers.Dense(4, name="head_1"), layers.Dense(3, name="head")
    model = tf.keras.Model([a, b], [head(hidden(a)), head(hidden(b))])
    quantized = quantize_model(model, 8, dtype_policy="mixed_bfloat16")
    assert quantized.get_layer("head").compute_dtype == "float32"
    assert quantized.get_layer("head_1").compute_dtype == "bfloat16"
    outputs = quantized([tf.ones([1, 4]), tf.zeros([1, 4])])
    assert [output.dtype for output in outputs] == [tf.float32, tf.float32]


# --- models of all kinds ------------------------------------------------------


def functions_without_a_name():
    def shifted(x):
        return tf.nn.softplus(x) - 0.5

    return tf.keras.Sequential(
        [
            tf.keras.Input([6]),
            layers.Dense(5, shifted),
            layers.Activation(lambda x: x * tf.sigmoid(x)),
            layers.Dense(2, lambda x: 2 * x),
        ]
    )


def with_dropout_in_cells():
    cell = layers.GRUCell(3, dropout=0.1, recurrent_dropout=0.1)
    both = layers.GRU(3, recurrent_dropout=0.1, return_sequences=True)
    inputs = tf.keras.Input([2, 3])
    return tf.keras.Model(inputs, layers.RNN(cell)(layers.Bidirectional(both)(inputs)))


def of_sixteen_bits():
    hidden = layers.Dense(5, "relu", dtype="float16")
    return tf.keras.Sequential([tf.keras.Input([6]), hidden, layers.Dense(2)])


@pytest.mark.parametrize(
    "build", [functions_without_a_name, with_dropout_in_cells, of_sixteen_bits]
)
def test_models_of_which_keras_makes_trouble(build):
    model = build()
    x = np.random.default_rng(0).normal(size=[7, *model.input_shape[1:]])
    model(x, training=True)  # Cells keep masks of dropout.
    quantized = quantize_model(model, 8, representation="offset_binary")
    num_kernels = sum("kernel" in v.name for v in model.weights)
    assert len(quantized_kernels(quantized)) == num_kernels
    expected = model(x).numpy()
    assert 0 < np.abs(quantized(x) - expected).max() < 0.05 * np.abs(expected).max()
    assert len(quantized_kernels(quantize_model(quantized, 2))) == num_kernels
    tff_fedmpq.summary(quantized)


def adapted(layer, data, *after):
    layer.adapt(data)
    inputs = tf.keras.Input(data.shape[1:], dtype=data.dtype)
    return tf.keras.Sequential([inputs, layer, *after, layers.Dense(2)]), data


ADAPTED = {
    "words": lambda: adapted(
        layers.TextVectorization(output_sequence_length=3),
        tf.constant(["a b b", "c a"]),
        layers.Embedding(9, 4),
        layers.Flatten(),
    ),
    "frequencies": lambda: adapted(
        layers.TextVectorization(output_mode="tf_idf"), tf.constant(["a b b", "c a"])
    ),
    "strings": lambda: adapted(
        layers.StringLookup(output_mode="one_hot"), tf.constant([["a"], ["b"], ["a"]])
    ),
    "bins": lambda: adapted(
        layers.Discretization(num_bins=3, output_mode="one_hot"),
        tf.constant([[1.0], [2.0], [2.5], [9.0]]),
    ),
}


def prelu(initializer):
    return tf.keras.Sequential([tf.keras.Input([3]), layers.PReLU(initializer)])


@pytest.mark.parametrize(("slope", "low"), [("ones", -6.0), ("zeros", -1.5)])
def test_slopes_of_prelu_in_and_out_of_a_graph(slope, low):
    """As on clients; one that is yet to be learned gets room."""
    model = prelu(slope)
    found = [quantize_model(model, 8, 4)]
    with tf.Graph().as_default():
        found.append(quantize_model(model, 8, 4, copy_weights=False))
        if slope == "zeros":
            found.append(quantize_model(prelu(slope), 8, 4, copy_weights=False))
    assert {each.layers[0].activation.limits for each in found} == {(low, 6.0)}


@pytest.mark.parametrize("kind", ADAPTED)
def test_what_preprocessing_was_adapted_to_is_kept(kind, tmp_path):
    model, x = ADAPTED[kind]()
    quantized = quantize_model(model, 8)
    np.testing.assert_allclose(quantized(x), model(x), atol=0.02)
    assert "1" in str(tff_fedmpq.summary(quantized))
    tff_fedmpq.export.write_packed(quantized, tmp_path / "model")
    loaded = tff_fedmpq.export.read_packed(tmp_path / "model")
    np.testing.assert_array_equal(loaded(x), quantized(x))


def test_a_wrapper_that_assigns_its_kernel_stays_float():
    normalized = layers.SpectralNormalization(layers.Conv2D(2, 3), name="spectral")
    model = tf.keras.Sequential(
        [tf.keras.Input([4, 4, 1]), normalized, layers.Flatten(), layers.Dense(2)]
    )
    with warnings_of_absl() as messages:
        quantized = quantize_model(model, 8)
    assert "spectral" in messages[0]
    x, y = np.ones([2, 4, 4, 1]), np.ones([2, 2])
    quantized.compile(IntegerSGD(), "mse", run_eagerly=True)
    quantized.fit(x, y, verbose=0)
    assert len(quantized_kernels(quantized)) == 1


def test_a_second_layer_of_bidirectional_is_saved_in_its_form(tmp_path):
    forward, backward = layers.GRU(3), layers.LSTM(3, go_backwards=True)
    model = tf.keras.Sequential(
        [
            tf.keras.Input([2, 3]),
            layers.Bidirectional(forward, backward_layer=backward),
        ]
    )
    quantized = quantize_model(model, 3)
    quantized.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    clone = tf.keras.models.clone_model(quantized)
    clone.set_weights(quantized.get_weights())
    x = np.random.default_rng(0).normal(size=[4, 2, 3]).astype(np.float32)
    for each in (loaded, clone):
        assert [int(k.bit_width) for k in quantized_kernels(each)] == [3] * 4
        np.testing.assert_array_equal(each(x), quantized(x))
        names = [v.name for v in each.weights]
        assert names == [v.name for v in quantized.weights]


def test_variables_of_other_layers_are_refused():
    words = tf.keras.Input([6], dtype="int32")
    table = layers.Embedding(9, 4)
    scores = tf.matmul(table(words), table.embeddings, transpose_b=True)
    with pytest.raises(ValueError, match="embeddings:0 of another layer") as error:
        quantize_model(tf.keras.Model(words, scores), 8)
    assert "\n" not in str(error.value)


def test_layers_that_cannot_be_made_again_are_named_in_a_sentence():
    class Broken(layers.Dense):
        def __init__(self, other, **kwargs):
            super().__init__(3, **kwargs)

    model = tf.keras.Sequential([tf.keras.Input([2]), Broken(1, name="broken")])
    with pytest.raises(ValueError, match="broken cannot be copied") as error:
        quantize_model(model, 8)
    assert "\n" not in str(error.value)


def test_registered_names_that_no_weight_has_are_said():
    class Factor(layers.Layer):
        def build(self, input_shape):
            self.factor = self.add_weight("other", [input_shape[-1], 3])
            super().build(input_shape)

        def call(self, inputs):
            return inputs @ self.factor

    register_quantized_layer(Factor, "factor")
    model = tf.keras.Sequential([tf.keras.Input([2]), Factor(name="mine")])
    with warnings_of_absl() as messages:
        report = quantize_model(model, 8).quantization_report
    assert "100.0 % of the weights stay in float, in 1 Factor (mine)" in messages[0]
    assert "add_weight" in report.layers[0].remark


def test_methods_that_keras_does_not_copy_are_said():
    class Kept(tf.keras.Model):
        pass

    class Lost(tf.keras.Sequential):
        pass

    inputs = tf.keras.Input([2])
    with warnings_of_absl() as messages:
        kept = quantize_model(Kept(inputs, layers.Dense(3)(inputs)), 8)
        quantize_model(kept, 4)
        assert messages == []
        quantize_model(Lost([inputs, layers.Dense(3)]), 8)
    assert isinstance(kept, Kept)
    assert messages == ["The copy is a Sequential without the methods of Lost."]
