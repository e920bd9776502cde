"""Flags that are derived from the settings."""

from __future__ import annotations

import dataclasses

import pytest
import setting_flags
from absl import flags
from setting_flags import define_flags, read_flags

from tff_fedmpq.baselines.registry import SCHEMES
from tff_fedmpq.federated.fedmpq import FedMPQConfig
from tff_fedmpq.simulation.config import ExperimentConfig, field_names, make_config

every_scheme = pytest.mark.parametrize("scheme", list(SCHEMES))


def all_settings() -> set[str]:
    schemes = [field_names(make()) for make in SCHEMES.values()]
    return (field_names(ExperimentConfig) - {"scheme"}).union(*schemes)


@pytest.fixture
def parse():
    """Returns (arguments) -> settings that were given, of fresh flags."""
    names = all_settings() - {"dataset"}
    assert not names & set(flags.FLAGS)
    define_flags()

    def parse(*arguments):
        flags.FLAGS(["program", *arguments])
        return read_flags()

    yield parse
    for name in names:
        delattr(flags.FLAGS, name)


def test_every_setting_has_a_flag(parse):
    """But the data set, whose flag the programs define: they load it themselves."""
    for name in all_settings() - {"dataset"}:
        assert name in flags.FLAGS
    assert "dataset" not in flags.FLAGS
    assert parse() == {}


def test_only_given_flags_are_settings(parse):
    assert parse("--alpha=0.25", "--seed=0") == {"alpha": 0.25, "seed": 0}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("alpha", "0.1", 0.1),
        ("alpha", "1", 1.0),
        ("rounds", "12", 12),
        ("train_examples", "500", 500),
        ("train_examples", "none", None),
        ("train_examples", "None", None),
        ("activation_bits", "none", None),
        ("activation_bits", "3", 3),
        ("pruning_threshold", "none", None),
        ("pruning_threshold", "0.05", 0.05),
        ("model", "none", None),
        ("model", "resnet20", "resnet20"),
        ("augment", "false", False),
        ("augment", "True", True),
        ("error_feedback", "FALSE", False),
        ("budgets", "2,4,6.5", (2.0, 4.0, 6.5)),
        ("budgets", "", ()),
        ("budgets", "2, 40kB,8", (2.0, "40kB", 8.0)),
        ("allocation", "uniform", "uniform"),
        ("aggregation_weight", "examples", "examples"),
        # A name, though it also is the word for None.
        ("learning_rate_decay", "none", "none"),
        ("lattice", "integer", "integer"),
    ],
)
def test_text_is_parsed_as_the_fields_type(parse, name, text, value):
    found = parse(f"--{name}={text}")
    assert found == {name: value}
    assert type(found[name]) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("alpha", "low"),
        ("alpha", "none"),
        ("rounds", "2.5"),
        ("rounds", ""),
        ("augment", "yes"),
        ("budgets", "2,four"),
        ("allocation", "keep"),
        ("allocation", "none"),
        ("representation", "ternary"),
        ("pruning_threshold", "few"),
    ],
)
def test_text_of_another_type_is_refused_by_name(parse, name, text):
    with pytest.raises(flags.IllegalFlagValueError, match=f"flag --{name}="):
        parse(f"--{name}={text}")


@every_scheme
def test_the_settings_of_a_scheme_survive_the_command_line(parse, scheme):
    """Each setting, written as a flag, gives the configuration back."""
    config = make_config("quick", scheme)
    arguments = []
    for name, value in config.as_dict().items():
        if name not in ("scheme", "dataset"):
            text = ",".join(map(str, value)) if isinstance(value, list) else value
            arguments.append(f"--{name}={text}")
    assert make_config("paper", scheme, **parse(*arguments)) == config


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("alpha", "Concentration of the Dirichlet partition"),
        ("alpha", "Default: 0.5."),
        ("rounds", "50 (paper), 18 (quick)"),
        ("epochs", "Default: 5, 1 (quick)."),
        ("train_examples", "Default: none, 10000 (quick)."),
        ("augment", "Default: true, false (quick)."),
        ("lasso", "Default: 0.0, only in fedmpq, fedmpq_literal."),
        ("norm", "Default: max, only in fedpaq."),
        ("allocation", "Default: pruning_growing"),
        ("order", "Default: distortion, only in fedmpq, fedmpq_literal."),
        ("activation_bits", "8 (fpq8), 4 (aqfl), 4 (fedmpq)"),
        ("aggregation_weight", "Default: examples."),
        ("learning_rate", "Default: 0.1, 0.4 (quick), 0.2 (quick on digits)."),
    ],
)
def test_help_says_what_a_setting_is_and_its_defaults(parse, name, words):
    assert words in flags.FLAGS[name].help


def test_help_lists_names_and_types(parse):
    parser = flags.FLAGS["allocation"].parser
    assert set(parser.syntactic_help.split("|")) == {"pruning_growing", "uniform"}
    types = {
        name: flags.FLAGS[name].flag_type()
        for name in ("allocation", "alpha", "rounds", "augment", "budgets", "model")
    }
    assert types == {
        "allocation": "name",
        "alpha": "float",
        "rounds": "int",
        "augment": "bool",
        "budgets": "budgets",
        "model": "str",
    }


def test_help_is_in_whole_sentences(parse):
    """Those of the dataclasses: nothing is cut off, none is empty."""
    for name in all_settings() - {"dataset"}:
        text = flags.FLAGS[name].help
        assert "  " not in text and "\n" not in text
        assert text[0].isupper() or text.startswith("L2")
        assert text.endswith(".") and ". Default: " in text


def test_a_field_without_documentation_has_no_flag(monkeypatch):
    """Which the first program that is started tells."""

    @dataclasses.dataclass(frozen=True)
    class Undocumented(FedMPQConfig):
        """Has a field of its own."""

        extra: int = 1

    monkeypatch.setattr(setting_flags, "SCHEMES", {"undocumented": Undocumented})
    with pytest.raises(KeyError, match="extra"):
        define_flags()
