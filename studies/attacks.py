"""Clients that attack, for the study of robustness; no part of the package.

One client, that of the largest budget and hence of the largest weight, attacks in every
round. Its message is altered where the client makes it, and passes the server's checks:

    sign_flipped    -10 times the change that training made
    scaled          100 times the change
    label_flipped   trains honestly, on labels of which class k became C - 1 - k

A quantized kernel can move only within the range of its codes, at a scale of at most
twice the one received; the attacker takes both. Tensors that were not negative, such
as variances, stay so. A larger lie would be left out, and so be no attack.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal
from unittest import mock

import numpy as np
import tensorflow as tf

from tff_fedmpq.federated import acceptance
from tff_fedmpq.federated.fedmpq import FedMPQConfig
from tff_fedmpq.federated.messages import (
    Message,
    ModelChangeUplink,
    QuantizedWeights,
    dequantize_weights,
)

ATTACKER_BUDGET = 8.0
FACTORS = {"sign_flipped": -10.0, "scaled": 100.0}


@dataclasses.dataclass(frozen=True)
class AttackedFedMPQConfig(FedMPQConfig):
    """FedMPQ in which the client of 8 bits attacks.

    Attributes:
      attack: "none", "sign_flipped", "scaled" or "label_flipped".
    """

    attack: Literal["none", "sign_flipped", "scaled", "label_flipped"] = "none"

    def compose(self) -> Any:
        """Returns FedMPQ with an uplink that forges the attacker's message."""
        scheme = super().compose()
        if self.attack not in FACTORS:
            return scheme
        uplink = ForgingUplink(scheme.weights.representation, FACTORS[self.attack])
        return dataclasses.replace(scheme, uplink=uplink)

    @contextlib.contextmanager
    def around_run(self, experiment: Any, config: Any) -> Iterator[None]:
        """Gives the attacker files of wrong labels while `studies/run.py` runs this.

        `experiment` is the module that runs, whose writing of files is replaced.
        """
        write = experiment.build_client_data

        def write_flipped(directory, dataset, partition, **options):
            labels = np.array(dataset.train_labels)
            for indices, budget in zip(partition.client_indices, config.budgets):
                if budget >= ATTACKER_BUDGET:
                    labels[indices] = dataset.num_classes - 1 - labels[indices]
            altered = dataclasses.replace(dataset, train_labels=labels)
            return write(directory, altered, partition, **options)

        is_flipped = self.attack == "label_flipped"
        with mock.patch.object(
            experiment, "build_client_data", write_flipped if is_flipped else write
        ):
            yield


class ForgingUplink(ModelChangeUplink):
    """Multiplies the attacker's change by a factor before it is encoded."""

    def __init__(self, representation: Any, factor: float):
        super().__init__(representation)
        self._factor = factor

    def encode(self, trained, received, budget, seed) -> Message:
        forged = self._forge(trained, received)
        sent = tf.nest.map_structure(
            lambda lie, truth: tf.where(budget >= ATTACKER_BUDGET, lie, truth),
            forged,
            trained,
        )
        return super().encode(sent, received, budget, seed)

    def _forge(
        self, trained: QuantizedWeights, received: QuantizedWeights
    ) -> QuantizedWeights:
        rule = self._representation
        before, after = (dequantize_weights(w, rule) for w in (received, trained))
        wanted = tf.nest.map_structure(
            lambda old, new: old + self._factor * (new - old), before, after
        )
        at_most = acceptance.MAX_SCALE_RATIO * received.scales
        sizes = tf.stack([2 * tf.reduce_max(tf.abs(k)) for k in wanted.kernels])
        scales = tf.clip_by_value(sizes, received.scales, at_most)
        codes = tuple(
            rule.quantize(kernel, scales[i], trained.bit_widths[i])
            for i, kernel in enumerate(wanted.kernels)
        )
        parts = zip(
            wanted.float_parameters, before.float_parameters, after.float_parameters
        )
        others = tuple(
            tf.where(tf.reduce_min([old, new]) >= 0, tf.maximum(lie, 0), lie)
            for lie, old, new in parts
        )
        return trained._replace(codes=codes, scales=scales, float_parameters=others)
