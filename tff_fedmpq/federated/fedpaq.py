"""FedPAQ: float training, updates of v_n bits per entry, stochastic and unbiased.

Reisizadeh et al., "FedPAQ: A Communication-Efficient Federated Learning Method with
Periodic Averaging and Quantization", AISTATS 2020, with QSGD's quantizer
(`quantization.stochastic_quantizer`): ``W <- W + sum_n p_n Q(W_n - W)``.

Deviations: client n has its own number of bits, as FedMPQ's comparison gives it; the
norm is the largest magnitude of a tensor by default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tff_fedmpq.federated import messages
from tff_fedmpq.federated.fedavg import float_scheme
from tff_fedmpq.federated.process import process_builder
from tff_fedmpq.federated.scheme import (
    AggregationWeight,
    Scheme,
    weigh_by_examples,
)
from tff_fedmpq.federated.update_uplink import UpdateUplink
from tff_fedmpq.federated.uplink import Message
from tff_fedmpq.lookup import lookup
from tff_fedmpq.quantization import packing, stochastic_quantizer


class ScalarUpdateUplink(UpdateUplink):
    """Sends updates of v_n bits per entry, and a norm per tensor.

    A fractional budget is rounded down to whole bits, of which there are at least 2.
    """

    def __init__(self, norm: str = "max"):
        self._norm = lookup(norm, stochastic_quantizer.NORMS, "norm")

    def encode_update(
        self, updates: Sequence[tf.Tensor], budget: tf.Tensor, seed: tf.Tensor
    ) -> Message:
        bits = tf.cast(tf.floor(budget), tf.int32)
        norms, packed = [], []
        for i, update in enumerate(updates):
            norm = self._norm(update)
            uniform = tf.random.stateless_uniform(
                update.shape, tf.random.fold_in(seed, i), alg="philox"
            )
            codes = stochastic_quantizer.quantize(update, norm, bits, uniform)
            packed.append(packing.pack(tf.reshape(codes, [-1]), bits))
            norms.append(norm)
        return {
            "bit_widths": tf.cast([bits], tf.uint8),
            "codes": tf.concat(packed, axis=0),
            "scales": tf.stack(norms),
        }

    def decode_update(
        self, message: Message, shapes: Sequence[tuple[int, ...]]
    ) -> list[tf.Tensor]:
        bits = tf.cast(message["bit_widths"][0], tf.int32)
        sizes = [tf.TensorShape(shape).num_elements() for shape in shapes]
        lengths = packing.packed_size(tf.constant(sizes), bits)
        parts = tf.split(message["codes"], lengths, num=len(sizes))
        updates = []
        for i, (part, size, shape) in enumerate(zip(parts, sizes, shapes)):
            codes = packing.unpack(part, bits, size)
            values = stochastic_quantizer.dequantize(codes, message["scales"][i], bits)
            updates.append(tf.reshape(values, shape))
        return updates

    def count_bits(
        self, message: Message, headers: Sequence[tf.Tensor] = ()
    ) -> tf.Tensor:
        return messages.count_model_bits(message, headers)


def fedpaq_scheme(
    *,
    norm: str = "max",
    aggregation_weight: str | AggregationWeight = weigh_by_examples,
    **training: Any,
) -> Scheme:
    """Returns FedPAQ as a `Scheme`.

    Args:
      norm: "max" or "l2", by which a tensor is scaled.
      aggregation_weight: p_n, before normalisation.
      **training: fields of `LocalTrainingConfig`.
    """
    uplink = ScalarUpdateUplink(norm)
    scheme = float_scheme("fedpaq", uplink, aggregation_weight, training)
    min_budget = float(stochastic_quantizer.MIN_UPDATE_BITS)
    return dataclasses.replace(scheme, min_budget=min_budget)


build_fedpaq = process_builder(fedpaq_scheme)
