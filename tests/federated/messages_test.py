"""What is sent can be read again, and is as long as the formula says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import quantization as oracle
from oracles.problem import device_bit_widths

from tff_fedmpq.federated import messages
from tff_fedmpq.keras.variables import FloatWeights, ModelSpec
from tff_fedmpq.quantization.representations import get_representation
from tff_fedmpq.quantization.scales import get_scale_rule

ORACLES = {
    "sign_magnitude": oracle.SIGN_MAGNITUDE,
    "offset_binary": oracle.OFFSET_BINARY,
}
# Sizes that leave every number of bits in the last byte.
SHAPES = ((5,), (3, 3, 2, 1), (7, 3), (1, 1), (16,))
SIZES = (5, 18, 21, 1, 16)
FLOAT_SHAPES = ((3,), (2, 2), ())


def make_spec(kernel_shapes=SHAPES, float_parameter_shapes=FLOAT_SHAPES) -> ModelSpec:
    return ModelSpec(
        tuple(f"layer{i}" for i in range(len(kernel_shapes))),
        (*kernel_shapes, *float_parameter_shapes),
        (True,) * len(kernel_shapes) + (False,) * len(float_parameter_shapes),
        (),
    )


def random_weights(bit_widths, seed) -> messages.QuantizedWeights:
    rng = np.random.default_rng(seed)
    return messages.QuantizedWeights(
        tuple(
            rng.integers(0, 2**bits, size=shape).astype(np.uint8)
            for bits, shape in zip(bit_widths, SHAPES)
        ),
        rng.random(len(bit_widths)).astype(np.float32) + 0.1,
        np.array(bit_widths, np.int32),
        tuple(rng.normal(size=shape).astype(np.float32) for shape in FLOAT_SHAPES),
    )


def as_tensors(weights: messages.QuantizedWeights) -> messages.QuantizedWeights:
    return tf.nest.map_structure(tf.constant, weights)


def packed_bytes(bit_widths, sizes) -> int:
    return sum(math.ceil(b * m / 8) for b, m in zip(bit_widths, sizes))


mixed_bit_widths = st.lists(
    st.integers(min_value=1, max_value=8), min_size=len(SHAPES), max_size=len(SHAPES)
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(mixed_bit_widths, st.integers(min_value=0, max_value=2**32 - 1))
def test_mixed_bit_widths_round_trip(bit_widths, seed):
    weights = random_weights(bit_widths, seed)
    message = messages.pack_model(as_tensors(weights))
    assert list(message) == sorted(message)  # As `tff.federated_select` wants it.
    assert message["codes"].dtype == message["bit_widths"].dtype == tf.uint8
    assert message["codes"].shape == [packed_bytes(bit_widths, SIZES)]
    restored = messages.unpack_model(message, make_spec())
    tf.nest.map_structure(np.testing.assert_array_equal, restored, weights)
    assert restored.bit_widths.dtype == tf.int32
    assert [codes.dtype for codes in restored.codes] == [tf.uint8] * len(SHAPES)


def test_each_layer_begins_at_a_byte():
    bit_widths = [1, 3, 8, 5, 7]
    weights = random_weights(bit_widths, 0)
    expected = [
        oracle.pack(codes.ravel(), bits)
        for codes, bits in zip(weights.codes, bit_widths)
    ]
    packed = messages.pack_model(as_tensors(weights))["codes"]
    np.testing.assert_array_equal(packed, np.concatenate(expected))


def test_one_graph_serves_all_bit_widths():
    traces = []

    @tf.function
    def there_and_back(weights):
        traces.append(1)
        return messages.unpack_model(messages.pack_model(weights), make_spec())

    for bit_widths in ([1, 2, 3, 4, 5], [8, 8, 1, 1, 7]):
        weights = random_weights(bit_widths, 3)
        restored = there_and_back(as_tensors(weights))
        tf.nest.map_structure(np.testing.assert_array_equal, restored, weights)
        for codes, shape in zip(restored.codes, SHAPES):
            assert codes.shape == shape
    assert len(traces) == 1


def test_a_float_model_has_float_parameters_only():
    spec = make_spec(kernel_shapes=())
    values = tuple(tf.ones(shape) for shape in FLOAT_SHAPES)
    weights = messages.quantize_weights(
        FloatWeights((), values), tf.zeros([0], tf.int32), None, None
    )
    message = messages.pack_model(weights)
    np.testing.assert_array_equal(
        messages.count_model_bits(message), [0, 0, 0, 32 * (3 + 4 + 1)]
    )
    restored = messages.unpack_model(message, spec)
    assert restored.codes == ()
    tf.nest.map_structure(
        np.testing.assert_array_equal, restored.float_parameters, values
    )


@pytest.mark.parametrize("name", sorted(ORACLES))
@pytest.mark.parametrize("seed", range(3))
def test_quantized_weights_are_the_oracles(name, seed):
    rng = np.random.default_rng(seed)
    bit_widths = rng.permutation([1, 2, 4, 7, 8])
    kernels = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]
    values = [rng.normal(size=shape).astype(np.float32) for shape in FLOAT_SHAPES]
    quantized = messages.quantize_weights(
        FloatWeights([tf.constant(kernel) for kernel in kernels], values),
        tf.constant(bit_widths, tf.int32),
        get_representation(name),
        get_scale_rule("max"),
    )
    np.testing.assert_allclose(
        quantized.scales, [2 * np.abs(kernel).max() for kernel in kernels], rtol=1e-6
    )
    restored = messages.dequantize_weights(quantized, get_representation(name))
    for i, (kernel, bits) in enumerate(zip(kernels, bit_widths.tolist())):
        scale = float(quantized.scales[i])
        codes = oracle.nearest_codes(ORACLES[name], kernel, scale, bits)
        # Of two equally near levels, either may be chosen.
        clear = ~oracle.is_near_tie(ORACLES[name], kernel, scale, bits)
        np.testing.assert_array_equal(quantized.codes[i].numpy()[clear], codes[clear])
        table = oracle.levels(ORACLES[name], scale, bits)
        np.testing.assert_allclose(
            restored.kernels[i], table[quantized.codes[i].numpy()], rtol=1e-5, atol=1e-7
        )
    tf.nest.map_structure(
        np.testing.assert_array_equal, list(restored.float_parameters), values
    )


def test_each_layer_gets_the_scale_of_its_own_bit_width():
    kernel = tf.constant(np.random.default_rng(0).normal(size=100), tf.float32)
    representation = get_representation("sign_magnitude")
    rule = get_scale_rule("least_squares")
    quantized = messages.quantize_weights(
        FloatWeights((kernel, kernel), ()), tf.constant([1, 8]), representation, rule
    )
    expected = [rule(kernel, tf.constant(bits), representation) for bits in (1, 8)]
    np.testing.assert_array_equal(quantized.scales, expected)
    assert quantized.scales[0] < 0.8 * quantized.scales[1]


def test_bits_are_itemised():
    message = {
        "bit_widths": tf.zeros([2], tf.uint8),
        "codes": tf.zeros([13], tf.uint8),
        "float_parameters": (tf.zeros([4, 5]), tf.zeros([])),
        "scales": tf.zeros([2]),
    }
    headers = [tf.constant(1.0), tf.zeros([2], tf.int32)]
    bits = messages.count_model_bits(message, headers)
    assert messages.BIT_ITEMS == ("codes", "scales", "headers", "float_parameters")
    assert bits.dtype == tf.int64
    assert bits.numpy().tolist() == [13 * 8, 2 * 32, 2 * 8 + 32 + 2 * 32, 21 * 32]
    without = messages.count_model_bits(message)
    assert without.numpy().tolist() == [13 * 8, 2 * 32, 2 * 8, 21 * 32]


def test_a_model_change_costs_what_the_model_costs():
    """The received model accompanies the message in TFF alone, and is not counted."""
    weights = as_tensors(random_weights([1, 2, 3, 4, 5], 0))
    received = as_tensors(random_weights([1, 2, 3, 4, 5], 1))
    arguments = (weights, received, tf.constant(3.0), tf.constant([0, 0]))
    representation = get_representation("sign_magnitude")
    plain = messages.ModelUplink(representation)
    change = messages.ModelChangeUplink(representation)
    header = [tf.constant(1.0)]
    np.testing.assert_array_equal(
        change.count_bits(change.encode(*arguments), header),
        plain.count_bits(plain.encode(*arguments), header),
    )
    decoded = change.decode(change.encode(*arguments), make_spec())
    for found, new, old in zip(
        tf.nest.flatten(decoded),
        *(
            tf.nest.flatten(messages.dequantize_weights(w, representation))
            for w in (weights, received)
        ),
    ):
        np.testing.assert_array_equal(found, new - old)


# --- a real round -----------------------------------------------------------

# The model of conftest.py: 3x3x3x4 and 36x4 weights; BatchNorm's two and two times
# four, the bias's four.
LAYER_SIZES = (108, 144)
NUM_FLOAT_PARAMETERS = 4 * 4 + 4


def bits_by_hand(bit_widths, extra_header_bits) -> list[int]:
    """sum_l b_l M_l in whole bytes per layer; scales; headers; the float parameters."""
    codes = 8 * packed_bytes(bit_widths, LAYER_SIZES)
    headers = 8 * len(LAYER_SIZES) + extra_header_bits
    return [codes, 32 * len(LAYER_SIZES), headers, 32 * NUM_FLOAT_PARAMETERS]


def test_uplink_bits_of_a_round(recorded_round, problem):
    assert np.flatnonzero(recorded_round.metrics["participations"]).size == 3
    counted = recorded_round.metrics["uplink_bits"]
    for row, name in enumerate(problem.client_ids):
        if name in recorded_round.participants:
            sent = recorded_round.results[name].bit_widths
            weight = 32
            assert counted[row].tolist() == bits_by_hand(sent.tolist(), weight)
        else:
            assert counted[row].tolist() == [0, 0, 0, 0]


def test_downlink_bits_of_a_round(process, recorded_round, problem):
    table = device_bit_widths(process, recorded_round.before)
    counted = recorded_round.metrics["downlink_bits"]
    for row, name in enumerate(problem.client_ids):
        if name in recorded_round.participants:
            seed_and_rates = 64 + 64
            expected = bits_by_hand(table[row].tolist(), seed_and_rates)
            assert counted[row].tolist() == expected
        else:
            assert counted[row].tolist() == [0, 0, 0, 0]


def test_pruning_shortens_the_uplink(recorded_round):
    """Else the two tests above would not tell the two directions apart."""
    codes = [
        recorded_round.metrics[f"{way}_bits"][:, 0] for way in ("uplink", "downlink")
    ]
    assert (codes[0] <= codes[1]).all() and codes[0].sum() < codes[1].sum()


def test_the_messages_of_a_round_have_the_counted_bytes(recorded_round, problem):
    for name in recorded_round.participants:
        row = problem.client_ids.index(name)
        uplink = recorded_round.results[name].message
        downlink = recorded_round.messages[name]
        for message, way in ((uplink, "uplink_bits"), (downlink, "downlink_bits")):
            counted = recorded_round.metrics[way][row]
            assert 8 * message["codes"].nbytes == counted[0]
            assert 8 * message["scales"].nbytes == counted[1]
            assert (
                8 * sum(tensor.nbytes for tensor in message["float_parameters"])
                == counted[3]
            )
