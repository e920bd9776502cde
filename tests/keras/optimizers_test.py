"""IntegerSGD: integer steps for codes, those of SGD for everything else.

The oracle of a step of codes is `oracles.quantization.integer_update`; the randomness
of the rounding is pinned by replacing TensorFlow's generator.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from oracles import quantization as oracle
from oracles.seeds import set_random_seed
from oracles.strategies import BIT_WIDTHS

from tff_fedmpq.keras import IntegerSGD, QuantDense, quantized_kernels

ORACLES = {
    "offset_binary": oracle.OFFSET_BINARY,
    "sign_magnitude": oracle.SIGN_MAGNITUDE,
}
every_bit_width = pytest.mark.parametrize("bit_width", BIT_WIDTHS)

# Eq. 6-10 as printed: eta is a rate of codes.
code_sgd = functools.partial(IntegerSGD, learning_rate_unit="code")


def make_kernel(bit_width, shape=(20, 15), seed=0, **kwargs):
    """A quantized kernel whose codes are spread over their range."""
    layer = QuantDense(shape[1], use_bias=False, bit_width=bit_width, **kwargs)
    layer.build([None, shape[0]])
    codes = np.random.default_rng(seed).integers(0, 2**bit_width, size=shape)
    layer.quantized_kernel.codes.assign(codes.astype(np.uint8))
    return layer.quantized_kernel


def gradients_for(bit_width, shape, num_steps, seed=1):
    """Gradients whose steps are from far below one unit to past the whole range."""
    rng = np.random.default_rng(seed)
    gain = float(oracle.step_gain(bit_width))
    sizes = 2.0 ** rng.uniform(-6, bit_width + 1, size=[num_steps, *shape]) / gain
    return (rng.choice([-1, 1], size=sizes.shape) * sizes).astype(np.float32)


def pin_randomness(monkeypatch, draws):
    """Makes the next draws of uniform numbers those given."""
    remaining = iter(draws)

    def draw(shape, seed, **kwargs):
        del seed, kwargs
        numbers = next(remaining)
        assert numbers.shape == tuple(shape)
        return tf.constant(numbers)

    monkeypatch.setattr(tf.random, "stateless_uniform", draw)


# --- codes ------------------------------------------------------------------


@pytest.mark.parametrize("representation", sorted(ORACLES))
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@every_bit_width
def test_codes_follow_the_oracle(monkeypatch, representation, weight_decay, bit_width):
    """v <- mu v + g + decay delta^2 (u - z), then Eq. 6-10 on v, three times."""
    kernel = make_kernel(bit_width, representation=representation)
    shape = tuple(kernel.codes.shape)
    gradients = gradients_for(bit_width, shape, num_steps=3)
    uniform = np.random.default_rng(2).random(size=[3, *shape]).astype(np.float32)
    pin_randomness(monkeypatch, uniform)
    optimizer = code_sgd(0.7, momentum=0.9, weight_decay=weight_decay)

    codes = kernel.codes.numpy().astype(np.int64)
    delta = float(kernel.scale) / (2**bit_width - 1)
    zero_point = float(ORACLES[representation].zero_point(bit_width))
    velocity = np.zeros(shape)
    clear = np.ones(shape, bool)
    for gradient, numbers in zip(gradients, uniform):
        optimizer.apply_gradients([(tf.constant(gradient), kernel.codes)])
        decay = weight_decay * delta**2 * (codes - zero_point)
        velocity = 0.9 * velocity + gradient + decay
        clear &= ~oracle.is_near_half(velocity, 0.7, distance=1e-3)
        clear &= ~oracle.is_near_whole_step(velocity, bit_width, 0.7, numbers)
        codes = oracle.integer_update(codes, velocity, bit_width, 0.7, numbers)
        assert kernel.codes.dtype == tf.uint8
        np.testing.assert_array_equal(kernel.codes.numpy()[clear], codes[clear])
    assert np.mean(clear) > 0.95


def test_rounding_is_unbiased():
    """A step of 21/64 units is done by 21/64 of the codes, to five sigma."""
    kernel = make_kernel(3, shape=(100, 100))
    kernel.codes.assign(tf.fill([100, 100], tf.constant(4, tf.uint8)))
    optimizer = code_sgd(1.0)
    optimizer.apply_gradients([(tf.fill([100, 100], 1 / 64), kernel.codes)])
    values, counts = np.unique(kernel.codes.numpy(), return_counts=True)
    np.testing.assert_array_equal(values, [3, 4])
    p = 21 / 64
    assert abs(counts[0] / 1e4 - p) < 5 * np.sqrt(p * (1 - p) / 1e4)


@every_bit_width
def test_codes_stay_in_range(bit_width):
    kernel = make_kernel(bit_width)
    optimizer = code_sgd(1.0, momentum=0.5)
    shape = tuple(kernel.codes.shape)
    for gradient in 100 * gradients_for(bit_width, shape, num_steps=2):
        optimizer.apply_gradients([(tf.constant(gradient), kernel.codes)])
        assert kernel.codes.dtype == tf.uint8
        assert np.max(kernel.codes) <= 2**bit_width - 1
    for size in (3e38, -3e38):
        optimizer.apply_gradients([(tf.fill(shape, size), kernel.codes)])
        assert np.max(kernel.codes) <= 2**bit_width - 1
    # Nowhere but at the ends, and not around the other way.
    optimizer = code_sgd(1.0, momentum=0.0)
    optimizer.apply_gradients([(tf.fill(shape, 1e6), kernel.codes)])
    np.testing.assert_array_equal(kernel.codes, np.zeros(shape))
    optimizer.apply_gradients([(tf.fill(shape, -1e6), kernel.codes)])
    np.testing.assert_array_equal(kernel.codes, np.full(shape, 2**bit_width - 1))


def test_no_gradient_no_step():
    kernel = make_kernel(8)
    before = kernel.codes.numpy()
    optimizer = code_sgd(1.0)
    optimizer.apply_gradients([(tf.zeros(kernel.codes.shape), kernel.codes)])
    np.testing.assert_array_equal(kernel.codes, before)


def test_scale_and_bit_width_are_left_alone():
    kernel = make_kernel(5)
    scale = kernel.scale.numpy()
    optimizer = code_sgd(1.0, weight_decay=0.1)
    optimizer.apply_gradients([(tf.ones(kernel.codes.shape), kernel.codes)])
    assert kernel.scale.numpy() == scale
    assert kernel.bit_width.numpy() == 5


def test_one_trace_serves_every_bit_width_and_learning_rate():
    kernel = make_kernel(8)
    optimizer = code_sgd(1.0, momentum=0.0)
    optimizer.build([kernel.codes])
    step = tf.function(lambda g: optimizer.apply_gradients([(g, kernel.codes)]))
    ones = tf.ones(kernel.codes.shape)
    for bit_width in (8, 3, 1):
        kernel.set_bit_width(bit_width)
        step(-ones)
        np.testing.assert_array_equal(
            kernel.codes, np.full(ones.shape, 2**bit_width - 1)
        )
    optimizer.learning_rate = 0.0
    step(ones)
    np.testing.assert_array_equal(kernel.codes, np.ones(ones.shape))
    assert step.experimental_get_tracing_count() == 1


# --- randomness -------------------------------------------------------------


def codes_after(seed, num_steps=2):
    """Codes of two equal kernels after equal gradients of half a unit."""
    kernels = [make_kernel(4), make_kernel(4)]
    for kernel in kernels:
        kernel.codes.assign(tf.fill(kernel.codes.shape, tf.constant(8, tf.uint8)))
    # K = 85: a step of 85/128 of a unit.
    gradient = tf.fill(kernels[0].codes.shape, 1 / 128)
    optimizer = code_sgd(1.0, momentum=0.0, seed=seed)
    history = []
    for _ in range(num_steps):
        optimizer.apply_gradients([(gradient, kernel.codes) for kernel in kernels])
        history.append([kernel.codes.numpy().astype(int) for kernel in kernels])
    return np.array(history)


@pytest.mark.parametrize("scale", [0.1, 0.5])
@every_bit_width
def test_a_rate_of_weights_moves_weights_alike(bit_width, scale):
    """By eta times the gradient of the weight, on average, whatever delta is."""
    kernel = make_kernel(bit_width, shape=(200, 100))
    kernel.scale.assign(scale)
    middle = tf.constant(2 ** (bit_width - 1), tf.uint8)
    kernel.codes.assign(tf.fill(kernel.codes.shape, middle))
    delta = scale / (2**bit_width - 1)
    # K / 4^b of a unit: rounding to a power of two changes nothing.
    units = float(oracle.step_gain(bit_width)) / 4**bit_width
    gradient = units * delta  # Of weights, at eta 1.
    optimizer = IntegerSGD(1.0, momentum=0.0, learning_rate_unit="weight")
    before = kernel.value().numpy()
    on_codes = tf.fill(kernel.codes.shape, np.float32(gradient * delta))
    optimizer.apply_gradients([(on_codes, kernel.codes)])
    moved = before - kernel.value().numpy()
    # Five standard errors of a mean of units that are moved with that probability.
    error = 5 * delta * np.sqrt(units * (1 - units) / moved.size)
    assert abs(moved.mean() - gradient) < error


def test_a_scale_of_zero_has_no_rate_of_weights():
    kernel = make_kernel(4)
    kernel.scale.assign(0.0)
    before = kernel.codes.numpy()
    optimizer = IntegerSGD(1.0, learning_rate_unit="weight")
    optimizer.apply_gradients([(tf.ones(kernel.codes.shape), kernel.codes)])
    np.testing.assert_array_equal(kernel.codes, before)


def test_same_seed_same_result():
    np.testing.assert_array_equal(codes_after(5), codes_after(5))


def test_other_seed_other_result():
    assert np.any(codes_after(5) != codes_after(6))


def test_every_variable_and_step_has_its_own_draw():
    (first, second), after = codes_after(5)
    assert np.any(first != second)
    assert np.any(8 - first != first - after[0])


def test_seed_can_be_set_between_steps():
    """A client's training begins from its own seed, in the same graph."""
    results = []
    for seed in ([1, 2], [1, 2], [1, 3]):
        kernel = make_kernel(4)
        optimizer = code_sgd(1.0)
        optimizer.build([kernel.codes])
        optimizer.rounding_seed.assign(seed)
        gradient = tf.fill(kernel.codes.shape, 1 / 128)
        optimizer.apply_gradients([(gradient, kernel.codes)])
        results.append(kernel.codes.numpy())
    np.testing.assert_array_equal(results[0], results[1])
    assert np.any(results[0] != results[2])


# --- float variables --------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_float_variables_move_as_by_sgd(momentum, decay):
    rng = np.random.default_rng(0)
    start = rng.normal(size=[4, 3]).astype(np.float32)
    ours, stock = tf.Variable(start), tf.Variable(start)
    optimizer = IntegerSGD(
        17.0, float_learning_rate=0.2, momentum=momentum, weight_decay=decay
    )
    sgd = tf.keras.optimizers.SGD(0.2, momentum=momentum)
    expected, velocity = start.astype(np.float64), 0.0
    for _ in range(5):
        gradient = rng.normal(size=[4, 3]).astype(np.float32)
        velocity = momentum * velocity + gradient + decay * expected
        expected = expected - 0.2 * velocity
        optimizer.apply_gradients([(tf.constant(gradient), ours)])
        sgd.apply_gradients([(gradient + decay * stock, stock)])
    np.testing.assert_allclose(ours, stock, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("built_before", [True, False])
def test_the_rate_of_float_variables_can_be_set(built_before):
    optimizer, variable = IntegerSGD(float_learning_rate=0.5), tf.Variable([1.0])
    if built_before:
        optimizer.build([variable])
    optimizer.float_learning_rate = 0.25
    step = tf.function(optimizer.apply_gradients)
    step([(tf.constant([2.0]), variable)])
    np.testing.assert_allclose(variable, [0.5])
    optimizer.reset([0, 0])
    assert optimizer.get_config()["float_learning_rate"] == 0.25
    optimizer.float_learning_rate = 0.125  # The traced step takes it too.
    step([(tf.constant([2.0]), variable)])
    np.testing.assert_allclose(variable, [0.25])


def test_sparse_gradients_are_dense_ones():
    table = tf.Variable(np.ones([4, 2], np.float32))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(table, [1, 3, 3]))
    gradient = tape.gradient(loss, table)
    assert isinstance(gradient, tf.IndexedSlices)
    IntegerSGD(float_learning_rate=0.5).apply_gradients([(gradient, table)])
    np.testing.assert_allclose(table[:, 0], [1, 0.5, 1, 0])


def test_codes_and_float_variables_together():
    """Each has its own momentum, whatever the order."""
    kernel, bias = make_kernel(1, shape=(2, 3)), tf.Variable([1.0, 2.0])
    kernel.codes.assign(tf.ones([2, 3], tf.uint8))
    optimizer = code_sgd(1.0, float_learning_rate=0.5, momentum=0.5)
    for gradient in (1.0, 0.0):
        optimizer.apply_gradients(
            [(tf.fill([2], gradient), bias), (tf.fill([2, 3], gradient), kernel.codes)]
        )
    np.testing.assert_array_equal(kernel.codes, np.zeros([2, 3]))
    np.testing.assert_allclose(bias, [0.25, 1.25])


def test_steps_rounded_up():
    """1.2 / 1024 is 1 / 1024 to the nearest power of two, 2 / 1024 up (Eq. 6)."""
    moved = {}
    for name in ("nearest", "up"):
        kernel = make_kernel(8)
        kernel.codes.assign(tf.fill(kernel.codes.shape, tf.constant(200, tf.uint8)))
        gradient = tf.fill(kernel.codes.shape, 1.2 / 1024)
        optimizer = code_sgd(1.0, momentum=0.0, step_rounding=name)
        optimizer.apply_gradients([(gradient, kernel.codes)])
        moved[name] = set((200 - kernel.codes.numpy().astype(int)).flat)
    step = oracle.step_gain(8) / 1024  # 21.33
    assert moved == {
        "nearest": {math.floor(step), math.ceil(step)},
        "up": {math.floor(2 * step), math.ceil(2 * step)},
    }


# --- configuration ----------------------------------------------------------


def test_config_round_trip():
    optimizer = IntegerSGD(
        0.5,
        0.02,
        0.7,
        1e-4,
        "code",
        seed=12,
        step_rounding="up",
        clipnorm=3.0,
    )
    config = optimizer.get_config()
    given = {
        "learning_rate": 0.5,
        "float_learning_rate": 0.02,
        "momentum": 0.7,
        "weight_decay": 1e-4,
        "learning_rate_unit": "code",
        "seed": 12,
        "step_rounding": "up",
        "clipnorm": 3.0,
    }
    assert {key: config[key] for key in given} == pytest.approx(given)
    copy = tf.keras.optimizers.deserialize(tf.keras.optimizers.serialize(optimizer))
    assert isinstance(copy, IntegerSGD)
    assert copy.get_config() == config


def test_weight_decay_is_not_decoupled_as_well():
    """Keras would decay once more by an attribute of that name."""
    variable = tf.Variable([10.0])
    optimizer = IntegerSGD(float_learning_rate=0.1, momentum=0.0, weight_decay=0.5)
    optimizer.apply_gradients([(tf.zeros([1]), variable)])
    np.testing.assert_allclose(variable, [9.5])


def test_learning_rate_schedule():
    schedule = tf.keras.optimizers.schedules.PiecewiseConstantDecay([0], [4.0, 0.0])
    optimizer = code_sgd(schedule, momentum=0.0)
    kernel = make_kernel(2)
    gradient = tf.ones(kernel.codes.shape)
    optimizer.apply_gradients([(gradient, kernel.codes)])
    np.testing.assert_array_equal(kernel.codes, np.zeros(gradient.shape))
    optimizer.apply_gradients([(-gradient, kernel.codes)])
    np.testing.assert_array_equal(kernel.codes, np.zeros(gradient.shape))
    copy = IntegerSGD.from_config(optimizer.get_config())
    assert copy.get_config() == optimizer.get_config()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"momentum": 1.0}, "momentum.*found 1.0"),
        ({"momentum": -0.1}, "momentum.*found -0.1"),
        ({"momentum": float("nan")}, "momentum.*found nan"),
        ({"learning_rate_unit": "bit"}, "learning_rate_unit.*code, weight.*'bit'"),
        ({"step_rounding": "down"}, "step_rounding.*'down'.*nearest.*up"),
    ],
    ids=str,
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        IntegerSGD(**wrong)


def test_hdf5_file(tmp_path):
    model = make_classifier(4)
    x, y = blobs(8)
    model.train_on_batch(x, y)
    model.save(tmp_path / "model.h5")
    loaded = tf.keras.models.load_model(tmp_path / "model.h5")
    np.testing.assert_array_equal(loaded(x), model(x))


# --- training ---------------------------------------------------------------

NUM_CLASSES = 4


def blobs(num_examples, seed=0):
    """Four classes around corners that a plane does not separate in pairs."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_examples) % NUM_CLASSES
    centres = 2.0 * np.eye(NUM_CLASSES, 6)
    x = centres[labels] + 0.4 * rng.normal(size=[num_examples, 6])
    return x.astype(np.float32), labels


def make_classifier(bit_width):
    set_random_seed(11)
    model = tf.keras.Sequential(
        [
            tf.keras.Input([6]),
            QuantDense(24, activation="relu", bit_width=bit_width),
            QuantDense(NUM_CLASSES, bit_width=bit_width),
        ]
    )
    model.compile(
        code_sgd(1.0, 0.05, momentum=0.5),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


@pytest.mark.parametrize("bit_width", [2, 4, 8])
def test_fit_learns_by_moving_codes(bit_width):
    model = make_classifier(bit_width)
    before = [kernel.codes.numpy() for kernel in quantized_kernels(model)]
    x, y = blobs(160)
    model.fit(x, y, batch_size=32, epochs=8, verbose=0)
    _, accuracy = model.evaluate(*blobs(200, seed=1), verbose=0)
    assert accuracy > 0.8  # Chance is 0.25.
    for kernel, codes in zip(quantized_kernels(model), before):
        assert np.any(kernel.codes.numpy() != codes)
        assert np.max(kernel.codes) <= 2**bit_width - 1


def test_fit_repeats_itself():
    x, y = blobs(64)
    results = []
    for _ in range(2):
        model = make_classifier(4)
        model.fit(x, y, batch_size=32, epochs=2, verbose=0)
        results.append(model.get_weights())
    for one, two in zip(*results):
        np.testing.assert_array_equal(one, two)


# --- what is refused ----------------------------------------------------------


def test_an_optimizer_goes_by_its_own_name():
    assert IntegerSGD().name == "IntegerSGD"
    assert IntegerSGD(0.5, name="mine").get_config()["name"] == "mine"
    with pytest.raises(ValueError, match="IntegerSGD: clipnorm"):
        IntegerSGD(clipnorm=1.0).build([make_kernel(4).codes])


@pytest.mark.parametrize(
    "option",
    [
        {"clipnorm": 1.0},
        {"clipvalue": 0.1},
        {"global_clipnorm": 1.0},
        {"use_ema": True},
    ],
)
def test_clipping_and_averaging_are_for_float_models(option):
    (name,) = option
    codes = make_kernel(4).codes
    with pytest.raises(ValueError, match=name):
        IntegerSGD(**option).build([codes])
    variable = tf.Variable([1.0, 2.0])
    optimizer = IntegerSGD(float_learning_rate=1.0, momentum=0.0, **option)
    optimizer.apply_gradients([(tf.constant([30.0, 40.0]), variable)])
    assert np.all(variable.numpy() < [1.0, 2.0])


@pytest.mark.parametrize("dtype", [tf.float64, tf.bfloat16])
def test_variables_of_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="float32 variables; found .*weights"):
        IntegerSGD().build([tf.Variable([1.0], dtype=dtype, name="weights")])


def test_neighbouring_seeds_draw_other_numbers():
    """Not those of another step or variable either."""

    def draws(seed):
        kernel = make_kernel(8, shape=(4, 5))
        optimizer = IntegerSGD(seed=seed)
        optimizer.build([kernel.codes])
        found = []
        for _ in range(3):
            for index in range(3):
                found.append(optimizer._draw_uniform(kernel.codes.shape, index))
            optimizer.iterations.assign_add(1)
        return found

    every = np.array([draws(seed) for seed in (0, 1, 2)]).reshape(27, 20)
    assert len(np.unique(every, axis=0)) == 27
    np.testing.assert_array_equal(draws(1), draws(1))
