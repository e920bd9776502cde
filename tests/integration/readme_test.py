"""The README's Python snippets run as they stand."""

import collections
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

_README = pathlib.Path(__file__).parents[2] / "README.md"
_SNIPPETS = re.findall(r"```python\n(.*?)```", _README.read_text(), re.DOTALL)


def _toy_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images whose mean brightness is their class: learnable in a few steps."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, count).astype(np.int32)
    noise = rng.normal(scale=0.1, size=[count, 8, 8, 1])
    return (noise + labels[:, None, None, None] / 5.0 - 1.0).astype(np.float32), labels


def test_readme_has_the_two_snippets():
    assert len(_SNIPPETS) == 2
    for snippet in _SNIPPETS:
        statements = [line for line in snippet.splitlines() if line.strip()]
        imports = [line for line in statements if line.startswith("import")]
        assert len(statements) - len(imports) <= 8


def test_quantized_layers_snippet(capsys):
    images, labels = _toy_images(256)
    names = {"images": images, "labels": labels}
    exec(_SNIPPETS[0], names)
    variables = names["quantized"].trainable_variables
    assert [v.dtype for v in variables] == [tf.uint8, tf.float32] * 2
    printed = capsys.readouterr().out
    assert "conv2d" in printed and "total" in printed


@pytest.mark.slow
def test_client_data_snippet(capsys):
    sizes = {"phone": 20, "tablet": 30, "laptop": 40}
    data = {}
    for client, size in sizes.items():
        images, labels = _toy_images(size)
        data[client] = collections.OrderedDict(x=images, y=labels)

    def model_fn() -> tf.keras.Model:
        inputs = tf.keras.Input((8, 8, 1))
        x = tf.keras.layers.Conv2D(4, 3, activation="relu")(inputs)
        outputs = tf.keras.layers.Dense(10)(tf.keras.layers.Flatten()(x))
        return tf.keras.Model(inputs, outputs)

    client_data = tff.simulation.datasets.TestClientData(data)
    exec(_SNIPPETS[1], {"client_data": client_data, "model_fn": model_fn})
    lines = capsys.readouterr().out.splitlines()
    assert sum("num_examples" in line for line in lines) == 3
