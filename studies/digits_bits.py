"""Digits at 8, 4, 3 and 2 bits, before and after fine-tuning, beside tfmot and QKeras.

    pip install --no-deps qkeras==0.9.0 networkx==2.8.8 pyparser==1.0 parse==1.22.4
    python -m studies.digits_bits

A CNN of 123k weights is trained in float, three seeds; each is quantized, evaluated,
fine-tuned for 4 epochs and evaluated again. Beside it: tfmot's default training for
quantization at 8 bits, tfmot at our bits and levels (`export.tfmot`), and QKeras with
its `quantized_bits` at the same bits. Activations are float, but for tfmot's 8 bits.
Results go to `studies/results/digits_bits.json`, and a table to `docs/keras_models.md`;
seeds that have results are not run again.
"""

from __future__ import annotations

import json
import pathlib
import statistics
from typing import Any

import tensorflow as tf
import tensorflow_model_optimization as tfmot

import tff_fedmpq
from studies import pages
from tff_fedmpq.export import tfmot as bridge
from tff_fedmpq.simulation import provenance
from tff_fedmpq.simulation.data import load_digits

layers = tf.keras.layers
_ROOT = pathlib.Path(__file__).parents[1]
RESULT = _ROOT / "studies" / "results" / "digits_bits.json"
PAGE = _ROOT / "docs" / "keras_models.md"
_SEEDS, _EPOCHS, _TUNING = (0, 1, 2), 10, 4
_BITS = (8, 4, 3, 2)


def _model() -> tf.keras.Model:
    return tf.keras.Sequential(
        [
            tf.keras.Input([8, 8, 1]),
            layers.Conv2D(32, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(64, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(45, "relu"),
            layers.Dense(10),
        ]
    )


def _qkeras_model(model: tf.keras.Model, bits: int) -> tf.keras.Model:
    """Returns a copy whose kernels are quantized by QKeras."""
    import qkeras  # Not among the dependencies.

    forms = {layers.Conv2D: qkeras.QConv2D, layers.Dense: qkeras.QDense}

    def convert(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        config = layer.get_config()
        if type(layer) not in forms:
            return type(layer).from_config(config)
        # A scale per channel, which follows the weights.
        quantizer = qkeras.quantized_bits(bits, 0, 1, alpha="auto")
        config["kernel_quantizer"] = quantizer
        return forms[type(layer)](**config)

    copy = tf.keras.models.clone_model(model, clone_function=convert)
    copy.set_weights(model.get_weights())
    return copy


class Study:
    """One seed: a float model, and what becomes of it."""

    def __init__(self, seed: int):
        self._digits = load_digits()
        self._seed = seed
        tf.keras.utils.set_random_seed(seed)
        self._float = _model()
        self._train(self._float, "adam", _EPOCHS)

    def rows(self) -> list[dict[str, Any]]:
        """Returns accuracies by method and bits, before and after fine-tuning."""
        stock = tfmot.quantization.keras
        rows = [self._row("float", 32, self._float, None)]
        for bits in _BITS:
            model = tff_fedmpq.quantize_model(self._float, bits)
            optimizer = tff_fedmpq.IntegerSGD(0.01)
            rows.append(self._row("integer codes", bits, model, optimizer))
        for bits in _BITS:
            annotated = stock.quantize_annotate_model(self._float)
            scheme = bridge.BitsQuantizeScheme(bit_width=bits)
            model = stock.quantize_apply(annotated, scheme)
            rows.append(self._row("tfmot, our levels", bits, model, "adam"))
        model = stock.quantize_model(self._float)
        rows.append(self._row("tfmot", 8, model, "adam"))
        for bits in _BITS:
            model = _qkeras_model(self._float, bits)
            rows.append(self._row("QKeras", bits, model, "adam"))
        return rows

    def _row(
        self, method: str, bits: int, model: Any, optimizer: Any
    ) -> dict[str, Any]:
        row = {"seed": self._seed, "method": method, "bits": bits}
        row["before"] = self._accuracy(model)
        if optimizer is not None:
            tf.keras.utils.set_random_seed(self._seed)
            self._train(model, optimizer, _TUNING)
            row["after"] = self._accuracy(model)
        return row

    def _train(self, model: tf.keras.Model, optimizer: Any, epochs: int) -> None:
        loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss)
        images, labels = self._digits.train_images / 255.0, self._digits.train_labels
        model.fit(images, labels, epochs=epochs, verbose=0)

    def _accuracy(self, model: tf.keras.Model) -> float:
        logits = model.predict(self._digits.test_images / 255.0, verbose=0)
        return float((logits.argmax(1) == self._digits.test_labels).mean())


def table(rows: list[dict[str, Any]]) -> str:
    """Returns means over seeds, and ranges, in Markdown."""
    lines = ["| method | bits | before, % | after, % |", "|---|---|---|---|"]
    for method, bits in dict.fromkeys((row["method"], row["bits"]) for row in rows):
        cell = [r for r in rows if (r["method"], r["bits"]) == (method, bits)]
        found = (
            [100 * r[key] for r in cell if key in r] for key in ("before", "after")
        )
        texts = (
            f"{statistics.mean(x):.1f} ({min(x):.1f} to {max(x):.1f})" if x else ""
            for x in found
        )
        lines.append(f"| {method} | {bits} | {' | '.join(texts)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the study, and writes results and table."""
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": []}
    for seed in sorted(set(_SEEDS) - {row["seed"] for row in result["rows"]}):
        result["rows"] += Study(seed).rows()
        result.update(provenance.describe())
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    pages.put(PAGE, "digits", table(result["rows"]))


if __name__ == "__main__":
    main()
