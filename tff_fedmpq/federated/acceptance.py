"""Whether a client's contribution counts: pure functions, run before it is decoded.

    message_for  model, seed, rates, ticket                        (server -> client)
    client work  result, its checksum bound to the ticket's seed   (client -> server)
    accumulate   ticket genuine, checksum right, content within bounds  ->  added
                 otherwise                  ->  left out, counted, its reason named

TFF's aggregation sees sums and client results, not the server's state. What the server
has to know of what it sent is therefore in a `Ticket`, with a tag that only the server
can compute (SipHash under a secret that no client is sent). A server with a memory per
client would keep tickets instead; neither they nor the checksum, 8 bytes in place of
the transport's, are counted in a message's bits.

A lying client can send wrong values within the bounds below, or nothing. It cannot take
another client's row, send a message of an earlier round, change its own budget or
bit-widths, lie about the model that it received, or weigh more than
`config.max_examples`. Against wrong values within bounds only robust aggregation helps.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

# A returned scale over the one sent. Training keeps scales, pruning 7 of 8 bits leaves
# 1/255 of them.
MIN_SCALE_RATIO, MAX_SCALE_RATIO = 1 / 256, 2.0
# Largest magnitudes over that of the model sent, or over 1. Statistics begin at 0 and 1
# and move to those of the data in one round.
MAX_WEIGHT_RATIO, MAX_STATISTICS_RATIO = 100.0, 1e6
_ROUNDING = 1e-6  # Of a variance that is sent as a change.
RECEIVED = "received"  # Key of the model that a client received, in its message.
_PUBLIC_KEY = (0, 0)
_NUM_FINGERPRINTS = 2**63 - 1

Check = tuple[Callable[[], tf.Tensor], "Rejection"]


class Rejection(enum.IntEnum):
    """Why a contribution was left out; `REASONS` says it in words."""

    TICKET = 1
    ROUND = 2
    CHECKSUM = 3
    LABELS = 4
    IMAGES = 5
    SHAPES = 6
    NOT_FINITE = 7
    BIT_WIDTHS = 8
    LENGTH = 9
    SCALES = 10
    WEIGHT = 11
    RECEIVED = 13
    MAGNITUDE = 14
    VARIANCE = 15
    SYMBOLS = 16
    EXAMPLES = 17
    DATASET = 18
    TIME = 19
    DROPOUT = 20
    NO_EXAMPLES = 21


REASONS = {
    Rejection.TICKET: "it answers no message of this server",
    Rejection.ROUND: "it answers a message of another round",
    Rejection.CHECKSUM: "its checksum is wrong",
    Rejection.LABELS: "its examples have labels out of range",
    Rejection.IMAGES: "its examples hold values that are not finite",
    Rejection.SHAPES: "its tensors have other shapes than the model's",
    Rejection.NOT_FINITE: "it holds values that are not finite",
    Rejection.BIT_WIDTHS: "its bit-widths are not within those it was given",
    Rejection.LENGTH: "its codes are not as many bytes as they should be",
    Rejection.SCALES: "its scales are out of bounds",
    Rejection.WEIGHT: "its weight is not that of its budget and allowed examples",
    Rejection.RECEIVED: "it says that it received another model",
    Rejection.MAGNITUDE: "its weights or statistics are out of bounds",
    Rejection.VARIANCE: "its variances are negative",
    Rejection.SYMBOLS: "its symbols are out of range",
    Rejection.EXAMPLES: "it has more examples than `max_examples`",
    Rejection.DATASET: "its dataset raises an error",
    Rejection.TIME: "it took longer than `client_timeout_seconds`",
    Rejection.DROPOUT: "it dropped out",
    Rejection.NO_EXAMPLES: "it has no examples",
}
# What clients report of themselves; the others are found by the server.
OF_CLIENTS = (
    Rejection.DROPOUT,
    Rejection.TIME,
    Rejection.EXAMPLES,
    Rejection.LABELS,
    Rejection.IMAGES,
)
# What training with too large a rate leads to.
OF_DIVERGENCE = {REASONS[r] for r in (Rejection.NOT_FINITE, Rejection.MAGNITUDE)}


def describe(rejected: Sequence[int], client_ids: Sequence[str]) -> dict[str, str]:
    """Returns why clients were left out, from a round's measurement of that name."""
    pairs = zip(client_ids, rejected)
    return {client: REASONS[Rejection(code)] for client, code in pairs if code}


class Ticket(NamedTuple):
    """What the server knows of a message that it sent."""

    key: Any  # The client's row in tables, int32[].
    round: Any  # Int32[].
    seed: Any  # Of the client's training, int32[2].
    bit_widths: Any  # Sent to the client, uint8[L].
    scales: Any  # Sent, float32[L].
    magnitude: Any  # Largest magnitude of scales and float parameters, float32[].
    variances: Any  # Those of the statistics sent, float32[V].
    downlink_bits: Any  # Size of the message, int64[4] by `messages.BIT_ITEMS`.
    model: Any  # Keyed fingerprint of the model sent, int64[].
    tag: Any  # Keyed fingerprint of all fields above, int64[].


def fingerprint(tensors: Any, key: Sequence[int] = _PUBLIC_KEY) -> tf.Tensor:
    """Returns 63 bits of SipHash over values, types and shapes, int64[]."""

    def digest(strings: tf.Tensor) -> tf.Tensor:
        return tf.strings.to_hash_bucket_strong(strings, _NUM_FINGERPRINTS, list(key))

    flat = list(map(tf.convert_to_tensor, tf.nest.flatten(tensors)))
    parts = [_shapes_of(flat), *joined(flat)]
    strings = tf.stack(list(map(tf.io.serialize_tensor, parts)))
    return digest(tf.io.serialize_tensor(digest(strings)))


def _shapes_of(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns all ranks and then all sizes of axes, int32[...]."""
    ranks = [t.shape.rank for t in tensors]
    if all(t.shape.is_fully_defined() for t in tensors):
        return tf.constant(sum((t.shape.as_list() for t in tensors), ranks), tf.int32)
    return tf.concat([ranks, *map(tf.shape, tensors)], 0)


def sign(ticket: Ticket, secret: Sequence[int]) -> Ticket:
    """Returns the ticket with its tag."""
    return ticket._replace(tag=fingerprint(ticket[:-1], secret))


def checksum(result: Any, seed: tf.Tensor) -> tf.Tensor:
    """Returns the checksum of a `ClientResult` for the seed that it was sent.

    The model that was received has its own, `Ticket.model`.
    """
    message = {k: v for k, v in result.message.items() if k != RECEIVED}
    return fingerprint([seed, *result._replace(message=message, checksum=())])


def usable_examples(
    features: Any,
    labels: Any,
    num_classes: int | None,
    at_most: int,
    earlier: Sequence[Check] = (),
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the `Rejection` of a client's examples or 0, int32[], and their number.

    `num_classes` is None for labels that are no class numbers; `earlier` checks come
    first. Examples with a fault are not to be trained on: their number is 0, int32[].
    """
    count = tf.shape(tf.nest.flatten(features)[0])[0]
    checks: list[Check] = [*earlier, (lambda: count <= at_most, Rejection.EXAMPLES)]
    if num_classes is not None:
        in_range = (labels >= 0) & (labels < tf.cast(num_classes, labels.dtype))
        checks += [(lambda: tf.reduce_all(in_range), Rejection.LABELS)]
    checks += [(lambda: all_finite([features]), Rejection.IMAGES)]
    fault = first_fault(checks)
    return fault, tf.where(fault > 0, 0, count)


def first_fault(checks: Sequence[Check]) -> tf.Tensor:
    """Returns the reason of the first check that fails, or 0; int32[].

    A check may rely on shapes that were checked before: it does not run after that has
    failed. Shapes that are known when a graph is built cost it nothing.
    """
    holding, reasons, rest = [], [], list(checks)
    while rest:
        holds, reason = rest.pop(0)
        value = holds()
        known = tf.get_static_value(value)
        if known:
            continue
        holding.append(value)
        reasons.append(int(reason))
        if known is not None:
            rest = []  # It fails.
        elif reason == Rejection.SHAPES:
            break
    if not holding:
        return tf.constant(0)
    places = tf.where(tf.stack(holding), len(reasons), tf.range(len(reasons)))
    fault = tf.gather([*reasons, 0], tf.reduce_min(places))
    if not rest:
        return fault
    return tf.cond(tf.equal(fault, 0), lambda: first_fault(rest), lambda: fault)


def all_finite(tensors: Any) -> tf.Tensor:
    """Returns whether all numbers in a structure are finite, bool[]."""
    floats = filter(is_float, tf.nest.flatten(tensors))
    parts = [tf.reduce_all(tf.math.is_finite(t)) for t in joined(floats)]
    return tf.reduce_all(parts) if parts else tf.constant(True)


def joined(tensors: Iterable[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the numbers of all tensors of a dtype as one vector: for fewer steps."""
    found: dict[tf.DType, list[tf.Tensor]] = {}
    for tensor in tensors:
        flat = tensor if tensor.shape.rank == 1 else tf.reshape(tensor, [-1])
        found.setdefault(tensor.dtype, []).append(flat)
    return [tf.concat(flat, 0) for flat in found.values()]


def is_float(tensor: Any) -> bool:
    """Returns whether a tensor holds floats."""
    return tensor.dtype.is_floating


def all_within(values: tf.Tensor, bound: tf.Tensor) -> tf.Tensor:
    """Returns whether no magnitude is above a bound, or NaN; bool[]."""
    return tf.reduce_all(tf.abs(values) <= bound)


def have_shapes(
    tensors: Sequence[tf.Tensor], shapes: Sequence[Sequence[int]]
) -> tf.Tensor:
    """Returns whether tensors are of these shapes and as many, bool[]."""
    if [t.shape.rank for t in tensors] != list(map(len, shapes)):
        return tf.constant(False)
    pairs = list(zip(tensors, shapes))
    if not all(t.shape.is_compatible_with(shape) for t, shape in pairs):
        return tf.constant(False)
    unknown = [(t, s) for t, s in pairs if not t.shape.is_fully_defined()]
    same = [tf.reduce_all(tf.equal(tf.shape(t), shape)) for t, shape in unknown]
    return tf.reduce_all(same) if same else tf.constant(True)


def scales_are_kept(scales: tf.Tensor, sent: tf.Tensor) -> tf.Tensor:
    """Returns whether scales float32[L] are within the ratios of those sent; bool[]."""
    at_least, at_most = sent * MIN_SCALE_RATIO, sent * MAX_SCALE_RATIO
    return tf.reduce_all((scales >= at_least) & (scales <= at_most))


def variances_are_possible(variances: tf.Tensor, sent: tf.Tensor) -> tf.Tensor:
    """Returns whether variances are not negative but for rounding, bool[]."""
    return tf.reduce_all(variances >= -_ROUNDING * sent)
