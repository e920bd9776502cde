"""Bytes on the wire against the bits that a budget allows, and against the entropy.

A client of bit-widths ``b_l`` over layers of ``M_l`` weights is owed
``sum(b_l M_l) / 8`` bytes. Compared with it are

* packed: what `federated.messages.pack_model` really makes of the weights: the codes
  (every layer begins at a byte boundary), a float scale and a bit-width per layer.
  BatchNorm and biases, the float parameters, travel beside it and are not counted;
* entropy: the empirical entropy of the codes, layer by layer, without what it costs to
  send the histograms: the limit of coders with one fixed model per layer.

Two groups of codes: *initial*, He-normal weights as a server first quantizes them, and
*trained*, what a client sends after some steps of FedMPQ's local training from there
(MSB pruning included, so that bit-widths may be below the budget). "mixed" is the
allocation that Algorithm 2 makes of the bit-widths that the trained clients sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import measure
from tff_fedmpq.allocation import prune_and_grow
from tff_fedmpq.federated import messages
from tff_fedmpq.federated.fedmpq import FedMPQConfig
from tff_fedmpq.federated.local_training import LocalTrainer
from tff_fedmpq.federated.messages import QuantizedWeights
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.keras.variables import ModelSpec
from tff_fedmpq.simulation import data as datasets
from tff_fedmpq.simulation.data.augmentation import random_crop_and_flip
from tff_fedmpq.simulation.models import MODEL_DEPTHS, build_model_fn

_BUDGETS = (2, 4, 6, 8)
_MIXED_BUDGET = 4


class Client:
    """What a server sends to a client, and the client back."""

    def __init__(self, scheme: Scheme, model_name: str, steps: int, seed: int):
        """Builds the models, and takes as many images as there are steps for."""
        dataset = datasets.load("cifar10", None)
        model_fn = build_model_fn(model_name, dataset, seed)
        float_model = model_fn()
        model = scheme.build_client_model(float_model)
        rng = np.random.default_rng(seed)
        count = steps * scheme.training.batch_size
        chosen = rng.permutation(len(dataset.train_labels))[:count]
        self.spec = ModelSpec.from_model(model)
        self._weights = self.spec.weights_of(scheme.build_global_model(float_model))
        self._quantization = scheme.weights
        self._images = tf.constant(dataset.train_images[chosen])
        self._labels = tf.constant(dataset.train_labels[chosen])
        self._seed = tf.constant([seed, 1])
        loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self._trainer = LocalTrainer(
            model,
            scheme.training,
            loss,
            pruning=scheme.pruning,
            augment=random_crop_and_flip,
        )

    def download(self, bit_widths: np.ndarray) -> QuantizedWeights:
        """Returns the initial weights at bit-widths int32[L]."""
        return messages.quantize_weights(
            self._weights,
            tf.constant(bit_widths, tf.int32),
            self._quantization.representation,
            self._quantization.scale_rule,
        )

    def upload(self, received: QuantizedWeights) -> QuantizedWeights:
        """Returns what local training makes of the weights received."""
        return self._trainer.train(received, self._images, self._labels, self._seed)[0]


def allocate(uploads: Mapping[int, QuantizedWeights], sizes: np.ndarray) -> np.ndarray:
    """Returns Algorithm 2's bit-widths at `_MIXED_BUDGET`, int32[L].

    Args:
      uploads: budget -> trained weights of a client; all have as many examples.
      sizes: int64[L], weights per layer.
    """
    sent = {v: weights.bit_widths.numpy() for v, weights in uploads.items()}
    mean = np.average(list(sent.values()), axis=0, weights=list(sent))
    reductions = _MIXED_BUDGET - sent[_MIXED_BUDGET]
    return prune_and_grow(mean, reductions, sizes, float(_MIXED_BUDGET))


def measure_message(
    group: str, allocation: str, weights: QuantizedWeights, spec: ModelSpec
) -> dict[str, Any]:
    """Returns a row of the table; checks that unpacking restores the codes."""
    message = messages.pack_model(weights)
    _check_equal(messages.unpack_model(message, spec).codes, weights.codes)
    owed = float(spec.layer_sizes @ weights.bit_widths.numpy()) / 8
    packed = len(message["codes"].numpy().tobytes())
    others = (message["scales"], message["bit_widths"])
    beside = sum(len(part.numpy().tobytes()) for part in others)
    layers = [codes.numpy().reshape(-1) for codes in weights.codes]
    entropy = sum(map(entropy_bytes, layers))
    return {
        "codes": group,
        "allocation": allocation,
        "mean_bit_width": 8 * owed / int(spec.layer_sizes.sum()),
        "owed_bytes": owed,
        "packed": packed + beside,
        "packed/owed": (packed + beside) / owed,
        "entropy_bytes": entropy,
        "packed/entropy": packed / entropy,
    }


def entropy_bytes(symbols: np.ndarray) -> float:
    """Returns the empirical entropy of all symbols together, in bytes."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-np.sum(counts * np.log2(counts / symbols.size))) / 8


def _check_equal(restored: Sequence[Any], codes: Sequence[Any]) -> None:
    for one, other in zip(restored, codes):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def main() -> None:
    """Runs the benchmark."""
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--model", default="resnet20", choices=list(MODEL_DEPTHS))
    parser.add_argument(
        "--steps", type=int, default=150, help="of training per allocation"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and training")
    args = parser.parse_args()
    before = measure.environment()
    client = Client(FedMPQConfig(epochs=1).compose(), args.model, args.steps, args.seed)
    sizes = client.spec.layer_sizes
    downloads = {v: client.download(np.full(len(sizes), v)) for v in _BUDGETS}
    uploads = {v: client.upload(weights) for v, weights in downloads.items()}
    mixed = allocate(uploads, sizes)
    downloads["mixed"] = client.download(mixed)
    uploads["mixed"] = client.upload(downloads["mixed"])
    rows = [
        measure_message(group, str(allocation), weights, client.spec)
        for group, sent in (("initial", downloads), ("trained", uploads))
        for allocation, weights in sent.items()
    ]
    packed = max(row["packed/owed"] for row in rows)
    bars = [measure.bar("packed bytes / bytes owed, worst row", packed, at_most=1.005)]
    details = {"layer_sizes": sizes.tolist(), "mixed_bit_widths": mixed.tolist()}
    measure.save("wire", rows, bars, before, output=args.output, **details)


if __name__ == "__main__":
    main()
