"""All schemes by name: what they are, refuse, and send; the rows of Table 4."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from tff_fedmpq.allocation import uniform_bit_widths
from tff_fedmpq.allocation.pruning_growing import (
    distortion_order,
    prune_and_grow_graph,
    size_order,
)
from tff_fedmpq.baselines.aqfl import AQFLConfig
from tff_fedmpq.baselines.registry import SCHEMES
from tff_fedmpq.federated import messages
from tff_fedmpq.federated.fedmpq import FedMPQConfig
from tff_fedmpq.federated.local_training import Pruning
from tff_fedmpq.federated.messages import ModelChangeUplink, ModelUplink
from tff_fedmpq.federated.process import build_process
from tff_fedmpq.keras.resnets import resnet20
from tff_fedmpq.keras.variables import ModelSpec
from tff_fedmpq.quantization.scales import max_scale

FLOAT_SCHEMES = ["fedavg", "fedpaq", "uveqfed"]
QUANTIZED_SCHEMES = ["fpq8", "aqfl", "fedmpq"]
TABLE_1 = [*FLOAT_SCHEMES, *QUANTIZED_SCHEMES]

every_scheme = pytest.mark.parametrize("name", TABLE_1)
every_float_scheme = pytest.mark.parametrize("name", FLOAT_SCHEMES)
every_quantized_scheme = pytest.mark.parametrize("name", QUANTIZED_SCHEMES)


UNIFORM = ("uniform", None)


def compose(name, **options):
    return SCHEMES[name](**options).compose()


def described(allocation):
    """Returns name and order of an allocation; `functools.partial` has no equality."""
    if allocation is uniform_bit_widths:
        return UNIFORM
    assert allocation.func is prune_and_grow_graph
    return "pruning_growing", allocation.keywords["order"]


# --- Table 1 ----------------------------------------------------------------


def test_the_schemes_are_those_of_table_1_and_two_literal_readings():
    """Bits of updates, weights and activations; in the order of the table."""
    precisions = {name: compose(name).precision for name in SCHEMES}
    assert list(precisions.items()) == [
        ("fedavg", "32/32/32"),
        ("fedpaq", "v/32/32"),
        ("uveqfed", "v/32/32"),
        ("fpq8", "8/8/8"),
        ("aqfl", "v/v/4"),
        ("fedmpq", "v/v/4"),
        ("aqfl_literal", "v/v/4"),
        ("fedmpq_literal", "v/v/4"),
    ]


@pytest.mark.parametrize("name", ["aqfl", "fedmpq"])
def test_the_literal_reading_differs_where_the_paper_says_so(name):
    ours, literal = (compose(n) for n in (name, f"{name}_literal"))
    assert literal.name == ours.name == name
    assert literal.weights.representation.name == "offset_binary"
    assert literal.weights.scale_rule is max_scale
    training = literal.training
    assert training.learning_rate_unit == "code"
    assert (training.learning_rate, training.learning_rate_decay) == (0.1, "none")
    assert type(literal.uplink) is ModelUplink
    assert type(ours.uplink) is ModelChangeUplink
    for part in ("activation_bits", "precision"):
        assert getattr(literal, part) == getattr(ours, part)
    allocation = {"aqfl": UNIFORM, "fedmpq": ("pruning_growing", size_order)}[name]
    assert described(literal.allocation) == allocation
    pruning = {"aqfl": None, "fedmpq": Pruning(0.03, saturates=False)}[name]
    assert literal.pruning == pruning
    assert literal.lasso == {"aqfl": 0.0, "fedmpq": 0.01}[name]
    assert (ours.lasso, ours.pruning) == (0.0, None)


def test_literal_aqfl_weighs_by_examples():
    budget, count = tf.constant(2.0), tf.constant(10.0)
    weights = [compose(n) for n in ("aqfl_literal", "fedmpq_literal")]
    weights = [float(s.aggregation_weight(budget, count)) for s in weights]
    assert weights == [10.0, 20.0]


def test_options_of_a_literal_scheme_can_be_set():
    scheme = compose("fedmpq_literal", pruning_saturates=True, learning_rate=0.3)
    assert scheme.pruning.saturates and scheme.training.learning_rate == 0.3
    for name in ("fedmpq_literal", "aqfl_literal"):
        with pytest.raises(TypeError, match="bits"):
            SCHEMES[name](bits=3)


@every_scheme
def test_a_scheme_has_its_name_and_the_papers_training(name):
    config = SCHEMES[name]()
    scheme = config.compose()
    assert scheme.name == config.name == name
    assert scheme.training is config
    assert (config.epochs, config.batch_size) == (5, 64)
    assert (config.learning_rate, config.momentum) == (0.1, 0.9)
    assert config.learning_rates()[1].initial == 0.1
    assert config.weight_decay == 5e-4


@every_scheme
def test_only_fedmpq_allocates_and_none_penalises_or_prunes_by_default(name):
    scheme = compose(name)
    assert (scheme.lasso, scheme.pruning) == (0.0, None)
    assert (scheme.allocation is not uniform_bit_widths) == (name == "fedmpq")


@every_scheme
def test_training_options_reach_the_scheme(name):
    options = {"epochs": 3, "batch_size": 16, "momentum": 0.5, "weight_decay": 0.0}
    training = compose(name, **options).training
    assert {key: getattr(training, key) for key in options} == options


@every_scheme
def test_the_rate_of_kernels_falls_and_that_of_other_weights_of_codes_does_not(name):
    """In a float model both are one rate."""
    kernels, float_parameters = SCHEMES[name](rounds=2).learning_rates()
    assert kernels.decay == "cosine"
    expected = "cosine" if name in FLOAT_SCHEMES else "none"
    assert float_parameters.decay == expected


@every_float_scheme
def test_a_float_scheme_trains_and_sends_float_weights(name, problem):
    scheme = compose(name)
    assert scheme.weights is None and scheme.common_budget is None
    spec = ModelSpec.from_model(scheme.build_client_model(problem.model_fn()))
    assert spec.kernel_names == ()


@every_scheme
def test_aggregation_weights_go_by_name(name):
    budget, count = tf.constant(4.0), tf.constant(10.0)
    for identifier, expected in (
        ("examples", 10),
        ("budget_and_examples", 40),
        (lambda budget, num_examples: budget, 4),
    ):
        scheme = compose(name, aggregation_weight=identifier)
        assert float(scheme.aggregation_weight(budget, count)) == expected
    # v_n |D_n| where the paper states it, else |D_n|.
    default = 40 if name == "fedmpq_literal" else 10
    assert float(compose(name).aggregation_weight(budget, count)) == default
    with pytest.raises(ValueError, match="'budget_and_examples', 'examples'"):
        SCHEMES[name](aggregation_weight="loss")


# --- what is refused --------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        {"activation_bits": 4},
        {"allocation": "uniform"},
        {"order": "size"},
        {"lasso": 0.01},
        {"pruning_threshold": 0.03},
        {"representation": "sign_magnitude"},
        {"pruning_saturates": False},
        {"scale_rule": "max"},
        {"error_feedback": True},
        {"learning_rate_unit": "weight"},
        {"float_learning_rate": 0.01},
        {"float_learning_rate_decay": "none"},
        {"bit_width": 4},
    ],
    ids=str,
)
@every_float_scheme
def test_float_schemes_refuse_options_of_codes(name, option):
    with pytest.raises(TypeError, match=f"'{next(iter(option))}'"):
        SCHEMES[name](epochs=1, **option)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("fedavg", {"norm": "max"}),
        ("fedavg", {"lattice": "hexagonal"}),
        ("fedpaq", {"lattice": "hexagonal"}),
        ("uveqfed", {"norm": "max"}),
        ("fpq8", {"norm": "max"}),
        ("fpq8", {"lasso": 0.1}),
        ("aqfl", {"lattice": "integer"}),
        ("aqfl", {"allocation": "uniform"}),
        ("fedmpq", {"epsilon": 0.03}),
        ("fedmpq", {"saturate": True}),
    ],
)
def test_options_of_another_scheme_are_refused(name, option):
    """`simulation.config.make_config` says which there are."""
    with pytest.raises(TypeError, match=f"'{next(iter(option))}'"):
        SCHEMES[name](**option)


@pytest.mark.parametrize(
    ("name", "option", "words"),
    [
        ("fedpaq", {"norm": "l1"}, "Unknown norm 'l1'.*'l2', 'max'"),
        ("uveqfed", {"lattice": "cubic"}, "Unknown lattice.*'hexagonal', 'integer'"),
        ("fedmpq", {"allocation": "all"}, "Unknown allocation.*'pruning_growing'"),
        ("fpq8", {"scale_rule": "min"}, "Unknown scale_rule.*'max'"),
        ("fedavg", {"epochs": 0}, "at least 1"),
    ],
)
def test_unknown_values_are_refused_with_those_that_exist(name, option, words):
    with pytest.raises(ValueError, match=words):
        SCHEMES[name](**option)


# --- Table 4 ----------------------------------------------------------------

# All six are FedMPQ, with one of these as options.
LASSO, THRESHOLD = 20.0, 0.3
_NOTHING = {"lasso": 0.0, "pruning_threshold": None, "allocation": "uniform"}
TABLE_4 = {
    "AQFL": _NOTHING,
    "Lasso": {**_NOTHING, "lasso": LASSO},
    "MSB": {**_NOTHING, "pruning_threshold": THRESHOLD},
    "MSB+Lasso": {**_NOTHING, "pruning_threshold": THRESHOLD, "lasso": LASSO},
    "MSB+Alg.2": {"lasso": 0.0, "pruning_threshold": THRESHOLD},
    "all": {"lasso": LASSO, "pruning_threshold": THRESHOLD},
}


def settings_of(scheme):
    """Returns the settings of a scheme by name, those of its parts by the parts."""
    settings = {
        field.name: getattr(scheme, field.name) for field in dataclasses.fields(scheme)
    }
    settings["uplink"] = type(scheme.uplink)
    training = dataclasses.asdict(settings.pop("training"))
    own = {f.name for f in dataclasses.fields(FedMPQConfig)}
    for part in own - {f.name for f in dataclasses.fields(AQFLConfig)}:
        training.pop(part, None)  # FedMPQ's own; composed to parts of the scheme.
    settings["allocation"] = described(settings["allocation"])
    return {**settings, "training": training}


def test_the_rows_of_table_4_differ_in_three_settings_alone():
    settings = {
        row: settings_of(FedMPQConfig(**options).compose())
        for row, options in TABLE_4.items()
    }
    parts = ("lasso", "pruning", "allocation")
    found = {row: tuple(settings[row].pop(part) for part in parts) for row in settings}
    for row in settings:  # Belongs to the allocation.
        starts = settings[row].pop("starts_from_one_bit")
        assert starts == (found[row][2] != UNIFORM)
    pruning = Pruning(THRESHOLD, saturates=True, end=0.75)
    assert found == {
        "AQFL": (0.0, None, UNIFORM),
        "Lasso": (LASSO, None, UNIFORM),
        "MSB": (0.0, pruning, UNIFORM),
        "MSB+Lasso": (LASSO, pruning, UNIFORM),
        "MSB+Alg.2": (0.0, pruning, ("pruning_growing", distortion_order)),
        "all": (LASSO, pruning, ("pruning_growing", distortion_order)),
    }
    assert all(others == settings["all"] for others in settings.values())


@pytest.mark.parametrize("reading", ["", "_literal"])
def test_the_first_row_of_table_4_is_the_scheme_aqfl(reading):
    """The paper does not state how AQFL weighs clients."""
    aqfl = settings_of(compose(f"aqfl{reading}"))
    options = {**_NOTHING, "aggregation_weight": aqfl["training"]["aggregation_weight"]}
    first_row = settings_of(compose(f"fedmpq{reading}", **options))
    assert {**aqfl, "name": "fedmpq"} == first_row
    assert aqfl["training"]["aggregation_weight"] == "examples"


@pytest.fixture(scope="module")
def table_4(runtime, problem):
    """Row -> what is known after two rounds of all clients."""
    found = {}
    for row, options in TABLE_4.items():
        process = build_process(*problem.setting, problem.config(**options), seed=5)
        state = process.initialize()
        for _ in range(2):
            output = process.next(state, problem.client_ids)
            state = output.state
        found[row] = output
    return found


@pytest.mark.slow
def test_the_rows_of_table_4_decide_different_bit_widths(table_4):
    tables = {
        row: output.metrics["bit_widths"].tolist() for row, output in table_4.items()
    }
    uniform = [[4, 4], [8, 8], [5, 5], [2, 2]]
    for row in ("AQFL", "Lasso", "MSB", "MSB+Lasso"):  # Nobody decides.
        assert tables[row] == uniform
    decided = [uniform, tables["MSB+Alg.2"], tables["all"]]
    assert len({str(table) for table in decided}) == 3, tables


@pytest.mark.slow
def test_the_rows_of_table_4_send_different_bit_widths(table_4):
    """Without allocation, pruning still lowers the bits sent, more so with Lasso."""
    sent = {row: output.metrics["mean_bit_widths"] for row, output in table_4.items()}
    np.testing.assert_array_equal(sent["AQFL"], sent["Lasso"])
    for lower, higher in (("MSB", "AQFL"), ("MSB+Lasso", "MSB")):
        assert np.all(sent[lower] <= sent[higher])
        assert np.any(sent[lower] < sent[higher])
    assert np.any(sent["MSB+Alg.2"] != sent["MSB"])
    assert np.any(sent["MSB+Alg.2"] != sent["all"])


# --- what goes up -----------------------------------------------------------

RESNET20_WEIGHTS = 270_000  # Of the kernels, about.


@functools.cache
def float_resnet20():
    return resnet20()


def uplink_bits(name, budget, seed=0):
    """Returns the bits that a client with ResNet-20 sends, by `messages.BIT_ITEMS`.

    The trained model is the received one, each float weight moved by a small number.
    """
    scheme = compose(name)
    spec = ModelSpec.from_model(scheme.build_client_model(float_resnet20()))
    model = scheme.build_global_model(float_resnet20())
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
        bits[0] = scheme.uplink.coded_bits(symbols)
    return dict(zip(messages.BIT_ITEMS, bits.tolist())), spec


def quantize(scheme, spec, weights, budget):
    """The client's model: mixed bit-widths where the scheme decides on them."""
    if scheme.weights is None:
        return messages.QuantizedWeights(
            (), tf.zeros([0]), [], weights.float_parameters
        )
    budget, sizes = scheme.common_budget or budget, spec.layer_sizes
    table = scheme.allocation(
        tf.fill([1, len(sizes)], 4.0),
        tf.zeros([1, len(sizes)], tf.int32),
        sizes,
        tf.constant([budget], tf.float64),
    )[0]
    num_widths = len(set(table.numpy().tolist()))
    assert (num_widths > 1) == (scheme.allocation is not uniform_bit_widths)
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
