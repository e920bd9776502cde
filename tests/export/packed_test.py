"""The packed file: bit for bit, its size, and files that are something else."""

from __future__ import annotations

import hashlib
import json
import lzma
import marshal
import struct

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.seeds import set_random_seed

from tff_fedmpq import export
from tff_fedmpq.export.packed import unpack_model
from tff_fedmpq.keras import (
    IntegerSGD,
    quantize_model,
    quantized_kernels,
    register_quantized_layer,
    resnet20,
)

layers, Input, Sequential = tf.keras.layers, tf.keras.Input, tf.keras.Sequential


def small_model(bit_width=3):
    set_random_seed(1)
    model = tf.keras.Sequential([Input([4]), layers.Dense(3, "relu", name="only")])
    return quantize_model(model, bit_width, 4)


def of_all_kinds():
    image = Input([8, 8, 3])
    x = layers.Conv2D(4, 3, activation="swish")(image)
    x = layers.BatchNormalization()(x)
    x = layers.SeparableConv2D(5, 2)(layers.LeakyReLU()(x))
    x = layers.Dropout(0.1)(layers.Reshape([5, -1])(x))
    x = layers.MultiHeadAttention(2, 3)(x, x)
    x = layers.Bidirectional(layers.LSTM(3))(x) * 2.0
    return tf.keras.Model(image, layers.Dense(2)(tf.concat([x, x], -1)))


def write(folder, model):
    path = folder / "model.fedmpq"
    return path, export.write_packed(model, path)


def bits_of(model):
    return [kernel.bit_width.numpy() for kernel in quantized_kernels(model)]


def assert_equal(model, loaded, x):
    for one, other in zip(model.weights, loaded.weights):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    np.testing.assert_array_equal(model(x), loaded(x))


@pytest.mark.parametrize("bit_width", range(1, 9))
def test_loads_bit_for_bit(tmp_path, bit_width):
    representation = ("sign_magnitude", "offset_binary")[bit_width % 2]
    model = quantize_model(
        small_model(None), bit_width, 4, representation=representation
    )
    path, _ = write(tmp_path, model)
    assert_equal(model, export.read_packed(path), tf.random.normal([5, 4]))


def test_loads_models_of_all_kinds_and_trains_them(tmp_path):
    model = quantize_model(of_all_kinds(), {"dense*": 8, "*": 3}, 4, per_channel=True)
    quantized_kernels(model)[0].set_bit_width(6)
    path, report = write(tmp_path, model)
    loaded = export.read_packed(path)
    x = tf.random.normal([4, 8, 8, 3])
    assert_equal(model, loaded, x)
    assert bits_of(loaded) == bits_of(model) and bits_of(loaded)[0] == 6
    # Op by op, which is quicker than tracing one step.
    loaded.compile(IntegerSGD(0.1), "mse", run_eagerly=True)
    loaded.fit(x, tf.ones([4, 2]), verbose=0)
    assert report.num_bytes == path.stat().st_size


def test_loads_sequential_models_in_others(tmp_path):
    inner = Sequential([Input([4]), layers.Dense(3), Sequential([layers.Dense(2)])])
    per_step = layers.TimeDistributed(inner)
    model = quantize_model(Sequential([Input([5, 4]), per_step, layers.Flatten()]), 3)
    for each in (model, tf.keras.models.clone_model(model)):
        path, _ = write(tmp_path, each)
        assert_equal(each, export.read_packed(path), tf.random.normal([2, 5, 4]))


@pytest.fixture(scope="module")
def resnet():
    return quantize_model(resnet20(), 8, 4, copy_weights=False)


@pytest.mark.parametrize("bit_width", [8, 3, 1])
def test_size_is_that_of_bits_and_floats(tmp_path, resnet, bit_width):
    model = resnet
    for kernel in quantized_kernels(model):
        kernel.set_bit_width(bit_width)
    path, report = write(tmp_path, model)
    codes = scales = floats = 0
    for variable in model.weights:
        kernel = getattr(variable, "quantized_kernel", None)
        if kernel is not None:
            codes += variable.shape.num_elements() * bit_width / 8
            scales += 4
        elif variable.dtype == tf.float32 and not variable.name.endswith("_scale:0"):
            floats += 4 * variable.shape.num_elements()
    assert report.code_bytes == codes and report.other_bytes == scales + floats
    assert path.stat().st_size <= 1.01 * (codes + scales + floats) + 4096


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path, _ = write(tmp_path_factory.mktemp("packed"), small_model())
    return path.read_bytes()


def signed(content):
    """The content with the checksum that belongs to it, from the layout."""
    content = bytearray(content)
    content[12:20] = struct.pack("<Q", len(content))
    digest = hashlib.sha256(content[:20] + content[52:]).digest()
    content[20:52] = digest
    return bytes(content)


def header_of(content):
    (size,) = struct.unpack_from("<I", content, 52)
    return json.loads(lzma.decompress(content[56 : 56 + size])), content[56 + size :]


def with_header(content, header):
    _, body = header_of(content)
    compressed = lzma.compress(json.dumps(header).encode())
    size = struct.pack("<I", len(compressed))
    return signed(content[:52] + size + compressed + body)


@pytest.mark.faults
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_is_a_typed_error(content, data):
    place = data.draw(st.integers(0, 8 * len(content) - 1))
    damaged = bytearray(content)
    damaged[place // 8] ^= 1 << place % 8
    with pytest.raises(export.PackedFileError, match="[0-9a-z]"):
        unpack_model(bytes(damaged))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_truncated_or_longer_file_is_a_typed_error(content, data):
    size = data.draw(st.integers(0, len(content) - 1))
    for damaged in content[:size], content + content[: size + 1]:
        with pytest.raises(export.DamagedFileError, match="bytes"):
            unpack_model(damaged)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_below_the_checksum_is_a_typed_error_or_a_whole_model(content, data):
    place = data.draw(st.integers(56, len(content) - 1))
    damaged = bytearray(content)
    damaged[place] ^= data.draw(st.integers(1, 255))
    try:
        model = unpack_model(signed(damaged))
    except export.PackedFileError:
        return
    assert [w.shape for w in model.weights] == [w.shape for w in small_model().weights]


@settings(max_examples=100, deadline=None)
@given(foreign=st.binary(max_size=200).filter(lambda b: b[:1] != b"\x89"))
def test_a_foreign_file_is_a_typed_error(foreign):
    with pytest.raises(export.PackedFileError):
        unpack_model(foreign)


def test_errors_name_what_was_found(content):
    with pytest.raises(export.ForeignFileError, match=r"begins with b'PK"):
        unpack_model(b"PK\x03\x04 a .keras file")
    with pytest.raises(export.FutureVersionError, match="version 7; .* up to 1"):
        unpack_model(signed(content[:8] + b"\x07\x00" + content[10:]))
    with pytest.raises(export.DamagedFileError, match=f"100 of {len(content)} bytes"):
        unpack_model(content[:100])
    with pytest.raises(export.DamagedFileError, match="checksum"):
        unpack_model(content[:-1] + b"\x00\x01"[content[-1] == 0 :][:1])


@pytest.mark.parametrize("change", ["bits", "shape", "dtype", "missing", "negative"])
def test_variables_that_do_not_fit_are_a_typed_error(content, change):
    header, _ = header_of(content)
    rows = header["variables"]
    if change == "missing":
        rows.pop()
    else:
        changes = {"bits": (0, 1, 2), "shape": (0, 2, [4, 2]), "dtype": (1, 0, "int32")}
        row, index, value = changes.get(change, (0, 2, [-4, -3]))
        rows[row][index] = value
    with pytest.raises(export.DamagedFileError):
        unpack_model(with_header(content, header))


def _layer(name, module="keras.layers", config=None, registered_name=None):
    return {
        "module": module,
        "class_name": name,
        "config": config or {},
        "registered_name": registered_name,
    }


_CODE = marshal.dumps(compile("print('executed')", "f", "exec")).hex()
_HOSTILE = {
    "lambda layer": _layer("Lambda", config={"function": [_CODE, None, None]}),
    "other lambda": {"class_name": "__lambda__", "config": {"value": _CODE}},
    "module": _layer("Popen", "subprocess", {"args": "true"}),
    "module of a class": _layer("Dense", "antigravity", registered_name="none"),
    "type": {
        "class_name": "__typespec__",
        "spec_name": "Popen",
        "module": "subprocess",
        "registered_name": None,
        "config": ["true"],
    },
    "operation": _layer("TFOpLambda", config={"function": "io.write_file"}),
    "raw operation": _layer("TFOpLambda", config={"function": "raw_ops.WriteFile"}),
    "function": _layer("function", "builtins", "exec", "function"),
    "function of Keras": _layer("function", "keras.utils", "get_file", "get_file"),
    "model of Keras": _layer("load_model", "keras.models", {"filepath": "x"}),
    "compiled": {**_layer("Dense"), "compile_config": {"optimizer": "adam"}},
}


@pytest.mark.faults
@pytest.mark.parametrize("kind", _HOSTILE)
def test_no_code_comes_from_a_file(content, kind, capsys):
    header, _ = header_of(content)
    inner = header["model"]["config"]["layers"][-1]["config"]
    inner["kernel_initializer"] = _HOSTILE[kind]
    with pytest.raises(export.UnsafeFileError):
        unpack_model(with_header(content, header))
    header["model"]["config"]["layers"].append(_HOSTILE[kind])
    with pytest.raises(export.UnsafeFileError):
        unpack_model(with_header(content, header))
    assert "executed" not in capsys.readouterr().out


@pytest.mark.faults
def test_a_compressed_header_cannot_fill_the_memory(content):
    bomb = lzma.compress(b" " * 2**27)
    size = struct.pack("<I", len(bomb))
    with pytest.raises(export.DamagedFileError, match="too large"):
        unpack_model(signed(content[:52] + size + bomb))


@pytest.mark.faults
@pytest.mark.parametrize("units", [10**6, 10**9])
def test_a_small_file_builds_no_large_model(content, units):
    header, _ = header_of(content)
    header["model"]["config"]["layers"][-1]["config"]["units"] = units
    with pytest.raises(export.DamagedFileError, match="more than 16 weights"):
        unpack_model(with_header(content, header))


@pytest.mark.faults
def test_a_file_names_no_other_file(content):
    header, _ = header_of(content)
    config = {"vocabulary": "/dev/zero"}
    header["model"]["config"]["layers"].append(_layer("StringLookup", config=config))
    with pytest.raises(export.UnsafeFileError, match="vocabulary"):
        unpack_model(with_header(content, header))


def test_models_that_cannot_be_packed_are_refused(tmp_path):
    with pytest.raises(TypeError, match="Sequential or functional"):
        export.write_packed(tf.keras.Model(), tmp_path / "model")
    model = tf.keras.Sequential([Input([4]), layers.Lambda(lambda x: 2 * x)])
    with pytest.raises(ValueError, match="Lambda"):
        export.write_packed(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


@tf.keras.utils.register_keras_serializable("tests")
class Scaled(tf.keras.layers.Layer):
    """A layer of a user."""

    def build(self, shape):
        self.factors = self.add_weight("factors", [shape[-1]], initializer="normal")
        super().build(shape)

    def call(self, x):
        return x * self.factors


def test_registered_layers_are_loaded(tmp_path):
    register_quantized_layer(Scaled, "factors")
    set_random_seed(1)
    model = quantize_model(tf.keras.Sequential([Input([4]), Scaled()]), 2)
    path, _ = write(tmp_path, model)
    assert_equal(model, export.read_packed(path), tf.random.normal([5, 4]))
