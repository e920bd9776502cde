"""Settings of a run: presets, settings by name, flags, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tff_fedmpq.baselines.registry import SCHEMES
from tff_fedmpq.federated.fedmpq import FedMPQConfig
from tff_fedmpq.simulation.config import (
    PRESETS,
    ExperimentConfig,
    field_names,
    make_config,
)

every_scheme = pytest.mark.parametrize("scheme", list(SCHEMES))

SMALL = {
    "dataset": "digits",
    "model": "resnet8",
    "num_clients": 4,
    "budgets": (2, 4, 6.5, 8),
    "clients_per_round": 2,
    "rounds": 2,
}


# --- presets and settings by name -------------------------------------------


def test_the_paper_preset_is_the_papers_protocol():
    config = make_config("paper")
    assert config == make_config() == ExperimentConfig()
    assert config.budgets == (2, 2, 4, 4, 4, 6, 6, 6, 8, 8)
    assert (config.dataset, config.model, config.alpha) == ("cifar10", None, 0.5)
    assert (config.num_clients, config.clients_per_round) == (10, 5)
    assert config.train_examples is None and config.validation_examples is None
    training = config.scheme
    assert training == FedMPQConfig(rounds=50)
    assert (config.rounds, training.epochs, training.batch_size) == (50, 5, 64)
    assert (training.momentum, training.weight_decay) == (0.9, 5e-4)


@every_scheme
def test_presets_are_of_all_schemes_and_data_sets(scheme):
    for preset in PRESETS:
        for dataset in ("cifar10", "cifar100", "digits"):
            config = make_config(preset, scheme, dataset=dataset)
            assert config.dataset == dataset
            assert config.scheme.name == scheme.removesuffix("_literal")
            quick = 30 if dataset == "digits" else 18
            assert config.rounds == {"paper": 50, "quick": quick}[preset]
            if scheme.endswith("_literal"):
                assert config.scheme.learning_rate == 0.1


def test_the_quick_preset_depends_on_the_data_set():
    images, digits = (make_config("quick", dataset=d) for d in ("cifar10", "digits"))
    assert (images.scheme.epochs, images.scheme.batch_size) == (1, 32)
    assert (digits.scheme.rounds, digits.scheme.batch_size) == (30, 16)
    assert (images.num_clients, digits.num_clients) == (4, 10)
    for config in (images, digits):
        assert config.model == "resnet8"
        assert config.clients_per_round == config.num_clients


def test_settings_replace_those_of_the_preset():
    config = make_config("quick", "fedpaq", alpha=0.1, epochs=4, norm="l2", seed=3)
    assert (config.alpha, config.seed) == (0.1, 3)
    assert (config.scheme.epochs, config.scheme.norm) == (4, "l2")
    assert config.rounds == make_config("quick").rounds


def test_literal_schemes_keep_their_own_settings():
    literal = make_config("paper", "fedmpq_literal", lasso=0.5)
    assert literal.scheme == FedMPQConfig.literal(rounds=50, lasso=0.5)
    changed = make_config("paper", "aqfl_literal", scale_rule="least_squares")
    assert changed.scheme.scale_rule == "least_squares"
    assert changed.scheme.representation == "offset_binary"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("quickest",), r"Unknown preset 'quickest'.*'paper', 'quick'"),
        (("paper", "fedprox"), "Unknown scheme 'fedprox'.*'fedmpq'"),
        ((None,), "Unknown preset None"),
    ],
)
def test_unknown_presets_and_schemes_are_answered_with_those_that_exist(
    arguments, words
):
    with pytest.raises(ValueError, match=words):
        make_config(*arguments)


@every_scheme
def test_unknown_settings_are_refused_with_those_that_exist(scheme):
    with pytest.raises(
        ValueError, match=r"has no settings \['local_epochs'\]"
    ) as error:
        make_config("paper", scheme, local_epochs=3)
    message = str(error.value)
    assert scheme in message and "\n" not in message
    for known in ("epochs", "alpha", *field_names(SCHEMES[scheme]())):
        assert f"'{known}'" in message


@pytest.mark.parametrize(
    ("scheme", "settings"),
    [
        ("fedavg", {"lasso": 0.1}),
        ("fedavg", {"float_learning_rate": 0.1}),
        ("fedpaq", {"lattice": "integer"}),
        ("uveqfed", {"norm": "max"}),
        ("uveqfed", {"activation_bits": 4}),
        ("aqfl", {"allocation": "uniform", "lasso": 0.1}),
        ("aqfl_literal", {"pruning_threshold": None}),
        ("fpq8", {"norm": "max"}),
        ("fedmpq", {"scheme_options": {}}),
        ("fedmpq", {"saturate": True}),
    ],
)
def test_settings_of_another_scheme_are_refused(scheme, settings):
    with pytest.raises(ValueError) as error:
        make_config("paper", scheme, **settings)
    assert f"{scheme} has no settings {sorted(settings)}" in str(error.value)


# --- values -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("budgets", (2, 4, 6, 9), "budgets has to be 1 to 8 bits"),
        ("budgets", (2, 4, 6, 0.5), "budgets has to be 1 to 8 bits"),
        ("budgets", (2, 4, 6, float("nan")), "budgets has to be 1 to 8 bits"),
        ("budgets", ("2", "4", "six", "8"), "'six'"),
        ("budgets", (2, 4, 6), "budgets has to be one number per client, 4"),
        ("alpha", 0.0, "alpha has to be above 0"),
        ("alpha", float("nan"), "alpha has to be above 0"),
        ("alpha", float("inf"), "alpha has to be above 0"),
        ("num_clients", 0, "num_clients has to be a whole number"),
        ("clients_per_round", 5, "at most the number of clients, 4"),
        ("clients_per_round", 0, "clients_per_round has to be a whole number"),
        ("device_rounds", 0, "device_rounds has to be a whole number"),
        ("rounds", 0, "rounds has to be a whole number of at least 1"),
        ("rounds", None, "rounds has to be a whole number of at least 1"),
        ("epochs", 2.5, "epochs has to be a whole number"),
        ("train_examples", 0, "train_examples has to be a whole number"),
        ("validation_examples", 0.5, "validation_examples has to be a whole number"),
        ("augment", "no", "augment has to be true or false"),
        ("model", "vgg", "Unknown model 'vgg'.*'resnet20'"),
        ("compute", "float8", "Unknown compute .float8."),
        ("seed", -1, "seed has to be from 0 to"),
        ("seed", 2**31, "seed has to be from 0 to"),
        ("learning_rate", -0.3, "learning_rate has to be 0 or more"),
        ("allocation", "keep", "Unknown allocation 'keep'.*'uniform'"),
    ],
)
def test_bad_settings_are_refused(setting, value, message):
    with pytest.raises(ValueError, match=message) as error:
        make_config(**{**SMALL, setting: value})
    assert "\n" not in str(error.value)


def test_budgets_are_any_sequence_of_numbers():
    of_array = make_config(**{**SMALL, "budgets": np.array(SMALL["budgets"])})
    assert of_array == make_config(**SMALL)
    assert of_array.budgets == (2.0, 4.0, 6.5, 8.0)


def test_budgets_follow_the_number_of_clients():
    config = make_config(num_clients=20)
    assert config.budgets == (2.0,) * 4 + (4.0,) * 6 + (6.0,) * 6 + (8.0,) * 4


# --- as JSON ----------------------------------------------------------------


@every_scheme
def test_a_dictionary_holds_every_setting_and_gives_the_configuration_back(scheme):
    config = make_config("quick", scheme, alpha=0.3, momentum=0.5, seed=7)
    settings = config.as_dict()
    assert json.loads(json.dumps(settings)) == settings
    expected = field_names(ExperimentConfig) | field_names(config.scheme)
    assert settings.keys() == expected
    assert settings.pop("scheme") == config.scheme.name
    # With all its settings, a literal scheme needs no name of its own.
    again = make_config("paper", config.scheme.name, **settings)
    assert again == config
    assert again.as_dict() == config.as_dict()


def test_own_functions_are_written_by_name():
    settings = make_config(allocation=own_allocation).as_dict()
    assert settings["allocation"] == f"{__name__}:own_allocation"
    json.dumps(settings)


def test_a_function_is_a_network_too():
    from tff_fedmpq.simulation.models import build_model_fn

    config = make_config(model=own_allocation)
    assert config.as_dict()["model"] == f"{__name__}:own_allocation"
    assert build_model_fn(config.model, "the data", 3)() == "the data"


def own_allocation(*arguments):
    """Stands for a user's own rule."""
    return arguments[0]


# --- the server ---------------------------------------------------------------


@pytest.mark.parametrize(("norm", "clipped"), [(None, [0.06, 0.08]), (2, [1.2, 1.6])])
def test_changes_are_clipped_to_a_norm(runtime, norm, clipped):
    """By default to that from which TFF's aggregator starts."""
    from tff_fedmpq._tff import tff
    from tff_fedmpq.simulation import experiment

    config = make_config(noise_multiplier=0, clipping_norm=norm, clients_per_round=2)
    factory = experiment._server_options(config)["aggregator"]
    process = factory.create(tff.TensorType(np.float32, [2]))
    output = process.next(process.initialize(), 2 * [np.float32([3, 4])])
    np.testing.assert_allclose(output.result, clipped, rtol=1e-5)


def test_names_of_the_server_are_those_of_objects():
    from tff_fedmpq.federated.aggregation import AGGREGATORS
    from tff_fedmpq.federated.config import allowed_names
    from tff_fedmpq.simulation import config, experiment

    assert set(allowed_names(config.Aggregator)) == set(AGGREGATORS)
    optimizers = set(allowed_names(config.ServerOptimizer))
    assert optimizers == set(experiment._SERVER_OPTIMIZERS)
    for name in optimizers:
        options = experiment._server_options(
            make_config(server_optimizer=name, server_learning_rate=0.1)
        )
        assert options["server_optimizer_fn"] is not None
        assert options["aggregator"] is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"aggregator": "mode"}, "Unknown aggregator 'mode'.*'median'"),
        ({"server_optimizer": "lamb"}, "Unknown server_optimizer 'lamb'.*'yogi'"),
        ({"server_optimizer": "adam"}, "go together"),
        ({"server_learning_rate": 0.1}, "go together"),
        ({"noise_multiplier": -1.0}, "noise_multiplier has to be 0 or more"),
        ({"noise_multiplier": 1.0, "aggregator": "median"}, "set one"),
        ({"clipping_norm": 1.0}, "goes with noise_multiplier"),
        ({"noise_multiplier": 1.0, "clipping_norm": 0.0}, "has to be above 0"),
    ],
)
def test_refuses_other_servers(settings, words):
    with pytest.raises(ValueError, match=words):
        make_config(**settings)
