"""The six schemes by name: what they are, refuse, and send; the rows of Table 4."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tff_fedmpq.allocation import prune_and_grow
from tff_fedmpq.allocation.policies import (
    keep_bit_widths,
    pruning_growing,
    rate_distortion,
)
from tff_fedmpq.allocation.pruning_growing import uniform_bit_widths
from tff_fedmpq.federated import messages
from tff_fedmpq.federated.fedmpq import fedmpq_scheme
from tff_fedmpq.federated.local_training import OPTIMIZERS
from tff_fedmpq.keras.variables import ModelSpec
from tff_fedmpq.federated.process import build_process
from tff_fedmpq.federated.scheme import weigh_by_budget_and_examples, weigh_by_examples
from tff_fedmpq.baselines.registry import SCHEMES, build_scheme, explicit_options
from tff_fedmpq.federated.uplink import ModelUplink
from tff_fedmpq.keras.resnets import resnet20
from tff_fedmpq.quantization.scales import max_scale
from tff_fedmpq.simulation import ledger

FLOAT_SCHEMES = ["fedavg", "fedpaq", "uveqfed"]
QUANTIZED_SCHEMES = ["fpq8", "aqfl", "fedmpq"]

every_scheme = pytest.mark.parametrize("name", list(SCHEMES))
every_float_scheme = pytest.mark.parametrize("name", FLOAT_SCHEMES)
every_quantized_scheme = pytest.mark.parametrize("name", QUANTIZED_SCHEMES)


# --- Table 1 ----------------------------------------------------------------


def test_the_schemes_are_those_of_table_1():
    """Bits of updates, weights and activations; in the order of the table."""
    precisions = {name: build_scheme(name, {}).precision for name in SCHEMES}
    assert list(precisions.items()) == [
        ("fedavg", "32/32/32"),
        ("fedpaq", "v/32/32"),
        ("uveqfed", "v/32/32"),
        ("fpq8", "8/8/8"),
        ("aqfl", "v/v/4"),
        ("fedmpq", "v/v/4"),
    ]


@pytest.mark.parametrize("name", ["aqfl", "fedmpq"])
def test_the_literal_reading_differs_where_the_paper_says_so(name):
    ours, literal = (build_scheme(n, {}) for n in (name, f"{name}_literal"))
    assert literal.name == f"{name}_literal"
    assert literal.weights.representation.name == "offset_binary"
    assert literal.weights.scale_rule is max_scale
    training = literal.training
    assert (training.code_update, training.learning_rate_unit) == ("integer", "code")
    assert (training.learning_rate, training.learning_rate_decay) == (0.1, "none")
    assert not literal.training.saturate
    assert type(literal.uplink) is ModelUplink
    # Parts are FedMPQ's alone in both readings.
    for part in ("lasso", "activation_bits", "precision"):
        assert getattr(literal, part) == getattr(ours, part)
    allocation = {"aqfl": keep_bit_widths, "fedmpq": pruning_growing}[name]
    assert literal.allocation is allocation
    assert literal.training.pruning_threshold == ours.training.pruning_threshold


def test_literal_aqfl_weighs_by_examples():
    budget, count = tf.constant(2.0), tf.constant(10.0)
    weights = [build_scheme(n, {}) for n in ("aqfl_literal", "fedmpq_literal")]
    weights = [float(s.aggregation_weight(budget, count)) for s in weights]
    assert weights == [10.0, 20.0]


def test_options_of_a_literal_scheme_can_be_set():
    scheme = build_scheme("fedmpq_literal", {"saturate": True, "learning_rate": 0.3})
    assert scheme.training.saturate and scheme.training.learning_rate == 0.3
    with pytest.raises(ValueError, match="fedmpq_literal does not take"):
        build_scheme("fedmpq_literal", {"bits": 3})


@every_scheme
def test_a_scheme_has_its_name_and_the_papers_training(name):
    scheme = build_scheme(name, {})
    assert scheme.name == name
    training = scheme.training
    assert (training.epochs, training.batch_size) == (5, 64)
    assert (training.float_learning_rate, training.momentum) == (0.1, 0.9)
    assert training.weight_decay == 5e-4


@every_scheme
def test_only_fedmpq_prunes_penalises_and_allocates(name):
    scheme = build_scheme(name, {})
    does = (
        scheme.lasso > 0,
        scheme.training.pruning_threshold is not None,
        scheme.allocation is not keep_bit_widths,
    )
    assert does == 3 * (name == "fedmpq",)


@every_scheme
def test_training_options_reach_the_scheme(name):
    options = {"epochs": 3, "batch_size": 16, "momentum": 0.5, "weight_decay": 0.0}
    training = build_scheme(name, options).training
    assert {key: getattr(training, key) for key in options} == options


@every_scheme
def test_momentum_is_needed_by_compensation_alone(name):
    assert build_scheme(name, {"momentum": 0.0}).training.momentum == 0.0
    if name in QUANTIZED_SCHEMES:
        with pytest.raises(ValueError, match="momentum above 0"):
            build_scheme(name, {"momentum": 0.0, "code_update": "compensated"})


@pytest.mark.parametrize("name", ["fedavg", "fedpaq", "uveqfed"])
def test_no_rate_falls_where_there_are_no_codes(name):
    assert build_scheme(name, {}).training.learning_rate_decay == "none"


@every_scheme
def test_aggregation_weights_go_by_name(name):
    budget, count = tf.constant(4.0), tf.constant(10.0)
    for identifier, expected in (
        ("examples", 10),
        ("budget_and_examples", 40),
        (weigh_by_budget_and_examples, 40),
        (weigh_by_examples, 10),
    ):
        scheme = build_scheme(name, {"aggregation_weight": identifier})
        assert float(scheme.aggregation_weight(budget, count)) == expected
    with pytest.raises(ValueError, match="'budget_and_examples', 'examples'"):
        build_scheme(name, {"aggregation_weight": "loss"})


@every_quantized_scheme
@pytest.mark.parametrize("code_update", sorted(OPTIMIZERS))
def test_quantized_schemes_train_codes_as_asked(name, code_update):
    scheme = build_scheme(name, {"code_update": code_update})
    assert scheme.training.code_update == code_update


@every_scheme
def test_options_are_spelled_out(name):
    """And mean what they meant."""
    explicit = explicit_options(name, {})
    assert explicit_options(name, explicit) == explicit
    short, long = (SCHEMES[name](**options) for options in ({}, explicit))
    for field in dataclasses.fields(short):
        if field.name != "uplink":  # Compares by identity.
            assert getattr(short, field.name) == getattr(long, field.name)
    assert vars(short.uplink) == vars(long.uplink)
    special = {"fedpaq": {"norm": "max"}, "uveqfed": {"lattice": "hexagonal"}}
    assert special.get(name, {}).items() <= explicit.items()


def test_what_has_no_name_cannot_be_spelled_out():
    def nobody(table, *unused):
        return table

    with pytest.raises(ValueError, match="has no name; expected one of keep"):
        explicit_options("fedmpq", {"allocation": nobody})


# --- what is refused --------------------------------------------------------


@pytest.mark.parametrize("name", ["fedprox", "FedMPQ", ""])
def test_an_unknown_scheme_is_refused_with_those_that_exist(name):
    with pytest.raises(ValueError, match="Unknown scheme") as error:
        build_scheme(name, {})
    assert all(known in str(error.value) for known in SCHEMES)


@pytest.mark.parametrize(
    "option",
    [
        {"activation_bits": 4},
        {"allocation": "keep"},
        {"lasso": 0.01},
        {"pruning_threshold": 0.03},
        {"representation": "sign_magnitude"},
        {"saturate": False},
        {"scale_rule": "max"},
        {"code_update": "straight_through"},
        {"learning_rate": 0.01},
        {"learning_rate_decay": "none"},
        {"bit_width": 4},
    ],
    ids=str,
)
@every_float_scheme
def test_float_schemes_refuse_options_of_codes(name, option):
    """Naming what there is."""
    refused = rf"(has no \[|unexpected keyword argument )'{next(iter(option))}'"
    with pytest.raises(ValueError, match=refused) as error:
        build_scheme(name, {"epochs": 1, **option})
    words = str(error.value)
    assert name in words
    for known in ("aggregation_weight", "float_learning_rate", "epochs"):
        assert known in words


@pytest.mark.parametrize(
    ("name", "option", "known"),
    [
        ("fedavg", {"norm": "max"}, "aggregation_weight"),
        ("fedavg", {"lattice": "hexagonal"}, "aggregation_weight"),
        ("fedpaq", {"lattice": "hexagonal"}, "norm"),
        ("uveqfed", {"norm": "max"}, "lattice"),
        ("fpq8", {"norm": "max"}, "scale_rule"),
        ("aqfl", {"lattice": "integer"}, "scale_rule"),
        ("fedmpq", {"epsilon": 0.03}, "pruning_threshold"),
    ],
)
def test_options_of_another_scheme_are_refused(name, option, known):
    with pytest.raises(ValueError, match=f"{name} does not take") as error:
        build_scheme(name, option)
    assert known in str(error.value)


@pytest.mark.parametrize(
    ("name", "option", "words"),
    [
        ("fedpaq", {"norm": "l1"}, "Unknown norm 'l1'.*'l2', 'max'"),
        ("uveqfed", {"lattice": "cubic"}, "Unknown lattice.*'hexagonal', 'integer'"),
        ("aqfl", {"code_update": "adam"}, "Unknown code_update.*'straight_through'"),
        ("fedmpq", {"allocation": "all"}, "Unknown allocation.*'pruning_growing'"),
        ("fpq8", {"scale_rule": "min"}, "Unknown scale rule.*'max'"),
        ("fedavg", {"epochs": 0}, "at least 1"),
    ],
)
def test_unknown_values_are_refused_with_those_that_exist(name, option, words):
    with pytest.raises(ValueError, match=words):
        build_scheme(name, option)


# --- Table 4 ----------------------------------------------------------------

# All six are `fedmpq_scheme`, with one of these as options.
LASSO, THRESHOLD = 20.0, 0.3
_NOTHING = {"lasso": 0.0, "pruning_threshold": None, "allocation": "keep"}
TABLE_4 = {
    "AQFL": _NOTHING,
    "Lasso": {**_NOTHING, "lasso": LASSO},
    "MSB": {**_NOTHING, "pruning_threshold": THRESHOLD},
    "MSB+Lasso": {**_NOTHING, "pruning_threshold": THRESHOLD, "lasso": LASSO},
    "MSB+Alg.2": {"lasso": 0.0, "pruning_threshold": THRESHOLD},
    "all": {"lasso": LASSO, "pruning_threshold": THRESHOLD},
}


def settings_of(scheme):
    """Every setting of a scheme, flat; objects without equality by their type."""
    settings = {
        field.name: getattr(scheme, field.name) for field in dataclasses.fields(scheme)
    }
    settings["uplink"] = type(scheme.uplink)
    training = dataclasses.asdict(settings.pop("training"))
    return {**settings, **training}


def test_the_rows_of_table_4_differ_in_three_settings_alone():
    settings = {row: settings_of(fedmpq_scheme(**TABLE_4[row])) for row in TABLE_4}
    parts = ("lasso", "pruning_threshold", "allocation")
    found = {row: tuple(settings[row].pop(part) for part in parts) for row in settings}
    assert found == {
        "AQFL": (0.0, None, keep_bit_widths),
        "Lasso": (LASSO, None, keep_bit_widths),
        "MSB": (0.0, THRESHOLD, keep_bit_widths),
        "MSB+Lasso": (LASSO, THRESHOLD, keep_bit_widths),
        "MSB+Alg.2": (0.0, THRESHOLD, rate_distortion),
        "all": (LASSO, THRESHOLD, rate_distortion),
    }
    assert all(rest == settings["all"] for rest in settings.values())


def test_the_first_row_of_table_4_is_the_scheme_aqfl():
    aqfl = settings_of(build_scheme("aqfl", {}))
    first_row = settings_of(fedmpq_scheme(**_NOTHING))
    assert {**aqfl, "name": "fedmpq"} == first_row


@pytest.fixture(scope="module")
def table_4(runtime, problem):
    """Row -> what is known after two rounds of all clients."""
    found = {}
    for row, options in TABLE_4.items():
        scheme = fedmpq_scheme(**{**problem.options, **options})
        process = build_process(
            problem.model_fn, problem.budgets, problem.client_data, scheme, seed=5
        )
        state = process.initialize()
        for _ in range(2):
            output = process.next(state, problem.client_ids)
            state = output.state
        found[row] = output
    return found


def test_the_rows_of_table_4_decide_different_bit_widths(table_4):
    tables = {
        row: output.state.distributor["bit_widths"].tolist()
        for row, output in table_4.items()
    }
    uniform = [[2, 2], [8, 8], [6, 5], [4, 4]]
    for row in ("AQFL", "Lasso", "MSB", "MSB+Lasso"):  # Nobody decides.
        assert tables[row] == uniform
    decided = [uniform, tables["MSB+Alg.2"], tables["all"]]
    assert len({str(table) for table in decided}) == 3, tables


def test_the_rows_of_table_4_send_different_bit_widths(table_4):
    """Where nobody decides, pruning still lowers what comes back, more with Lasso."""
    sent = {row: output.metrics["mean_bit_widths"] for row, output in table_4.items()}
    np.testing.assert_array_equal(sent["AQFL"], sent["Lasso"])
    for lower, higher in (("MSB", "AQFL"), ("MSB+Lasso", "MSB")):
        assert np.all(sent[lower] <= sent[higher])
        assert np.any(sent[lower] < sent[higher])
    assert np.any(sent["MSB+Alg.2"] != sent["MSB"])
    assert np.any(sent["MSB+Alg.2"] != sent["all"])


# --- what goes up -----------------------------------------------------------

RESNET20_WEIGHTS = 270_000  # Of the kernels, about.


def uplink_bits(name, budget, seed=0):
    """Bits that a client with ResNet-20 really sends, by `messages.BIT_ITEMS`.

    What it has trained is what it received, each float weight off by a small number.
    """
    scheme = build_scheme(name, {})
    spec = ModelSpec.from_model(scheme.build_client_model(resnet20))
    model = scheme.build_global_model(resnet20)
    trainable = [v.value() for v in model.trainable_variables]
    non_trainable = [v.value() for v in model.non_trainable_variables]
    weights = spec.split(trainable, non_trainable)
    rng = np.random.default_rng(seed)
    moved = spec.split(
        *(
            [v + rng.laplace(scale=1e-3, size=v.shape).astype(np.float32) for v in part]
            for part in (trainable, non_trainable)
        )
    )
    received, trained = (
        quantize(scheme, spec, part, budget) for part in (weights, moved)
    )
    budget = tf.constant(budget, tf.float32)
    message = scheme.uplink.encode(trained, received, budget, tf.constant([1, 2]))
    bits = scheme.uplink.count_bits(message, headers=[tf.constant(1.0)]).numpy()
    symbols = scheme.uplink.symbols(message).numpy()
    if symbols.size:
        bits[0] = ledger.coded_bits(symbols)
    return dict(zip(messages.BIT_ITEMS, bits.tolist())), spec


def quantize(scheme, spec, weights, budget):
    """The client's model: mixed bit-widths where the scheme decides on them."""
    if scheme.weights is None:
        return messages.QuantizedWeights((), tf.zeros([0]), [], weights.float_parameters)
    budget, sizes = scheme.common_budget or budget, spec.layer_sizes
    table = uniform_bit_widths(sizes, np.array([budget]))[0]
    if scheme.allocation is not keep_bit_widths:
        mean, nothing = np.full(len(sizes), 4.0), np.zeros(len(sizes), int)
        table = prune_and_grow(mean, nothing, sizes, budget)
        assert len(set(table.tolist())) > 1
    return messages.quantize_weights(
        weights,
        tf.constant(table, tf.int32),
        scheme.weights.representation,
        scheme.weights.scale_rule,
    )


@pytest.fixture(scope="module")
def float_bits():
    items, spec = uplink_bits("fedavg", 2.0)
    assert spec.num_weights > RESNET20_WEIGHTS
    # All of it is float parameters, and a header says how much the client counts.
    assert items == {
        "codes": 0,
        "scales": 0,
        "headers": 32,
        "float_parameters": 32 * spec.num_weights,
    }
    return sum(items.values())


@pytest.mark.parametrize("name", ["fedpaq", "uveqfed", "aqfl", "fedmpq"])
def test_two_bits_are_a_twelfth_of_float_on_resnet20(name, float_bits):
    """The float parameters, headers and scales included."""
    items, spec = uplink_bits(name, 2.0)
    assert items["codes"] > 1.9 * RESNET20_WEIGHTS
    assert items["scales"] > 0 and items["headers"] > 0
    assert items["float_parameters"] > 32 * 0.9 * (spec.num_weights - 272_000)
    assert float_bits >= 12 * sum(items.values())


def test_fpq8_is_a_quarter_of_float_on_resnet20(float_bits):
    items, _ = uplink_bits("fpq8", 2.0)
    assert 3.5 < float_bits / sum(items.values()) < 4


def test_outer_layers_have_their_own_bits():
    sizes, budgets = np.array([100, 5000, 50]), np.array([2.0, 4.0])
    table = build_scheme("aqfl", {"outer_bit_width": 8}).initial_bit_widths(
        sizes, budgets
    )
    np.testing.assert_array_equal(table, [[8, 2, 8], [8, 4, 8]])


@pytest.mark.parametrize("name, bits", [("fedmpq", 8), ("aqfl", 9)])
def test_outer_layers_need_a_kept_allocation_and_a_bit_width(name, bits):
    with pytest.raises(ValueError, match="outer_bit_width"):
        build_scheme(name, {"outer_bit_width": bits})
