"""Models of Keras, quantized: how much of them, how near, and whether they train.

    python -m studies.keras_models

Six networks of `keras.applications`, a 2-layer LSTM and a small transformer, all with
random weights (nothing is downloaded). Each is quantized to 8 bits, makes one training
step, is saved, loaded and trained on, in a process of its own; its row goes to
`studies/results/keras_models/`, and all rows to `docs/keras_models.md`. Models that
have a row are not run again. With a model's name, only that one is, in this process.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, Callable

import numpy as np
import tensorflow as tf

import tff_fedmpq
from studies import pages
from tff_fedmpq.simulation import provenance

layers = tf.keras.layers
_ROOT = pathlib.Path(__file__).parents[1]
RESULTS = _ROOT / "studies" / "results" / "keras_models"
PAGE = _ROOT / "docs" / "keras_models.md"
_PIXELS, _CLASSES, _WORDS, _VOCABULARY, _EXAMPLES = 64, 10, 40, 1000, 8


def _application(name: str) -> Callable[[], tf.keras.Model]:
    def build() -> tf.keras.Model:
        return getattr(tf.keras.applications, name)(
            weights=None,
            input_shape=(_PIXELS, _PIXELS, 3),
            classes=_CLASSES,
            classifier_activation=None,
        )

    return build


def _lstm() -> tf.keras.Model:
    return tf.keras.Sequential(
        [
            tf.keras.Input([_WORDS], dtype="int32"),
            layers.Embedding(_VOCABULARY, 64),
            layers.LSTM(64, return_sequences=True),
            layers.LSTM(64),
            layers.Dense(_CLASSES),
        ]
    )


def _transformer() -> tf.keras.Model:
    words = tf.keras.Input([_WORDS], dtype="int32")
    x = layers.Embedding(_VOCABULARY, 64)(words)
    for _ in range(2):
        attended = layers.MultiHeadAttention(4, 16)(x, x)
        x = layers.LayerNormalization()(x + attended)
        hidden = layers.Dense(64)(layers.Dense(128, "gelu")(x))
        x = layers.LayerNormalization()(x + hidden)
    x = layers.GlobalAveragePooling1D()(x)
    return tf.keras.Model(words, layers.Dense(_CLASSES)(x))


_APPLICATIONS = (
    "MobileNetV2",
    "MobileNetV3Small",
    "EfficientNetB0",
    "ResNet50V2",
    "DenseNet121",
    "NASNetMobile",
)
MODELS: dict[str, Callable[[], tf.keras.Model]] = {
    **{name: _application(name) for name in _APPLICATIONS},
    "lstm": _lstm,
    "transformer": _transformer,
}


def measure(name: str) -> dict[str, Any]:
    """Quantizes a model and returns what was found."""
    tf.keras.utils.set_random_seed(0)
    model = MODELS[name]()
    x, y = _examples(model)
    quantized = tff_fedmpq.quantize_model(model, 8)
    kernels = tff_fedmpq.quantized_kernels(quantized)
    nearest = tff_fedmpq.quantize_model(model, 8, scale_rule="least_squares")
    expected, found, least = (
        each(x, training=False).numpy() for each in (model, quantized, nearest)
    )
    before = [kernel.codes.numpy() for kernel in kernels]
    loss = _step(quantized, x, y)
    moved = [np.any(k.codes.numpy() != old) for k, old in zip(kernels, before)]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        quantized.save(path)
        loaded = tf.keras.models.load_model(path)
    outputs = [each(x, training=False).numpy() for each in (quantized, loaded)]
    loaded.run_eagerly = True  # Nobody waits for another graph.
    loaded_loss = float(loaded.fit(x, y, verbose=0).history["loss"][0])
    pairs = zip(kernels, tff_fedmpq.quantized_kernels(loaded))
    summary = tff_fedmpq.summary(quantized)
    return {
        "name": name,
        "weights": model.count_params(),
        "quantized_share": sum(kernel.size for kernel in kernels)
        / model.count_params(),
        "compression": summary.compression,
        "relative_error": _relative_errors(found, expected),
        "relative_error_of_least_squares": _relative_errors(least, expected),
        "equal_labels": int((found.argmax(1) == expected.argmax(1)).sum()),
        "kernels": len(kernels),
        "kernels_moved": sum(map(int, moved)),
        "losses": [loss, loaded_loss],
        "loaded_is_equal": bool(np.array_equal(*outputs)),
        "kernels_moved_after_loading": sum(
            bool(np.any(one.codes.numpy() != other.codes.numpy()))
            for one, other in pairs
        ),
        "float_layers": [
            f"{row.name} ({row.remark})"
            for row in quantized.quantization_report.layers
            if row.num_weights and row.bit_width is None and row.remark != "few weights"
        ],
        **provenance.describe(),
    }


def _examples(model: tf.keras.Model) -> tuple[np.ndarray, np.ndarray]:
    """Returns random inputs of a model, and labels."""
    rng = np.random.default_rng(0)
    shape = (_EXAMPLES, *model.input_shape[1:])
    labels = rng.integers(0, _CLASSES, _EXAMPLES)
    if len(shape) == 2:
        return rng.integers(0, _VOCABULARY, shape, np.int32), labels
    # Pixels of EfficientNet and MobileNetV3, which scale them; the others normalize.
    return rng.uniform(0, 255, shape).astype(np.float32), labels


def _relative_errors(found: np.ndarray, expected: np.ndarray) -> list[float]:
    """Returns the relative error of outputs, and of their contrasts."""
    contrasts = found - found.mean(0), expected - expected.mean(0)
    return [
        float(np.linalg.norm(one - other) / np.linalg.norm(other))
        for one, other in ((found, expected), contrasts)
    ]


def _step(model: tf.keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tff_fedmpq.IntegerSGD(0.1), loss)
    return float(model.fit(x, y, verbose=0).history["loss"][0])


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows in Markdown."""
    lines = [
        "| model | weights | quantized | smaller | error: outputs | contrasts | "
        "least squares: outputs | contrasts | "
        "equal labels | kernels that moved | loaded: outputs | kernels that moved |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row["name"],
            f"{row['weights']:,}",
            f"{100 * row['quantized_share']:.1f} %",
            f"{row['compression']:.1f} times",
            *(
                f"{100 * error:.1f} %"
                for name in ("relative_error", "relative_error_of_least_squares")
                for error in row[name]
            ),
            f"{row['equal_labels']} of {_EXAMPLES}",
            f"{row['kernels_moved']} of {row['kernels']}",
            "equal" if row["loaded_is_equal"] else "differ",
            f"{row['kernels_moved_after_loading']} of {row['kernels']}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def read_rows() -> list[dict[str, Any]]:
    """Returns the rows of all models that were measured."""
    paths = (RESULTS / f"{name}.json" for name in MODELS)
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def main(names: list[str]) -> None:
    """Measures a model that is named, or each without a row; writes the page."""
    for name in names:
        RESULTS.mkdir(parents=True, exist_ok=True)
        text = json.dumps(measure(name), indent=1)
        (RESULTS / f"{name}.json").write_text(f"{text}\n")
    missing = [name for name in MODELS if not (RESULTS / f"{name}.json").exists()]
    for name in missing if not names else []:
        command = [sys.executable, "-m", "studies.keras_models", name]
        subprocess.run(command, check=True, cwd=_ROOT)
    pages.put(PAGE, "models", table(read_rows()))


if __name__ == "__main__":
    main(sys.argv[1:])
