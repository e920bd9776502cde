"""What a client may send, and what is left out of the round.

A client of the tests sends back what it received, honestly but for one change, as
results of the server's own functions run eagerly. The last tests are real rounds.
"""

from __future__ import annotations

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff
from oracles.party import KEYS, NUM_EXAMPLES, Party
from oracles.problem import BUDGETS

from tff_fedmpq.baselines.fedavg import FedAvgConfig
from tff_fedmpq.baselines.fedpaq import FedPAQConfig
from tff_fedmpq.baselines.uveqfed import UVeQFedConfig
from tff_fedmpq.federated import acceptance, messages
from tff_fedmpq.federated.acceptance import REASONS, Rejection
from tff_fedmpq.federated.fedmpq import FedMPQConfig
from tff_fedmpq.federated.local_training import TrainingSums
from tff_fedmpq.federated.process import build_process
from tff_fedmpq.federated.round_sums import merge, only_of_round

NAN, INFINITY = float("nan"), float("inf")
LIAR = 2
CONFIGS = {
    "feedback": FedMPQConfig(pruning_threshold=0.3),
    "models": FedMPQConfig(error_feedback=False),
    "fedavg": FedAvgConfig(),
    "fedpaq": FedPAQConfig(),
    "uveqfed": UVeQFedConfig(),
}


@pytest.fixture(scope="module")
def parties(problem):
    return {name: Party(problem, config) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def honest(parties):
    """Sums over all but the liar, per scheme."""
    return {
        name: party.accumulate([party.answer(k) for k in KEYS if k != LIAR])
        for name, party in parties.items()
    }


def assert_equal(a, b):
    tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def changed(tensor, index, value) -> tf.Tensor:
    array = tensor.numpy().copy()
    array[index] = value
    return tf.constant(array)


def part_of(result):
    """Returns the part of a message that holds the trained model."""
    message = result.message
    return message["sent"] if "sent" in message else message


def with_part(result, **changes):
    message = {**part_of(result), **changes}
    if "sent" in result.message:
        message = {**result.message, "sent": message}
    return result._replace(message=message)


def scales(change):
    return lambda r: with_part(r, scales=change(part_of(r)["scales"]))


def codes(change):
    return lambda r: with_part(r, codes=change(part_of(r)["codes"]))


def others(index, change):
    def apply(result):
        tensors = list(part_of(result)["float_parameters"])
        tensors[index] = change(tensors[index])
        return with_part(result, float_parameters=tuple(tensors))

    return apply


def field(name, value):
    def apply(result):
        present = getattr(result, name)
        new = value(present) if callable(value) else value
        return result._replace(**{name: tf.constant(new, present.dtype)})

    return apply


def loss_of(value):
    training = TrainingSums(*map(tf.constant, (value, NUM_EXAMPLES)))
    return lambda result: result._replace(training=training)


def widths(values):
    """Claims bit-widths, and sends as many bytes as they ask for."""

    def apply(result):
        sizes = np.array([108, 144])
        count = int(np.sum((sizes * np.array(values) + 7) // 8))
        result = with_part(
            result,
            bit_widths=tf.constant(values, tf.uint8),
            codes=tf.zeros([count], tf.uint8),
        )
        return result._replace(bit_widths=tf.constant(values, tf.int32))

    return apply


def one_bit_more(message, is_bad):
    more = message["bit_widths"] + tf.cast(is_bad, tf.uint8)
    return {**message, "bit_widths": more}


def check_left_out(parties, honest, name, change, reason):
    """The liar is left out, for that reason; all sums are those of the others."""
    party = parties[name]
    sums = party.accumulate([party.answer(LIAR, change)], sums=honest[name])
    check_sums(honest, name, sums, reason)


def check_sums(honest, name, sums, reason):
    expected = np.zeros(len(KEYS), np.int32)
    expected[LIAR] = reason
    assert sums.rejected.numpy().tolist() == expected.tolist(), reason
    assert sums.num_rejected == 1
    zeros = tf.zeros_like(sums.rejected)
    same = sums._replace(rejected=zeros, num_rejected=tf.constant(0))
    assert_equal(same, honest[name])


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "place"), [*((name, 0) for name in CONFIGS), ("models", 1), ("models", 3)]
)
def test_the_round_of_a_liar_is_that_of_the_others(parties, honest, name, place):
    """Whenever its message comes; the round goes on and names it."""
    party = parties[name]
    keys = [k for k in KEYS if k != LIAR]
    keys.insert(place, LIAR)
    lie = field("weight", NAN)
    answers = [party.answer(k, lie if k == LIAR else None) for k in keys]
    sums = party.accumulate(answers)
    check_sums(honest, name, sums, Rejection.NOT_FINITE)
    state, metrics = party.server.update(party.state, sums)
    assert not metrics["abandoned"]
    assert metrics["rejected"][LIAR] == Rejection.NOT_FINITE
    assert all(np.isfinite(leaf).all() for leaf in tf.nest.flatten(state))


# --- honest clients -----------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_honest_contributions_count(parties, honest, name):
    party = parties[name]
    sums = party.accumulate([party.answer(k) for k in KEYS])
    assert not sums.rejected.numpy().any() and sums.num_rejected == 0
    assert sums.participations.numpy().tolist() == [1, 1, 1, 1]
    assert honest[name].participations.numpy().tolist() == [1, 1, 0, 1]
    assert float(sums.total_weight) > float(honest[name].total_weight)


def test_a_pruned_layer_counts(parties):
    """Seven of eight planes may go, with the scale that keeps the step."""
    party, key = parties["models"], 1  # The client of 8 bits.

    def prune(result):
        result = widths([1, 1])(result)
        return scales(lambda s: s / 255)(result)

    sums = party.accumulate([party.answer(key, prune)])
    assert sums.rejected.numpy().tolist() == [0, 0, 0, 0]


def test_every_reason_has_words():
    assert set(REASONS) == set(Rejection)
    assert acceptance.describe([0, 3], ["anna", "bert"]) == {
        "bert": "its checksum is wrong"
    }


# --- numbers ------------------------------------------------------------------

QUANTIZED = ("feedback", "models")
ALL = tuple(CONFIGS)
# For what no scheme has a part in; these two weigh clients differently.
ANY = ("feedback", "fedavg")


def cases(names, rows):
    return [
        pytest.param(name, *row[1:], id=f"{row[0]}-{name}")
        for row in rows
        for name in names
    ]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        *cases(
            ALL,
            [
                ("a float part is NaN", others(0, lambda t: t * NAN), 7),
                ("a float part is Inf", others(-1, lambda t: t + INFINITY), 7),
                ("one NaN of a float part", others(0, lambda t: changed(t, 0, NAN)), 7),
                ("a float part is 1e30", others(0, lambda t: t + 1e30), 14),
                ("statistics are 1e30", others(-1, lambda t: t + 1e30), 14),
                ("variances are negative", others(-1, lambda t: -t - 2.0), 15),
            ],
        ),
        *cases(
            ANY,
            [
                ("its loss is NaN", loss_of(NAN), 7),
                ("its weight is NaN", field("weight", NAN), 7),
                ("its weight is Inf", field("weight", INFINITY), 7),
                ("its count is NaN", field("num_examples", NAN), 7),
            ],
        ),
        *cases(
            (*QUANTIZED, "fedpaq", "uveqfed"),
            [
                ("a scale is NaN", scales(lambda s: changed(s, 0, NAN)), 7),
                ("a scale is Inf", scales(lambda s: changed(s, 1, INFINITY)), 7),
                ("a scale is negative", scales(lambda s: changed(s, 0, -0.5)), 10),
            ],
        ),
        *cases(
            ("fedpaq", "uveqfed"),
            [("a scale is 1e30", scales(lambda s: s * 0 + 1e30), 14)],
        ),
        *cases(
            QUANTIZED,
            [
                ("scales x 100", scales(lambda s: 100 * s), 10),
                ("scales are 1e30", scales(lambda s: s * 0 + 1e30), 10),
                ("scales are zero", scales(lambda s: 0 * s), 10),
                ("densities are NaN", field("msb_densities", lambda d: d * NAN), 7),
            ],
        ),
    ],
)  # fmt: skip
def test_a_contribution_with_bad_numbers_is_left_out(
    parties, honest, name, change, reason
):
    check_left_out(parties, honest, name, change, reason)


@pytest.mark.faults
@pytest.mark.parametrize("name", ANY)
@pytest.mark.parametrize(
    "weight", [1e9, -1.0, -144.0, 1e38], ids=["1e9", "negative", "cancels", "1e38"]
)
def test_a_weight_is_that_of_budget_and_examples(parties, honest, name, weight):
    change = field("weight", weight)
    check_left_out(parties, honest, name, change, Rejection.WEIGHT)


@pytest.mark.faults
@pytest.mark.parametrize("name", ANY)
@pytest.mark.parametrize("count", [1e9, -5.0])
def test_a_number_of_examples_is_bounded(parties, honest, name, count):
    def claim(result):
        weight = result.weight * (count / NUM_EXAMPLES)
        return result._replace(num_examples=tf.constant(count), weight=weight)

    check_left_out(parties, honest, name, claim, Rejection.WEIGHT)


# --- messages -----------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize(
    "values", [(0, 5), (9, 5), (255, 255), (64, 16), (6, 6)], ids=str
)
def test_bit_widths_are_those_given_or_fewer(parties, honest, name, values):
    """With as many bytes as they ask for; the client was given 5 or 6 bits."""
    given = parties[name].sent[LIAR]["bit_widths"].numpy()
    assert (np.array(values) > given).any() or 0 in values
    change = widths(values)
    check_left_out(parties, honest, name, change, Rejection.BIT_WIDTHS)


@pytest.mark.faults
@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize(
    "values", [(-5, 100), (255, 255), (10**6, -(10**6)), (1, 1)], ids=str
)
def test_bit_widths_are_those_of_the_message(parties, honest, name, values):
    change = field("bit_widths", values)
    check_left_out(parties, honest, name, change, Rejection.BIT_WIDTHS)


@pytest.mark.faults
def test_relabelled_bit_widths_are_left_out(parties, honest):
    """[1, 2] sent as [2, 1] asks for another number of bytes."""

    def relabel(result):
        result = widths([1, 2])(result)
        swapped = tf.constant([2, 1])
        result = with_part(result, bit_widths=tf.cast(swapped, tf.uint8))
        return result._replace(bit_widths=swapped)

    check_left_out(parties, honest, "feedback", relabel, Rejection.LENGTH)


@pytest.mark.faults
@pytest.mark.parametrize("bits", [0, 1, 4, 9, 255])
def test_an_update_has_the_bits_of_its_budget(parties, honest, bits):
    def change(result):
        return with_part(result, bit_widths=tf.constant([bits], tf.uint8))

    check_left_out(parties, honest, "fedpaq", change, Rejection.BIT_WIDTHS)


@pytest.mark.faults
@pytest.mark.parametrize("name", (*QUANTIZED, "fedpaq", "uveqfed"))
@pytest.mark.parametrize(
    "change",
    [lambda c: c[:-1], lambda c: c[:0], lambda c: tf.concat([c, c], 0)],
    ids=["one short", "empty", "twice"],
)
def test_codes_have_the_right_length(parties, honest, name, change):
    check_left_out(parties, honest, name, codes(change), Rejection.LENGTH)


@pytest.mark.faults
def test_symbols_that_cannot_be_coded_are_left_out(parties, honest):
    change = codes(lambda c: changed(c, (0, 0), -(2**15)))
    check_left_out(parties, honest, "uveqfed", change, Rejection.SYMBOLS)


@pytest.mark.faults
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "change",
    [lambda t: t[:1], lambda t: t[:-1], lambda t: tf.stack([t, t])],
    ids=["broadcastable", "one short", "of another rank"],
)
def test_tensors_have_the_models_shapes(parties, honest, name, change):
    check_left_out(parties, honest, name, others(-1, change), Rejection.SHAPES)


@pytest.mark.faults
@pytest.mark.parametrize("name", QUANTIZED)
def test_scales_in_another_order_are_left_out(parties, honest, name):
    """Where layers differ by more than the allowed factor, as this one's do not."""
    party = parties[name]
    ticket = party.sent[LIAR]["ticket"]
    far_apart = ticket._replace(scales=tf.constant([0.1, 3.0]))
    ticket = acceptance.sign(far_apart, party.server.secret)
    for order, code in (((0.1, 3.0), 0), ((3.0, 0.1), Rejection.SCALES)):
        answer = party.answer(LIAR, scales(lambda _, order=order: tf.constant(order)))
        sums = party.server.accumulate(party.server.zero(), answer, ticket)
        assert sums.rejected[LIAR] == code


@pytest.mark.faults
@pytest.mark.parametrize("factor", [-100.0, 0.5, 1.0 + 1e-6])
def test_a_client_cannot_lie_about_the_model_it_received(parties, honest, factor):
    def lie(result):
        received = dict(result.message["received"])
        received["scales"] = factor * received["scales"]
        return result._replace(message={**result.message, "received": received})

    check_left_out(parties, honest, "feedback", lie, Rejection.RECEIVED)


@pytest.mark.faults
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "field_name", ["bit_widths", "msb_densities", "num_examples", "weight"]
)
def test_numbers_are_as_many_as_layers(parties, honest, name, field_name):
    """Found by the fuzzer: others could not be added."""

    def change(result):
        present = getattr(result, field_name)
        return result._replace(**{field_name: tf.zeros([3], present.dtype)})

    check_left_out(parties, honest, name, change, Rejection.SHAPES)


# --- who, when, and damage on the way -------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("key", [0, 3, -1, 4, 2**31 - 1])
def test_another_clients_row_cannot_be_taken(parties, honest, key):
    """Its own ticket says which row is its own."""
    party = parties["feedback"]
    answers = [party.answer(k) for k in KEYS]
    answers[LIAR] = party.answer(LIAR, field("key", key))
    sums = party.accumulate(answers, [message["ticket"] for message in party.sent])
    assert sums.rejected.numpy().tolist() == [0, 0, Rejection.TICKET, 0]
    assert_equal(sums.weights, honest["feedback"].weights)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "value"),
    [("key", 0), ("key", 4), ("key", -1), ("round", 9), ("bit_widths", (8, 8)),
     ("scales", (9.0, 9.0)), ("magnitude", 1e9), ("model", 0), ("tag", 0)],
)  # fmt: skip
def test_a_forged_ticket_blames_nobody(parties, honest, name, value):
    party = parties["feedback"]
    answers = [party.answer(k) for k in KEYS]
    tickets = [message["ticket"] for message in party.sent]
    present = getattr(tickets[LIAR], name)
    forged = tf.cast(tf.constant(value), present.dtype)
    tickets[LIAR] = tickets[LIAR]._replace(**{name: forged})
    sums = party.accumulate(answers, tickets)
    assert not sums.rejected.numpy().any() and sums.num_rejected == 1
    assert_equal(sums.weights, honest["feedback"].weights)


@pytest.mark.faults
def test_another_servers_ticket_does_not_count(parties, problem):
    party, other = parties["feedback"], Party(problem, CONFIGS["feedback"])
    tickets = [message["ticket"] for message in other.sent]
    sums = party.accumulate([party.answer(k) for k in KEYS], tickets)
    assert sums.num_rejected == len(KEYS)
    assert not sums.total_weight


@pytest.mark.faults
def test_every_flipped_bit_of_a_message_is_noticed(parties):
    """Of codes, scales and float parameters, one at a time."""
    party = parties["models"]
    answer = party.answer(LIAR)
    rng = np.random.default_rng(0)
    noticed = 0
    for name in ("codes", "scales", "bit_widths"):
        array = answer.message[name].numpy()
        flat = array.view(np.uint8).reshape(-1)
        for bit in rng.choice(8 * flat.size, min(40, 8 * flat.size), replace=False):
            flipped = flat.copy()
            flipped[bit // 8] ^= 1 << (bit % 8)
            tensor = tf.constant(flipped.view(array.dtype).reshape(array.shape))
            message = {**answer.message, name: tensor}
            damaged = answer._replace(message=message)
            sums = party.accumulate([damaged])
            assert sums.rejected[LIAR] == Rejection.CHECKSUM
            noticed += 1
    assert noticed == 96


@pytest.mark.faults
@pytest.mark.parametrize("late_first", [True, False])
def test_a_message_of_an_earlier_round_is_left_out(problem, late_first):
    """Whether it comes first or last; so it is when sums are merged."""
    party = Party(problem, CONFIGS["models"])
    old, old_ticket = party.answer(LIAR), party.sent[LIAR]["ticket"]
    party.state.distributor["round"] = tf.constant(1)
    party.receive(party.state)
    pairs = [(party.answer(k), party.sent[k]["ticket"]) for k in KEYS if k != LIAR]
    expected = party.accumulate(*zip(*pairs))
    pairs.insert(0 if late_first else 3, (old, old_ticket))
    sums = party.accumulate(*zip(*pairs))
    assert sums.rejected.numpy().tolist() == [0, 0, Rejection.ROUND, 0]
    assert_equal(sums.weights, expected.weights)
    alone = party.accumulate([old], [old_ticket])
    for merged in (merge(alone, expected), merge(expected, alone)):
        assert merged.rejected.numpy().tolist() == [0, 0, Rejection.ROUND, 0]
        assert_equal(merged.weights, expected.weights)
    # Nobody answered the present round.
    state, metrics = party.server.update(party.state, alone)
    assert metrics["abandoned"] and metrics["rejected"][LIAR] == Rejection.ROUND
    assert_equal(state.global_model_weights, party.state.global_model_weights)


@pytest.mark.faults
def test_a_message_cannot_answer_a_later_rounds_ticket(problem):
    """The seed of the ticket is in the checksum."""
    party = Party(problem, CONFIGS["models"])
    old = party.answer(LIAR)
    party.state.distributor["round"] = tf.constant(1)
    later = party.server.message_for(party.state, tf.constant(LIAR))["ticket"]
    sums = party.accumulate([old], [later])
    assert sums.rejected[LIAR] == Rejection.CHECKSUM


# --- rounds ---------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "present"),
    [("feedback", 0), ("feedback", 2), ("feedback", 3), ("fedpaq", 1)],
)
def test_a_round_of_too_few_is_abandoned(problem, name, present):
    config = {"feedback": FedMPQConfig, "fedpaq": FedPAQConfig}[name](min_clients=3)
    party = Party(problem, config)
    sums = party.accumulate([party.answer(k) for k in KEYS[:present]])
    before = tf.nest.map_structure(np.array, party.state)
    state, metrics = party.server.update(party.state, sums)
    assert bool(metrics["abandoned"]) == (present < 3)
    assert state.distributor["round"] == 1
    if present < 3:
        state.distributor["round"] = before.distributor["round"]
        assert_equal(tf.nest.flatten(state), tf.nest.flatten(before))


@pytest.mark.faults
@pytest.mark.parametrize("name", ALL)
def test_no_state_becomes_infinite(parties, name):
    """Not even by sums that no check has seen."""
    party = parties[name]
    sums = party.accumulate([party.answer(k) for k in KEYS])
    weights = tf.nest.map_structure(lambda t: t + INFINITY, sums.weights)
    state, metrics = party.server.update(party.state, sums._replace(weights=weights))
    assert metrics["abandoned"]
    assert_equal(state.global_model_weights, party.state.global_model_weights)


def test_sums_of_the_present_round_stay_as_they_are(honest):
    sums = honest["models"]
    assert_equal(only_of_round(sums, tf.constant(0)), sums)


# --- through a process ------------------------------------------------------------


def one_nan(images, labels):
    images[3, 0, 0, 0] = NAN
    return images, labels


def all_infinite(images, labels):
    return images * np.float32(INFINITY), labels


def all_huge(images, labels):
    return images * np.float32(1e30), labels


def label_4_of_4(images, labels):
    labels[2] = 4
    return images, labels


def label_minus_1(images, labels):
    labels[-1] = -1
    return images, labels


# Client -> what is wrong with its examples, and why it may be left out.
BAD_EXAMPLES = {
    "one NaN": (one_nan, {Rejection.IMAGES}),
    "infinite images": (all_infinite, {Rejection.IMAGES}),
    "images of 1e30": (all_huge, {Rejection.NOT_FINITE, Rejection.MAGNITUDE}),
    "label 4 of 4": (label_4_of_4, {Rejection.LABELS}),
    "label -1": (label_minus_1, {Rejection.LABELS}),
}
# Client -> its budget, by which the uplink knows it, what it sends, and why it may be
# left out.
TAMPERED = {
    "NaN scale": (
        7.0, lambda m, bad: {**m, "scales": tf.where(bad, NAN, m["scales"])}, {7}
    ),
    "truncated codes": (
        6.5, lambda m, bad: {**m, "codes": m["codes"][tf.cast(bad, tf.int32) :]}, {9}
    ),
    "one bit more": (6.0, one_bit_more, {8}),
}  # fmt: skip


def build_with(problem, clients, config):
    """Builds a process of the problem's clients and others: budget and examples."""
    examples = {**problem.examples, **{name: own for name, (_, own) in clients.items()}}
    budgets = {**problem.budgets, **{name: bits for name, (bits, _) in clients.items()}}
    data = tff.simulation.datasets.TestClientData(examples)
    return build_process(problem.model_fn, budgets, data, config, seed=5)


def check_round(process, output, bad, reasons):
    """One bad client is left out for one of the reasons, none of the honest ones."""
    rejected = dict(zip(process.client_ids, output.metrics["rejected"].tolist()))
    assert rejected[bad] in reasons
    assert rejected.pop("anna") == Rejection.NO_EXAMPLES  # She takes part all the same.
    assert not any(rejected[name] for name in BUDGETS if name != "anna")
    took_part = dict(zip(process.client_ids, output.metrics["participations"].tolist()))
    assert took_part.pop("anna") == 1
    assert took_part == {name: int(not code) for name, code in rejected.items()}
    others = len(process.client_ids) - len(BUDGETS)
    assert output.metrics["num_rejected"] == others + 1
    assert not output.metrics["abandoned"]
    assert all(np.isfinite(leaf).all() for leaf in tf.nest.flatten(output.state))
    assert output.metrics["client_work"]["train"]["loss"] > 0


@pytest.fixture(scope="module")
def bad_clients(runtime, problem):
    """A process with a client of each kind that is bad, and two of its rounds."""
    encode = messages.ModelUplink.encode

    def tampering(self, trained, received, budget, seed):
        message = encode(self, trained, received, budget, seed)
        for bits, change, _ in TAMPERED.values():
            message = change(message, tf.equal(budget, bits))
        return collections.OrderedDict(sorted(message.items()))

    clients = {
        name: (4, change(*problem.make_examples(5, 1)))
        for name, (change, _) in BAD_EXAMPLES.items()
    }
    for name, (bits, _, _) in TAMPERED.items():
        clients[name] = bits, problem.make_examples(5, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages.ModelUplink, "encode", tampering)
        process = build_with(problem, clients, problem.config(error_feedback=True))
        first = process.next(process.initialize(), process.client_ids)
        return process, [first, process.next(first.state, process.client_ids)]


@pytest.mark.faults
@pytest.mark.parametrize("bad", BAD_EXAMPLES)
def test_a_client_with_bad_examples_is_left_out(bad_clients, bad):
    process, outputs = bad_clients
    for output in outputs:
        check_round(process, output, bad, BAD_EXAMPLES[bad][1])


@pytest.mark.faults
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [NAN, INFINITY, 1e30], ids=str)
def test_infinite_training_of_any_scheme_is_left_out(parties, honest, name, value):
    """Whatever its uplink makes of weights that are no numbers."""
    party = parties[name]
    answer = party.answer(LIAR, train=lambda parameter: parameter + value)
    sums = party.accumulate([answer], sums=honest[name])
    reason = int(sums.rejected[LIAR])
    assert reason in {Rejection.NOT_FINITE, Rejection.MAGNITUDE, Rejection.SYMBOLS}
    check_sums(honest, name, sums, reason)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("name", ["fedavg", "fedpaq", "uveqfed"])
def test_a_client_of_huge_images_is_left_out_of_any_scheme(runtime, problem, name):
    config = type(CONFIGS[name])(epochs=1, batch_size=4)
    clients = {"bad": (4, all_huge(*problem.make_examples(12, 1)))}
    process = build_with(problem, clients, config)
    output = process.next(process.initialize(), process.client_ids)
    rejected = dict(zip(process.client_ids, output.metrics["rejected"].tolist()))
    assert {name for name, code in rejected.items() if code} == {"anna", "bad"}
    assert all(np.isfinite(leaf).all() for leaf in tf.nest.flatten(output.state))


@pytest.mark.faults
@pytest.mark.parametrize("bad", TAMPERED)
def test_a_round_survives_a_tampered_message(bad_clients, bad):
    """Of a client in the worker, beside honest ones."""
    process, outputs = bad_clients
    for output in outputs:
        check_round(process, output, bad, TAMPERED[bad][2])


@pytest.mark.slow
@pytest.mark.faults
def test_a_process_abandons_a_round_of_too_few(runtime, problem):
    process = problem.build(min_clients=2)
    before = process.initialize()
    output = process.next(before, ["bert", "anna"])  # She has no examples.
    assert output.metrics["abandoned"]
    assert_equal(output.state.global_model_weights, before.global_model_weights)
    assert output.state.distributor["round"] == 1
    assert not process.next(before, ["bert", "dora"]).metrics["abandoned"]


@pytest.mark.faults
def test_examples_that_never_end_are_left_out(runtime, problem):
    endless = problem.client_data.preprocess(lambda dataset: dataset.repeat())
    config = FedAvgConfig(max_examples=30)
    process = build_process(problem.model_fn, problem.budgets, endless, config)
    output = process.next(process.initialize(), problem.client_ids)
    rejected = dict(zip(process.client_ids, output.metrics["rejected"].tolist()))
    expected = dict.fromkeys(problem.client_ids, Rejection.EXAMPLES)
    # None, however often they are repeated.
    expected["anna"] = Rejection.NO_EXAMPLES
    assert rejected == expected
    assert output.metrics["abandoned"]
