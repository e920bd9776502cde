"""Files for LiteRT and TFLite Micro, run in these runtimes.

Their environment is made, and these tests are run, by `bash .ci/export FOLDER`.
"""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from oracles.seeds import set_random_seed

from tff_fedmpq import export
from tff_fedmpq.export import device
from tff_fedmpq.keras import quantize_model, quantized_kernels

layers, Input = tf.keras.layers, tf.keras.Input


def _python():
    try:
        return device.find_python()
    except export.ExportError:
        return None


needs_runtimes = pytest.mark.skipif(
    _python() is None, reason="no environment with LiteRT and TFLite Micro"
)
WRITERS = {"litert": export.write_litert, "micro": export.write_tflite_micro}

# Prints (type, bytes) of all constants, and names of operations, as JSON.
_LIST = """
import json, sys
from tflite_micro.tensorflow.lite.micro.compression import model_editor
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema
names = {v: k for k, v in vars(schema.TensorType).items()}
model = model_editor.read(open(sys.argv[1], "rb").read())
rows = [
    (names[t.dtype], len(t.buffer.data))
    for s in model.subgraphs for t in s.tensors if t.buffer is not None
]
operations = [o.opcode_name for s in model.subgraphs for o in s.operators]
print(json.dumps([rows, operations]))
"""


def contents(path):
    done = subprocess.run(
        [str(_python()), "-c", _LIST, str(path)], capture_output=True, check=True
    )
    return json.loads(done.stdout)


def with_statistics(model):
    """The model with BatchNorm as after training, of negative factors too."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if "gamma" in variable.name:
            variable.assign(rng.uniform(-2, 2, variable.shape))
        elif "moving" in variable.name:
            variable.assign(rng.uniform(0.5, 2, variable.shape))
        elif "bias" in variable.name or "beta" in variable.name:
            variable.assign(rng.normal(size=variable.shape))
    return model


def convolutional():
    set_random_seed(3)
    image = Input([8, 8, 3])
    x = layers.Conv2D(6, 3, use_bias=False, name="first")(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = layers.Conv2DTranspose(5, 2, name="transposed", activation="relu")(x)
    x = layers.Flatten()(x)
    return with_statistics(tf.keras.Model(image, layers.Dense(4, name="last")(x)))


def examples(model, count=5):
    shapes = [(count, *tensor.shape[1:]) for tensor in model.inputs]
    rng = np.random.default_rng(1)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@needs_runtimes
@pytest.mark.parametrize(
    ("bit_width", "representation"),
    [
        (1, "sign_magnitude"),
        (2, "offset_binary"),
        (3, "sign_magnitude"),
        (4, "sign_magnitude"),
        (4, "offset_binary"),
        (7, "sign_magnitude"),
        (8, "sign_magnitude"),
        (8, "offset_binary"),
    ],
)
@pytest.mark.parametrize("target", WRITERS)
def test_device_computes_what_keras_does(tmp_path, target, bit_width, representation):
    model = quantize_model(
        convolutional(), bit_width, representation=representation, per_channel=None
    )
    path = tmp_path / "model.tflite"
    report = WRITERS[target](model, path, examples(model), tolerance=1e-5)
    assert report.float_kernels == ()
    assert report.num_bytes == path.stat().st_size
    rows, operations = contents(path)
    sizes = sorted(size for _, size in rows)
    for kernel in quantized_kernels(model):
        if target == "micro":
            expected = -(-kernel.size * bit_width // 8)
        else:
            expected = -(-kernel.size // 2) if bit_width <= 4 else kernel.size
        assert expected in sizes
    kinds = {kind for kind, _ in rows}
    assert "INT2" not in kinds
    assert ("INT4" in kinds) == (target == "litert" and bit_width <= 4)
    assert ("TFLM_DECODE" in operations) == (target == "micro" and bit_width < 8)


@needs_runtimes
@pytest.mark.parametrize("target", WRITERS)
def test_activations_of_four_bits_are_exact(tmp_path, target):
    """No output differs by as much as one level of an activation would change it."""
    model = quantize_model(convolutional(), {"first": 2, "*": 4}, 4)
    path = tmp_path / "model.tflite"
    report = WRITERS[target](model, path, examples(model, 20))
    outputs = model.predict(examples(model, 20), verbose=0)
    assert report.typical_difference < 1e-5 * np.abs(outputs).max()
    assert "QUANTIZE" in contents(path)[1]


@needs_runtimes
def test_recurrent_and_other_models_on_litert(tmp_path):
    set_random_seed(3)
    words = Input([6], dtype="int32", name="words")
    numbers = Input([6, 3], name="numbers")
    x = layers.Embedding(9, 5)(words)
    x = layers.Concatenate()([x, layers.Conv1D(4, 3, padding="same")(numbers)])
    attended = layers.MultiHeadAttention(2, 3)(x, x)
    recurrent = layers.LSTM(4)(attended)  # A loop.
    outputs = [layers.Dense(2)(recurrent), layers.GRU(3, unroll=True)(x)]
    model = quantize_model(tf.keras.Model([words, numbers], outputs), 3)
    inputs = [np.arange(24).reshape(4, 6) % 9, *examples(model, 4)[1:]]
    inputs[0] = inputs[0].astype(np.int32)
    path = tmp_path / "model.tflite"
    report = export.write_litert(model, path, inputs, tolerance=1e-5)
    assert report.float_kernels == ()
    assert report.largest_difference < 1e-5


@needs_runtimes
@pytest.mark.parametrize("target", WRITERS)
def test_another_result_fails_and_leaves_no_file(tmp_path, target, monkeypatch):
    model = quantize_model(convolutional(), 4)
    path = tmp_path / "model.tflite"
    original = device._float_file

    def of_other_weights(model):
        other = tf.keras.models.clone_model(model)
        other.set_weights(model.get_weights())
        other.layers[-1].bias.assign_add([0.1, 0, 0, 0])
        return original(other)

    monkeypatch.setattr(device, "_float_file", of_other_weights)
    with pytest.raises(export.ExportError, match="differs by 1.00e-01"):
        WRITERS[target](model, path, examples(model))
    assert not path.exists()


def test_without_the_runtimes_the_error_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.delenv(device.PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(device, "DEFAULT_ENVIRONMENT", tmp_path)
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    model = quantize_model(convolutional(), 4)
    with pytest.raises(export.ExportError, match="uv venv .* ai-edge-litert=="):
        export.write_litert(model, tmp_path / "model.tflite", examples(model))


def test_nan_is_a_difference(monkeypatch):
    model = tf.keras.Sequential([Input([2]), layers.Dense(1)])
    inputs = [np.ones([3, 2], np.float32)]
    outputs = [np.full([3, 1], np.nan, np.float32)]
    with pytest.raises(export.ExportError, match="inf"):
        device._compare(model, inputs, outputs, 1.0)
