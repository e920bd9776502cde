"""Configurations: names, the user's own functions, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
import typing

import numpy as np
import pytest
import tensorflow as tf

from tff_fedmpq.allocation import ORDERS
from tff_fedmpq.baselines.fedpaq import FedPAQConfig
from tff_fedmpq.baselines.lattice import LATTICES
from tff_fedmpq.baselines.registry import SCHEMES
from tff_fedmpq.baselines.stochastic_quantizer import NORMS
from tff_fedmpq.baselines.uveqfed import UVeQFedConfig
from tff_fedmpq.federated.config import (
    CodeTrainingConfig,
    LocalTrainingConfig,
    allowed_names,
)
from tff_fedmpq.federated.fedmpq import FedMPQConfig, build_fedmpq
from tff_fedmpq.federated.local_training import DECAYS, learning_rates_at
from tff_fedmpq.federated.process import build_process
from tff_fedmpq.federated.scheme import AGGREGATION_WEIGHTS
from tff_fedmpq.keras import quantized_kernels
from tff_fedmpq.keras.optimizers import LEARNING_RATE_UNITS
from tff_fedmpq.quantization.code_updates import STEP_ROUNDINGS
from tff_fedmpq.quantization.representations import REPRESENTATIONS
from tff_fedmpq.quantization.scales import SCALE_RULES
from tff_fedmpq.simulation.config import ExperimentConfig

CONFIGS = list(
    dict.fromkeys(
        [
            LocalTrainingConfig,
            CodeTrainingConfig,
            *(type(make()) for make in SCHEMES.values()),
        ]
    )
)
# Name of a field -> names that it may have, by the registry that resolves them.
REGISTRIES = {
    "learning_rate_decay": DECAYS,
    "float_learning_rate_decay": DECAYS,
    "aggregation_weight": AGGREGATION_WEIGHTS,
    "scale_rule": SCALE_RULES,
    "representation": REPRESENTATIONS,
    "learning_rate_unit": dict.fromkeys(LEARNING_RATE_UNITS),
    "step_rounding": STEP_ROUNDINGS,
    "allocation": dict.fromkeys(["pruning_growing", "uniform"]),
    "order": ORDERS,
    "norm": NORMS,
    "on_client_error": dict.fromkeys(["skip", "raise"]),
    "lattice": LATTICES,
}

every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.__name__)


# --- names ------------------------------------------------------------------


@every_config
def test_names_are_those_of_the_registries(config):
    annotations = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        names = allowed_names(annotations[field.name])
        expected = REGISTRIES.get(field.name, {})
        assert sorted(names) == sorted(expected), field.name


def test_every_registry_has_a_field():
    fields = {field.name for config in CONFIGS for field in dataclasses.fields(config)}
    assert REGISTRIES.keys() <= fields


@pytest.mark.parametrize("name", list(SCHEMES))
def test_every_name_can_be_composed(name):
    annotations = typing.get_type_hints(type(SCHEMES[name]()))
    for field in dataclasses.fields(SCHEMES[name]()):
        for choice in allowed_names(annotations[field.name]):
            config = SCHEMES[name](**{field.name: choice})
            assert getattr(config, field.name) == choice
            config.compose()
            learning_rates_at(config, tf.constant(0))


def test_bases_describe_no_scheme():
    for config in (LocalTrainingConfig(), CodeTrainingConfig()):
        with pytest.raises(NotImplementedError, match=type(config).__name__):
            config.compose()


# --- the user's own functions -----------------------------------------------


def test_own_functions_reach_the_scheme():
    def own(*arguments):
        return arguments[0]

    scheme = FedMPQConfig(
        allocation=own, scale_rule=own, aggregation_weight=own
    ).compose()
    assert scheme.allocation is own
    assert scheme.weights.scale_rule is own
    assert scheme.aggregation_weight is own


def test_own_functions_decide_a_round(runtime, problem):
    """A round in which each of the four has an effect that no named one has."""

    def one_or_three_bits(mean_bit_widths, reductions, layer_sizes, budgets):
        bits = tf.where(budgets > 7, 3, 1)
        return tf.tile(bits[:, tf.newaxis], [1, len(layer_sizes)])

    def scale_of_seven(weights, bit_width, representation):
        return tf.constant(7.0)

    def bert_alone(budget, num_examples):
        return tf.where(budget > 7, num_examples, 0.0)

    process = problem.build(
        allocation=one_or_three_bits,
        scale_rule=scale_of_seven,
        aggregation_weight=bert_alone,
        learning_rate_decay=lambda fraction: tf.constant(0.0),
        pruning_threshold=None,
        error_feedback=True,
        rounds=3,
    )
    start = process.initialize()
    output = process.next(start, ["bert", "dora"])
    # "bert" has a budget of 8 bits, "dora" one of 2; only the former has weight.
    np.testing.assert_array_equal(output.metrics["mean_bit_widths"], [3, 3])
    table = output.metrics["bit_widths"]
    assert table.tolist() == [[1, 1], [3, 3], [1, 1], [1, 1]]
    model = process.device_model(start, "cléo")
    assert [float(k.scale) for k in quantized_kernels(model)] == [7, 7]
    # A rate of zero in the first round: the codes stay, the float parameters do not.
    old, new = (
        problem.split(state.global_model_weights) for state in (start, output.state)
    )
    for before, after in zip(old.kernels, new.kernels):
        np.testing.assert_allclose(after, before, atol=1e-6)
    assert np.any(old.float_parameters[0] != new.float_parameters[0])


def test_an_own_order_values_the_bits():
    """Bits of the first layer before all others."""

    def first_layer(layer_sizes, bit_reductions):
        is_first = tf.equal(tf.range(tf.size(layer_sizes)), 0)
        values = tf.tile(tf.cast(is_first, tf.float64)[tf.newaxis], [7, 1])
        return tf.tile(values[tf.newaxis], [tf.shape(bit_reductions)[0], 1, 1])

    scheme = FedMPQConfig(order=first_layer).compose()
    rows = scheme.allocation(
        tf.constant([[2.0, 2.0, 2.0]]),
        tf.zeros([1, 3], tf.int32),
        np.array([10, 10, 10]),
        tf.constant([3.0], tf.float64),
    )
    assert rows.numpy().tolist() == [[5, 2, 2]]


def test_an_own_decay_gets_the_fraction_of_rounds_done():
    config = FedMPQConfig(
        rounds=8,
        learning_rate=2.0,
        float_learning_rate=4.0,
        float_learning_rate_decay=lambda fraction: 1 - fraction,
        learning_rate_decay=lambda fraction: fraction**2,
    )
    rates = learning_rates_at(config, tf.constant(2))
    np.testing.assert_allclose(rates, [2 * 0.25**2, 4 * 0.75])


def test_an_own_norm_is_the_scale_of_updates():
    uplink = FedPAQConfig(norm=lambda x: 2 * tf.reduce_max(tf.abs(x))).compose().uplink
    message = uplink.encode_update(
        [tf.constant([[1.0, -3.0]])], tf.constant(4.0), tf.constant([0, 0])
    )
    np.testing.assert_array_equal(message["scales"], [6.0])


@pytest.mark.parametrize(
    "name", ["representation", "learning_rate_unit", "step_rounding"]
)
def test_some_options_have_names_only(name):
    with pytest.raises(ValueError, match=name):
        FedMPQConfig(**{name: object()})


# --- what is refused --------------------------------------------------------

NAN, INFINITY = float("nan"), float("inf")
OUT_OF_RANGE = {
    LocalTrainingConfig: {
        "rounds": [0, -1, 2.5, "3"],
        "epochs": [0, -1, 2.5, None, NAN],
        "batch_size": [0, 1.5, None],
        "max_examples": [0, -1, 1.5, None],
        "min_clients": [0, 2.5, None, "3"],
        "client_timeout_seconds": [0, -1.0, float("nan"), float("inf")],
        "dropout_rate": [-0.1, 1.0, float("nan")],
        "on_client_error": ["ignore", None],
        "learning_rate": [-0.1, NAN, INFINITY, None, "0.1"],
        "learning_rate_decay": ["linear", "", None, 1],
        "learning_rate_floor": [-0.1, 1.5, NAN],
        "momentum": [1.0, -0.1, NAN],
        "weight_decay": [-1e-4, NAN, INFINITY],
        "aggregation_weight": ["age", None, 2],
    },
    CodeTrainingConfig: {
        "float_learning_rate": [-0.1, NAN, INFINITY, None],
        "float_learning_rate_decay": ["linear", None],
        "learning_rate_unit": ["bit", None],
        "step_rounding": ["ceiling", None],
        "activation_bits": [0, 9, 2.5, "4"],
        "representation": ["ternary", 1, None],
        "scale_rule": ["min", None],
        "error_feedback": ["off", 0, None],
        "statistics_per_budget": ["off", 1, None],
    },
    FedMPQConfig: {
        "lasso": [-1.0, NAN, INFINITY, None],
        "pruning_threshold": [-0.1, 1.5, 2, NAN],
        "pruning_saturates": ["no", 1, None],
        "pruning_end": [-0.1, 1.5, NAN],
        "allocation": ["random", "rate_distortion", None],
        "order": ["bits", None],
    },
    FedPAQConfig: {"norm": ["l1", None]},
    UVeQFedConfig: {"lattice": ["cubic", None]},
}


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (config, name, value)
        for config, fields in OUT_OF_RANGE.items()
        for name, values in fields.items()
        for value in values
    ],
)
def test_a_value_out_of_range_is_refused_by_name(config, name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b") as error:
        config(**{name: value})
    message = str(error.value)
    assert "\n" not in message
    assert repr(value) in message or str(value) in message
    for known in REGISTRIES.get(name, ()):
        assert f"'{known}'" in message


@every_config
def test_every_field_is_tried(config):
    """Of those that the class itself declares."""
    own = set(config.__dict__.get("__annotations__", {})) - {"name"}
    inherited = {"aggregation_weight", "activation_bits"}
    assert own - inherited <= OUT_OF_RANGE.get(config, {}).keys()


@every_config
def test_unknown_fields_are_refused(config):
    with pytest.raises(TypeError, match="no_such_option"):
        config(no_such_option=1)


@every_config
def test_a_configuration_cannot_be_changed(config):
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().epochs = 2
    changed = dataclasses.replace(config(), epochs=2)
    assert changed.epochs == 2 and changed != config()
    assert hash(changed) != hash(config())


@pytest.mark.parametrize("value", [0, 1, 0.5, None])
def test_bounds_are_allowed(value):
    config = FedMPQConfig(pruning_threshold=value, lasso=0, momentum=0, weight_decay=0)
    assert config.pruning_threshold == value
    assert FedMPQConfig(activation_bits=1).activation_bits == 1
    assert FedMPQConfig(activation_bits=8).activation_bits == 8
    assert FedMPQConfig(learning_rate=0).learning_rate == 0


# --- documentation and signatures -------------------------------------------


@pytest.mark.parametrize(
    "config", [*CONFIGS, ExperimentConfig], ids=lambda config: config.__name__
)
def test_every_field_is_documented(config):
    """Fields that a class adds, and only these, have a line under "Attributes:"."""
    text = inspect.cleandoc(config.__doc__)
    section = text.partition("Attributes:\n")[2].partition("\n\n")[0]
    documented = re.findall(r"^  (\w+): \S", section, re.M)
    bases = {
        field.name
        for base in config.__mro__[1:]
        if dataclasses.is_dataclass(base)
        for field in dataclasses.fields(base)
    }
    added = [f.name for f in dataclasses.fields(config) if f.name not in bases]
    assert documented == added


def build_functions():
    names = ("aqfl", "fedavg", "fedpaq", "fpq8", "uveqfed")
    modules = [importlib.import_module(f"tff_fedmpq.baselines.{n}") for n in names]
    builders = [getattr(m, f"build_{n}") for m, n in zip(modules, names)]
    return [build_fedmpq, *builders]


@pytest.mark.parametrize("build", build_functions(), ids=lambda f: f.__name__)
def test_builders_have_the_arguments_of_build_process(build):
    """Spelled out, so that an editor shows them and a misspelling is an error."""
    parameters = inspect.signature(build).parameters
    expected = inspect.signature(build_process).parameters
    assert list(parameters) == list(expected)
    for name, parameter in parameters.items():
        assert parameter.kind is expected[name].kind
        assert parameter.kind is not inspect.Parameter.VAR_KEYWORD
        if name != "config":
            assert parameter.default == expected[name].default
    scheme = build.__name__.removeprefix("build_")
    assert parameters["config"].default == SCHEMES[scheme]()


@pytest.mark.parametrize(
    "module",
    [
        "tff_fedmpq",
        "tff_fedmpq.federated.config",
        "tff_fedmpq.federated.fedmpq",
        "tff_fedmpq.baselines.registry",
        "tff_fedmpq.simulation.config",
        "tff_fedmpq.simulation.data",
    ],
)
def test_settings_do_not_wait_for_tensorflow(module):
    """Neither to be imported, nor to be made."""
    code = (
        f"import sys, {module}\n"
        "from tff_fedmpq.baselines.registry import SCHEMES\n"
        "[make() for make in SCHEMES.values()]\n"
        "print([m for m in sys.modules if m.split('.')[0].startswith('tensorflow')])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.stdout.strip() == "[]", found.stderr
