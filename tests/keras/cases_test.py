"""Small inputs that failed once, K1 to K20, each as a test of its kind."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from oracles.seeds import set_random_seed

from tests.keras.conversion_test import warnings_of_absl
from tff_fedmpq import export
from tff_fedmpq.keras import (
    IntegerSGD,
    QuantDense,
    QuantReLU,
    StopWhereNotFinite,
    load_float_weights,
    quantize_model,
    quantized_kernels,
    summary,
)
from tff_fedmpq.keras.variables import ModelSpec

layers, Input, Sequential = tf.keras.layers, tf.keras.Input, tf.keras.Sequential


@pytest.fixture(autouse=True)
def _seed():
    set_random_seed(3)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dense_of(weights, **options):
    layer = layers.Dense(weights.shape[1], use_bias=False, name="only", **options)
    model = Sequential([Input([len(weights)]), layer])
    model.set_weights([weights])
    return model


def read(kernel):
    """delta (u - z), in NumPy, for either representation."""
    bits = int(kernel.bit_width)
    is_offset = kernel.representation.name == "offset_binary"
    zero = 2.0 ** (bits - 1) if is_offset else (2**bits - 1) / 2
    return kernel.scale.numpy() / (2**bits - 1) * (kernel.codes.numpy() - zero)


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# --- numbers that are not finite, and zeros ----------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["NaN", "infinite"])
@pytest.mark.parametrize("first_epoch", [True, False], ids=["first", "third"])
def test_a_fit_on_one_bad_input_stops_with_finite_weights(caplog, value, first_epoch):
    """Its epoch is named; weights and momentum are those of before that epoch."""
    x, y = normal(24, 4), np.arange(24) % 3
    model = Sequential([Input([4]), layers.Dense(8, "relu"), layers.Dense(3)])
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    quantized, expected = (quantize_model(model, 4) for _ in range(2))
    for one in (quantized, expected):
        set_random_seed(0)
        one.compile(IntegerSGD(0.1, momentum=0.9), loss)
        if not first_epoch:
            one.fit(x, y, batch_size=8, epochs=2, verbose=0)
    bad = x.copy()
    bad[5, 2] = value
    with caplog.at_level("ERROR"):
        start = 0 if first_epoch else 2
        history = quantized.fit(
            bad, y, 8, epochs=9, initial_epoch=start, verbose=0, shuffle=False
        )
    assert len(history.epoch) == 1
    assert f"Training diverged in epoch {start + 1}: the loss is" in caplog.text
    for a, b in zip(quantized.weights, expected.weights):
        np.testing.assert_array_equal(a, b)
    set_random_seed(1)
    quantized.fit(x, y, batch_size=8, verbose=0)
    assert all(np.isfinite(v).all() for v in quantized.get_weights())


@pytest.mark.faults
def test_a_fit_of_any_model_says_that_it_diverged(caplog):
    x, y = normal(8, 4), normal(8, 3)
    x[5, 2] = np.nan
    model = Sequential([Input([4]), QuantDense(3, bit_width=4)])
    model.compile(IntegerSGD(), "mse")
    before = model.get_weights()
    with caplog.at_level("ERROR"):
        model.fit(x, y, verbose=0, callbacks=[StopWhereNotFinite()])
        assert "Training diverged in epoch 1" in caplog.text
        for one, two in zip(model.get_weights(), before):
            np.testing.assert_array_equal(one, two)
        caplog.clear()
        quantized, callbacks = quantize_model(model, 4), tf.keras.callbacks
        quantized.compile(IntegerSGD(), "mse")
        own = callbacks.CallbackList([], model=quantized, epochs=1, steps=1)
        quantized.fit(x, y, verbose=0, callbacks=own)
        assert "Training diverged in epoch 1" in caplog.text
        caplog.clear()
        model.fit(x, y, verbose=0)
    assert "StopWhereNotFinite()" in caplog.text


@pytest.mark.faults
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("value", [0.0, 1e-40], ids=["zero", "denormal"])
def test_kernels_of_nothing_stay_nothing(value, bits):
    quantized = quantize_model(dense_of(np.full((4, 3), value, np.float32)), bits)
    (kernel,) = quantized_kernels(quantized)
    assert np.abs(read(kernel)).max() <= 1e-38
    assert not quantized(np.ones([2, 4], np.float32)).numpy().any()


# --- K1, K4: TFLite ---------------------------------------------------------


def run_tflite(converter, x):
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    (got,) = interpreter.get_output_details()
    outputs = []
    for example in x:
        interpreter.set_tensor(given["index"], example[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(got["index"]))
    return np.concatenate(outputs)


def convolutional(activation="relu"):
    return Sequential(
        [
            Input([8, 8, 3]),
            layers.Conv2D(4, 3, activation=activation),
            layers.DepthwiseConv2D(3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )


def of_concrete_function(model, path):
    spec = tf.TensorSpec([1, *model.input_shape[1:]])
    function = tf.function(lambda x: model(x)).get_concrete_function(spec)
    return tf.lite.TFLiteConverter.from_concrete_functions([function], model)


def of_saved_model(model, path):
    model.save(path, save_format="tf")
    return tf.lite.TFLiteConverter.from_saved_model(str(path))


CONVERTERS = {
    "keras": lambda model, path: tf.lite.TFLiteConverter.from_keras_model(model),
    "function": of_concrete_function,
    "saved_model": of_saved_model,
}


@pytest.mark.parametrize("converter", CONVERTERS)
@pytest.mark.parametrize("use_bias", [True, False])
def test_k1_tflite_keeps_the_relu(converter, use_bias, tmp_path):
    layer = layers.Dense(4, "relu", use_bias=use_bias)
    model = quantize_model(Sequential([Input([8]), layer]), 8)
    x = normal(6, 8)
    expected = np.maximum(x @ read(quantized_kernels(model)[0]), 0)
    assert (expected == 0).any()
    found = run_tflite(CONVERTERS[converter](model, tmp_path / "model"), x)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_k4_tflite_of_activations_of_k_bits(bits):
    model = quantize_model(convolutional(), 4, bits)
    x = normal(5, 8, 8, 3)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    np.testing.assert_allclose(run_tflite(converter, x), model(x), atol=2e-6)


@pytest.mark.parametrize("converter", ["function", "saved_model"])
def test_k4_tflite_by_other_ways(converter, tmp_path):
    model = quantize_model(convolutional("tanh"), 4, 4)
    x = normal(5, 8, 8, 3)
    found = run_tflite(CONVERTERS[converter](model, tmp_path / "model"), x)
    np.testing.assert_allclose(found, model(x), atol=2e-6)


@pytest.mark.parametrize("is_integer", [False, True])
def test_k4_tflite_with_optimization(is_integer):
    """Weights and inputs are rounded to 8 bits, which may move an activation.

    How many move is a matter of the weights: the mean over a few models is bounded.
    """
    x = normal(20, 8, 8, 3)
    errors = []
    for seed in range(2):
        set_random_seed(seed)
        model = quantize_model(convolutional(), 4, 4)
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if is_integer:
            converter.representative_dataset = lambda: ([image[None]] for image in x)
            kinds = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.target_spec.supported_ops = kinds
        errors.append(relative_error(run_tflite(converter, x), model(x).numpy()))
    assert np.mean(errors) < 0.15


# --- K2: control flow -------------------------------------------------------


def loop(layer, x):
    for _ in tf.range(3):
        x = layer(x)
    return x


def nested_loop(layer, x):
    for i in tf.range(3):
        if i > 0:
            for _ in tf.range(i):
                x = layer(x)
        else:
            x = layer(x)
    return tf.cond(tf.reduce_sum(x) > 1e9, lambda: x, lambda: layer(x))


BODIES = {
    "loop": (loop, 3),
    "nested": (nested_loop, 5),
    "map_fn": (lambda layer, x: tf.map_fn(lambda r: layer(r[None])[0], x), 1),
    "cond": (lambda layer, x: tf.cond(x[0, 0] < 9, lambda: layer(x), lambda: x), 1),
    "inner function": (lambda layer, x: tf.function(layer)(x), 1),
}


@pytest.mark.parametrize("is_tape_inside", [True, False])
@pytest.mark.parametrize("body", BODIES)
def test_k2_gradients_in_control_flow(body, is_tape_inside):
    layer, x = QuantDense(4, bit_width=5), tf.constant(normal(6, 4))
    layer.build([None, 4])
    function, times = BODIES[body]

    def gradients(call):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(call(layer, x)))
        return tape.gradient(loss, layer.trainable_variables)

    def unrolled(layer, x):
        for _ in range(times):
            x = layer(x)
        return x

    if is_tape_inside:
        found = tf.function(lambda: gradients(function))()
    else:
        traced = tf.function(function)
        gradients(traced)
        found = gradients(traced)  # Of a function that was traced before.
    for one, two in zip(found, gradients(unrolled)):
        assert np.any(two)
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_k2_rnn_cell_and_training_loop_in_a_graph(jit_compile):
    class Cell(layers.Layer):
        state_size = output_size = 4

        def __init__(self):
            super().__init__()
            self.dense = QuantDense(4, "tanh", bit_width=4, lasso_strength=1e-3)

        def call(self, x, states):
            h = self.dense(x + states[0])
            return h, [h]

    model = Sequential([Input([5, 4]), layers.RNN(Cell()), layers.Dense(1)])
    model.compile(IntegerSGD(), "mse", jit_compile=jit_compile)
    (kernel,) = quantized_kernels(model)
    before = kernel.codes.numpy()
    model.fit(normal(8, 5, 4), normal(8, 1), verbose=0)
    assert np.any(kernel.codes.numpy() != before)


def test_k2_steps_in_a_loop_read_the_codes_of_the_step_before():
    """As the clients' loop does, with the tape in its body."""
    x, y = tf.constant(normal(8, 3)), tf.constant(normal(8, 2))
    results = []
    for is_loop in (True, False):
        layer = QuantDense(2, bit_width=6, kernel_initializer="ones")
        layer.build([None, 3])
        optimizer = IntegerSGD(seed=1)
        optimizer.build(layer.trainable_variables)

        def step(layer=layer, optimizer=optimizer):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(layer(x) - y))
            gradients = tape.gradient(loss, layer.trainable_variables)
            optimizer.apply_gradients(zip(gradients, layer.trainable_variables))

        def steps(step=step):
            for _ in tf.range(4):
                step()

        if is_loop:
            tf.function(steps)()
        else:
            for _ in range(4):
                step()
        results.append(layer.get_weights())
    for one, two in zip(*results):
        np.testing.assert_allclose(one, two, rtol=1e-5)


# --- K3: strategies ---------------------------------------------------------


@pytest.mark.parametrize("is_inside", [True, False])
def test_k3_mirrored_strategy_is_refused_in_a_sentence(is_inside, monkeypatch):
    strategy = tf.distribute.get_strategy()
    model = Sequential([Input([4]), layers.Dense(2)])
    quantized = quantize_model(model, 8)
    # Two virtual CPUs would have to exist before TensorFlow starts.
    monkeypatch.setattr(
        type(strategy), "num_replicas_in_sync", property(lambda self: 2)
    )
    with pytest.raises(ValueError, match="one device.*MirroredStrategy") as error:
        if is_inside:
            quantize_model(model, 8)
        else:
            quantized.compile(IntegerSGD(), "mse")
    assert len(str(error.value)) < 200


def test_k3_strategies_of_one_device():
    model = Sequential([Input([4]), layers.Dense(2)])
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        with pytest.raises(ValueError, match="one device.*MirroredStrategy"):
            quantize_model(model, 8)
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        quantized = quantize_model(model, 8)
        quantized.compile(IntegerSGD(), "mse", run_eagerly=True)
    before = quantized.get_weights()
    quantized.fit(normal(4, 4), normal(4, 2), verbose=0)
    assert (quantized.get_weights()[0] != before[0]).any()


# --- K5, K9, K10: activations -----------------------------------------------


def test_k5_masks_pass():
    table = np.array([[7.0] * 3, *[[1.0] * 3] * 4], np.float32)
    model = Sequential(
        [layers.Embedding(5, 3, mask_zero=True), QuantReLU(8)]
        + [layers.GlobalAveragePooling1D()]
    )
    model.build([None, 6])
    model.layers[0].set_weights([table])
    found = model(np.array([[1, 2, 0, 0, 0, 0]]))
    np.testing.assert_allclose(found, np.ones([1, 3]), atol=0.5 * 6 / 255)


def test_k9_ranges_are_given_or_calibrated_or_said():
    model = Sequential([Input([4]), layers.Dense(8, "relu", kernel_initializer="ones")])
    x = np.full([2, 4], 10.0, np.float32)
    with warnings_of_absl() as messages:
        np.testing.assert_allclose(quantize_model(model, None, 8)(x), 6)
    assert "clipped at 6" in messages[0] and "calibration_data" in messages[0]
    with warnings_of_absl() as messages:
        given = quantize_model(model, None, 8, activation_range=50)
    assert messages == []
    np.testing.assert_allclose(given(x), 40, atol=0.5 * 50 / 255)
    data = tf.data.Dataset.from_tensor_slices(np.stack([x / 2, x]))
    labelled = tf.data.Dataset.zip((data, tf.data.Dataset.range(2)))
    for empty in (x[:0], data.take(0)):
        with pytest.raises(ValueError, match="calibration_data gives no activation"):
            quantize_model(model, None, 8, calibration_data=empty)
    for some in (x, data, labelled):
        calibrated = quantize_model(model, None, 8, calibration_data=some)
        np.testing.assert_allclose(calibrated(x), 40, rtol=1e-6)
        np.testing.assert_allclose(calibrated(2 * x), 40, rtol=1e-6)
    steps = Sequential([Input([2, 4]), layers.TimeDistributed(model)])
    many = np.stack([x, 2 * x], 1)
    per_step = quantize_model(steps, None, 8, calibration_data=many)
    np.testing.assert_allclose(per_step(many), steps(many), atol=0.5 * 80 / 255)
    copy = Sequential.from_config(calibrated.get_config())
    copy.set_weights(calibrated.get_weights())
    np.testing.assert_allclose(copy(x), 40, rtol=1e-6)
    limited = Sequential([Input([4]), layers.ReLU(6), layers.Activation("tanh")])
    with warnings_of_absl() as messages:  # Limits of their own stay.
        quantize_model(
            Sequential([Input([4]), *limited.layers, layers.Flatten()]), 8, 8
        )
    assert messages == []
    kept = quantize_model(limited, 8, 8, calibration_data=x)
    assert kept.layers[0].clip_value == 6


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("swish", -0.279, 6),
        ("gelu", -0.17, 6),
        ("tanh", -1, 1),
        ("sigmoid", 0, 1),
        ("elu", -1, 6),
        ("selu", -1.76, 6),
        ("softplus", 0, 6),
    ],
)
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_k10_activations_of_k_bits(name, low, high, bits):
    """Levels through zero; gradients pass within the range, as NumPy has it."""
    inputs = Input([5])
    hidden = layers.Dense(5, name, kernel_initializer="identity")(inputs)
    model = tf.keras.Model(inputs, layers.Flatten()(hidden))
    quantized = quantize_model(model, None, bits)
    x = tf.constant(4 * normal(40, 5))
    step = (high - low) / (2**bits - 1)
    zero = np.clip(np.rint(-low / step), 0, 2**bits - 1)
    position = model(x).numpy() / step + zero
    clear = np.abs(position - np.floor(position) - 0.5) > 1e-3
    levels = step * (np.clip(np.rint(position), 0, 2**bits - 1) - zero)
    for training in (False, True):
        found = quantized(x, training=training).numpy()
        np.testing.assert_allclose(found[clear], levels[clear], atol=1e-5)
    gradients = []
    for each in (model, quantized):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(each(x, training=True))
        gradients.append(tape.gradient(loss, x).numpy())
    inside = (position > 1e-3) & (position < 2**bits - 1 - 1e-3)
    np.testing.assert_allclose(gradients[1][inside], gradients[0][inside], atol=1e-6)
    assert np.all(gradients[1][(position < -1e-3) | (position > 2**bits)] == 0)


def test_k10_leaky_relu_by_name_and_in_a_copy():
    dense = layers.Dense(5, "leaky_relu", kernel_initializer="identity")
    model = Sequential([Input([5]), dense, layers.Flatten()])
    quantized = quantize_model(model, None, 8)
    copy = Sequential.from_config(quantized.get_config())
    copy.set_weights(quantized.get_weights())
    x = 4 * normal(40, 5)
    expected = np.clip(np.where(x < 0, 0.2 * x, x), -1.2, 6)
    for each in (quantized, copy):
        np.testing.assert_allclose(each(x), expected, atol=7.2 / 255)
        assert len(np.unique(each(x))) < np.unique(expected).size


def test_k10_what_stays_float_is_named():
    inputs = Input([5])
    x = tf.nn.gelu(layers.Dense(5, "exponential", name="grow")(inputs))
    model = tf.keras.Model(inputs, layers.Dense(5, "softmax")(x))
    with warnings_of_absl() as messages:
        report = quantize_model(model, 8, 4).quantization_report
    assert "tf.nn.gelu" in messages[0] and "grow" in messages[0]
    assert "activation softmax in float" in str(report)


# --- K6, K7, K8, K18: kernels -----------------------------------------------

every_width = pytest.mark.parametrize("bits", [8, 4, 2, 1])


@every_width
def test_k6_zero_kernels_are_zero(bits):
    model = quantize_model(dense_of(np.zeros([64, 1], np.float32)), bits)
    np.testing.assert_allclose(model(np.ones([1, 64])), [[0]])


@pytest.mark.parametrize(("bits", "most"), [(8, 0.01), (4, 0.12), (2, 0.4), (1, 0.85)])
def test_k7_sparse_kernels_stay_sparse(bits, most):
    weights = normal(64, 64)
    weights[np.random.default_rng(1).random(weights.shape) < 0.9] = 0
    (kernel,) = quantized_kernels(quantize_model(dense_of(weights), bits))
    assert relative_error(read(kernel), weights) < most
    np.testing.assert_array_equal(read(kernel)[weights == 0], 0)


@every_width
def test_k7_others_keep_the_paper_s_levels(bits):
    """Of less error: a quarter of dense weights at 1 bit would be lost."""
    (kernel,) = quantized_kernels(quantize_model(dense_of(normal(64, 64)), bits))
    assert kernel.representation.name == "sign_magnitude"


@every_width
def test_k8_an_outlier_does_not_move_the_others(bits):
    weights = normal(64, 64)
    weights[3, 4] = 1000
    (kernel,) = quantized_kernels(quantize_model(dense_of(weights), bits))
    others = np.abs(weights) < 100
    errors = read(kernel)[others].astype(np.float64) - weights[others]
    # Sums without rounding: where all others become zero, both are equal.
    assert math.fsum(errors**2) <= math.fsum(weights[others].astype(np.float64) ** 2)


def test_k18_messages_of_federated_training_hold_one_scale_per_kernel():
    model = Sequential([Input([8, 8, 2]), layers.DepthwiseConv2D(3)])
    with pytest.raises(ValueError, match="one scale per kernel"):
        ModelSpec.from_model(quantize_model(model, 8))
    ModelSpec.from_model(quantize_model(model, 8, per_channel=False))


def least_errors(weights, bits):
    """Least relative error of each column at 2**bits symmetric levels."""
    steps = 2 * np.abs(weights).max(0) / (2**bits - 1)
    errors = []
    for step in steps * np.linspace(0.01, 2, 2000)[:, None]:
        level = np.clip(
            np.floor(weights / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        )
        errors.append(np.linalg.norm(step * (level + 0.5) - weights, axis=0))
    return np.min(errors, 0) / np.linalg.norm(weights, axis=0)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.01), (6, 0.03), (4, 0.12)])
@pytest.mark.parametrize("rule", ["least_squares", "max", "widening"])
def test_k18_depthwise_kernels_have_a_scale_per_channel(bits, most, rule):
    weights = normal(3, 3, 16, 2)
    weights *= np.logspace(0, -2.5, 32, dtype=np.float32).reshape(16, 2)
    model = Sequential([Input([8, 8, 16]), layers.DepthwiseConv2D(3, 1, "same", 2)])
    model.set_weights([weights, np.zeros(32)])
    quantized = quantize_model(model, bits, scale_rule=rule)
    (kernel,) = quantized_kernels(quantized)
    assert tuple(kernel.scale.shape) == (1, 1, 16, 2)
    errors = np.linalg.norm(read(kernel) - weights, axis=(0, 1))
    errors /= np.linalg.norm(weights, axis=(0, 1))
    assert errors.max() < most
    if rule != "max":
        least = least_errors(weights.reshape(9, 32), bits).reshape(errors.shape)
        assert errors.mean() < 1.1 * least.mean()
    (row,) = summary(quantized).layers
    assert row.num_bytes == 9 * 32 * bits // 8 + 4 * 32
    (other,) = quantized_kernels(quantize_model(model, bits, per_channel=False))
    assert other.scale.shape == []
    quantized.compile(IntegerSGD(), "mse")
    x = normal(2, 8, 8, 16)
    quantized.fit(x, np.zeros([2, 8, 8, 32]), verbose=0)
    assert np.isfinite(quantized(x)).all()


# --- K11, K12: learning rates -----------------------------------------------


def trained(optimizer, callbacks, epochs):
    """Kernel and bias of QuantDense, before and after."""
    model = Sequential([Input([3]), QuantDense(2, bit_width=8)])
    model.compile(optimizer, "mse")
    before = model.get_weights()
    model.fit(normal(8, 3), normal(8, 2), epochs=epochs, verbose=0, callbacks=callbacks)
    return before, model.get_weights()


def test_k11_one_schedule_moves_both_rates():
    stop = tf.keras.callbacks.LearningRateScheduler(lambda epoch: 0.0)
    for one, two in zip(*trained(IntegerSGD(momentum=0), [stop], 2)):
        np.testing.assert_array_equal(one, two)
    alone = IntegerSGD(momentum=0, rates_move_together=False)
    before, after = trained(alone, [stop], 2)
    np.testing.assert_array_equal(before[0], after[0])
    assert np.any(before[1] != after[1])
    plateau = tf.keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.5, patience=0, min_delta=1e9, cooldown=0
    )
    optimizer = IntegerSGD(0.4, 0.2, momentum=0)
    trained(optimizer, [plateau], 3)
    assert float(optimizer._rate_of_floats()) == pytest.approx(
        0.2 * float(optimizer.learning_rate) / 0.4
    )
    assert float(optimizer.learning_rate) < 0.3


def test_k12_schedules_of_both_rates():
    decay = tf.keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)
    optimizer, variable = (
        IntegerSGD(0.1, float_learning_rate=decay, momentum=0),
        tf.Variable([8.0]),
    )
    for expected in (7.5, 7.25, 7.125):
        optimizer.apply_gradients([(tf.constant([1.0]), variable)])
        np.testing.assert_allclose(variable, [expected], rtol=1e-6)
    copy = tf.keras.optimizers.deserialize(tf.keras.optimizers.serialize(optimizer))
    assert copy.get_config() == optimizer.get_config()
    # A schedule of the kernels alone: the other rate is a quarter of it.
    optimizer, variable = IntegerSGD(decay, 0.125, momentum=0), tf.Variable([8.0])
    for expected in (7.875, 7.8125):
        optimizer.apply_gradients([(tf.constant([1.0]), variable)])
        np.testing.assert_allclose(variable, [expected], rtol=1e-6)


def test_k12_a_schedule_that_cannot_be_saved_trains():
    class Halving(tf.keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.5 ** tf.cast(step + 1, tf.float32)

    optimizer, variable = IntegerSGD(Halving(), 0.25, momentum=0), tf.Variable([8.0])
    for expected in (7.75, 7.625):  # At first the other rate is what was given.
        optimizer.apply_gradients([(tf.constant([1.0]), variable)])
        np.testing.assert_allclose(variable, [expected], rtol=1e-6)
    for rates in ((lambda: 0.1,), (0.1, lambda: 0.1)):
        with pytest.raises(TypeError, match="a number or a schedule"):
            IntegerSGD(*rates)


# --- K13 to K15: errors of users --------------------------------------------


def loaded(model, path):
    model.save(path)
    return tf.keras.models.load_model(path)


def unpacked(model, folder):
    export.write_packed(model, folder / "model.fedmpq")
    return export.read_packed(folder / "model.fedmpq")


def test_k13_codes_are_not_set_to_float_weights(tmp_path):
    model = quantize_model(dense_of(normal(5, 3)), 8)
    values = [normal(5, 3), *model.get_weights()[1:]]
    for each in (model, model.layers[0], unpacked(model, tmp_path)):
        with pytest.raises(ValueError, match="only/kernel holds codes.*float32"):
            each.set_weights(values)
        each.set_weights(model.get_weights())


@pytest.mark.parametrize("name", ["old.h5", "new.weights.h5", "checkpoint"])
def test_k13_float_weights_are_not_loaded_as_codes(name, tmp_path):
    """But codes are, by a model of other weights of which each layer has few."""
    model, path = three(), tmp_path / name
    for variable in model.weights:
        variable.assign(normal(*variable.shape))
    quantized, other = quantize_model(model, 8), quantize_model(three(), 4)
    x, before = normal(9, 6), quantized.get_weights()
    model.save_weights(path)
    with pytest.raises(ValueError, match="load_float_weights") as error:
        quantized.load_weights(path)
    assert "\n" not in str(error.value)
    for one, two in zip(quantized.get_weights(), before):
        np.testing.assert_array_equal(one, two)
    quantized.save_weights(tmp_path / f"codes-{name}")
    other.load_weights(tmp_path / f"codes-{name}")
    np.testing.assert_array_equal(other(x), quantized(x))


def test_k13_weights_of_another_model_are_refused():
    smaller = Sequential(three().layers[:2])
    for source in (smaller, Sequential([Input([6]), layers.Dense(9)])):
        with pytest.raises(ValueError, match="was not made from"):
            load_float_weights(quantize_model(three(), 8), source)


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, 2e38, np.nan])
@pytest.mark.parametrize("per_channel", [False, True])
def test_k14_weights_that_are_no_numbers(wrong, per_channel):
    weights = normal(5, 3)
    weights[2, 1] = wrong
    with pytest.raises(ValueError, match="only.* has a weight of"):
        quantize_model(dense_of(weights), 8, per_channel=per_channel)
    constant = tf.keras.initializers.Constant(wrong)
    with pytest.raises(ValueError, match="other/kernel has a weight of"):
        QuantDense(3, kernel_initializer=constant, name="other").build([None, 2])


@pytest.mark.parametrize("wrong", [np.inf, np.nan, 0, -1.0, (0, 3), "6"])
def test_k14_ranges_that_are_no_range(wrong):
    for activation in ("relu", "linear"):
        model = Sequential([Input([2]), layers.Dense(3, activation), layers.ReLU()])
        with pytest.raises(ValueError, match="activation_range has .*finite") as error:
            quantize_model(model, 8, 8, activation_range=wrong)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [np.inf, np.nan])
def test_k14_calibration_by_what_is_not_finite(wrong):
    model = Sequential([Input([2]), layers.ReLU(), layers.Flatten()])
    with pytest.raises(ValueError, match="calibration_data.*not finite"):
        quantize_model(model, 8, 8, calibration_data=np.array([[1, 2], [wrong, 0.5]]))


@pytest.mark.parametrize(
    "arguments",
    [
        {"optimizer": "adam"},
        {"optimizer": "sgd"},
        {"optimizer": tf.keras.optimizers.SGD(momentum=0.9)},
        {"optimizer": tf.keras.optimizers.legacy.Adam()},
        {},
    ],
    ids=["name", "sgd", "momentum", "legacy", "default"],
)
def test_k15_other_optimizers_are_refused(arguments):
    model = quantize_model(dense_of(normal(5, 3)), 8)
    with pytest.raises(ValueError, match="cannot train .*IntegerSGD") as error:
        model.compile(loss="mse", **arguments)
    assert "\n" not in str(error.value)
    model.compile(IntegerSGD(), "mse")
    floats = quantize_model(dense_of(normal(5, 3)), None)
    floats.compile(loss="mse", **arguments)


def functional_around(model, _):
    inputs = Input([5])
    return tf.keras.Model(inputs, layers.Activation("tanh")(model(inputs)))


class Subclassed(tf.keras.Model):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, inputs):
        return self.model(inputs)


def subclassed(model, _):
    model = Subclassed(model)
    model.build([None, 5])
    return model


def direct(model, _):
    return Sequential([Input([5]), QuantDense(3, name="only"), layers.Dense(2)])


MODELS_WITH_CODES = {
    "keras": lambda model, folder: loaded(model, folder / "model.keras"),
    "h5": lambda model, folder: loaded(model, folder / "model.h5"),
    "saved_model": lambda model, folder: loaded(model, folder / "model"),
    "packed": unpacked,
    "sequential": lambda model, _: Sequential([Input([5]), model]),
    "functional": functional_around,
    "subclassed": subclassed,
    "clone": lambda model, _: tf.keras.models.clone_model(model),
    "direct": direct,
}


@pytest.fixture(params=MODELS_WITH_CODES, scope="module")
def model_with_codes(request, tmp_path_factory):
    dense = layers.Dense(3, name="only")
    model = quantize_model(Sequential([Input([5]), dense, layers.Dense(2)]), 8)
    return MODELS_WITH_CODES[request.param](model, tmp_path_factory.mktemp("model"))


def test_k15_only_integer_sgd_trains_a_model_however_it_was_made(model_with_codes):
    """Others are refused before a weight changes, also by a loop of one's own."""
    model, x, y = model_with_codes, normal(8, 5), normal(8, 2, seed=1)
    before = [v.numpy() for v in model.weights]
    refused = pytest.raises(ValueError, match="^.* cannot train .*IntegerSGD, .*$")
    with refused:
        model.compile("adam", "mse")
        model.fit(x, y, verbose=0)
    optimizer = tf.keras.optimizers.SGD(0.1)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x) - y))
    gradients = tape.gradient(loss, model.trainable_variables)
    with refused:
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    for variable, value in zip(model.weights, before):
        np.testing.assert_array_equal(variable, value)

    model.compile(IntegerSGD(0.1), "mse")
    losses = model.fit(x, y, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for variable, value in zip(model.weights, before):
        if hasattr(variable, "quantized_kernel"):
            assert (variable.numpy() != value).any()


def test_k13_quantized_layers_of_any_model_refuse_float_weights(model_with_codes):
    layer = next(x for x in model_with_codes.submodules if x.name == "only")
    weights = layer.get_weights()
    with pytest.raises(ValueError, match="only/kernel holds codes.*float32"):
        layer.set_weights([normal(5, 3), *weights[1:]])
    layer.set_weights(weights)


# --- K16, K17: rules --------------------------------------------------------


def three():
    stem, middle = layers.Dense(5, name="stem"), layers.Dense(4, name="middle")
    return Sequential([Input([6]), stem, middle, layers.Dense(3, name="head")])


@pytest.mark.parametrize(
    ("rule", "exclude", "expected"),
    [
        ({"stem": 8, "head": None}, (), {"stem": 8, "middle": 8}),
        ({"stem": 2, layers.Dense: 3}, (), {"stem": 2, "middle": 3, "head": 3}),
        ({"*e*d*": 5, "*": 2}, (), {"stem": 2, "middle": 2, "head": 5}),
        (lambda x: 4 if x.units > 3 else None, (), {"stem": 4, "middle": 4}),
        (4, "head", {"stem": 4, "middle": 4}),
        (4, ["stem", lambda x: x.units == 3], {"middle": 4}),
        (4, layers.Dense, {}),
    ],
)
def test_k16_rules_per_layer(rule, exclude, expected):
    model = three()
    quantized = quantize_model(model, rule, exclude=exclude)
    found = {
        k.name.split("/")[0]: int(k.bit_width) for k in quantized_kernels(quantized)
    }
    assert found == expected
    for layer in model.layers:
        if layer.name not in expected:
            kernel = quantized.get_layer(layer.name).kernel
            np.testing.assert_array_equal(kernel, layer.kernel)
    again = quantize_model(quantized, 2)
    assert all(int(k.bit_width) == 2 for k in quantized_kernels(again))
    named = quantize_model(quantized, {"head": 3, "*": 2})
    assert [int(k.bit_width) for k in quantized_kernels(named)] == [2, 2, 3]
    rows = {row.name: row.bit_width for row in quantized.quantization_report.layers}
    assert rows == {x.name: expected.get(x.name) for x in model.layers}


def test_k16_a_rule_may_name_a_layer_or_the_type_in_a_wrapper():
    head = layers.Dense(2)
    hidden = layers.TimeDistributed(layers.Conv1D(2, 3))
    model = Sequential([Input([3, 6, 3]), hidden, head])

    def bits(*args, **kwargs):
        rows = quantize_model(model, *args, **kwargs).quantization_report.layers
        return [row.bit_width for row in rows]

    assert bits({layers.Conv1D: 3, head: 2}) == [3, 2]
    assert bits(4, exclude=layers.Conv1D) == [None, 4]
    assert bits(4, exclude=head) == bits(4, exclude=[head]) == [4, None]
    with pytest.raises(ValueError, match="No layer is called"):
        bits(4, exclude=layers.Dense(3))


def test_k16_a_rule_may_name_an_inner_model():
    part = Sequential([Input([6]), layers.Dense(5, name="d")], name="part")
    base = Sequential([Input([6]), part, layers.Dense(4, name="d")], name="base")
    steps = layers.TimeDistributed(base, name="steps")
    model = Sequential([Input([3, 6]), steps, layers.Dense(2, name="head")])

    def bits(*args, **kwargs):
        rows = quantize_model(model, *args, **kwargs).quantization_report.layers
        return [row.bit_width for row in rows]

    assert bits({"part": 2, "base": 3}) == bits({part: 2, "steps": 3}) == [2, 3, 8]
    assert bits(4, exclude=base) == bits(4, exclude="b*") == [None, None, 4]
    assert bits(4, exclude=layers.TimeDistributed) == [None, None, 4]
    assert bits({"d": 2, "*": 5}) == [2, 2, 5]


def test_k16_quantized_layers_get_what_is_given():
    first, last = layers.Dense(5, "relu"), layers.Dense(2, "tanh")
    model = Sequential([Input([6]), first, layers.ReLU(), last, layers.ReLU()])
    plain, of_four = quantize_model(model, 8), quantize_model(model, 8, 4)
    for bits, most in ((3, 0.3), (8, 0.02)):
        again = quantize_model(
            plain, bits, 2, per_channel=True, representation="offset_binary"
        )
        assert [x.activation_bits for x in again.layers] == [2, 2, 2, 2]
        for one, other in zip(quantized_kernels(again), quantized_kernels(plain)):
            assert one.representation.name == "offset_binary"
            assert tuple(one.scale.shape) == (1, one.codes.shape[1])
            assert 0 < relative_error(read(one), read(other)) < most
    again = quantize_model(of_four, 8, 2)
    assert [x.activation_bits for x in again.layers] == [2, 2, 2, 2]
    same = quantize_model(of_four, 8)
    assert [x.activation_bits for x in same.layers] == [4, 4, 4, 4]
    np.testing.assert_array_equal(same(normal(9, 6)), of_four(normal(9, 6)))


@pytest.mark.parametrize("wrong", [3, None])
def test_k16_what_chooses_no_layer_is_refused(wrong):
    for arguments in ({"bit_width": {wrong: 8}}, {"exclude": wrong}):
        with pytest.raises(TypeError, match=f"by name, type or .*; found {wrong}"):
            quantize_model(three(), **arguments)


@pytest.mark.parametrize("arguments", [{"bit_width": {"stam": 8}}, {"exclude": "stam"}])
def test_k16_names_of_no_layer_are_refused(arguments):
    with pytest.raises(ValueError, match="'stam'; layers are stem, middle, head"):
        quantize_model(three(), **arguments)
    with pytest.raises(ValueError, match="bit_width of stem .*found 9"):
        quantize_model(three(), {"stem": 9})


@pytest.mark.parametrize("exclude", [(), "bounded"])
def test_k17_a_constraint_leaves_one_layer_in_float(exclude):
    bounded = layers.Dense(5, kernel_constraint="non_neg", name="bounded")
    model = Sequential([Input([6]), bounded, layers.Dense(3, name="free")])
    with warnings_of_absl() as messages:
        quantized = quantize_model(model, 4, exclude=exclude)
    assert len(quantized_kernels(quantized)) == 1
    row = quantized.quantization_report.layers[0]
    assert row.bit_width is None
    if not exclude:
        assert "bounded" in messages[0] and "constraint" in row.remark


# --- K19, K20: words --------------------------------------------------------


def test_k19_rows_have_the_names_of_layers_after_loading(tmp_path):
    model = quantize_model(three(), 4)
    names = [f"{layer}/kernel_codes" for layer in ("stem", "middle", "head")]
    assert [row.name for row in summary(model).layers] == names
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert [row.name for row in summary(loaded).layers] == names


def test_k20_a_warning_is_short():
    class Unknown(layers.Dense):
        pass

    steps = (layers.Activation("exponential") for _ in range(40))
    dense = (Unknown(3) for _ in range(40))
    model = Sequential([Input([3]), *itertools.chain(*zip(dense, steps))])
    with warnings_of_absl() as messages:
        report = quantize_model(model, 4, 4).quantization_report
    assert "100.0 % of the weights stay in float, in 40 Unknown" in messages[0]
    assert all(len(message) < 300 for message in messages)
    assert len(str(report).splitlines()) == 81
