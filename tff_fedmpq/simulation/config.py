"""Settings of a run, presets, and the command-line flags derived from them.

`ExperimentConfig` and the scheme's own configuration decide the outcome of a run; paths
are no part of them. `make_config` takes the settings of both by name, so a setting is
declared once: as a field of a dataclass, whose docstring also is the flag's help.
"""

# Not `from __future__ import annotations`; see `federated.config`.
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, Optional, Union, get_args, get_type_hints

from absl import flags

from tff_fedmpq.baselines.registry import SCHEMES
from tff_fedmpq.federated.config import (
    LITERAL_CODE_TRAINING,
    CodeTrainingConfig,
    LocalTrainingConfig,
    allowed_names,
)
from tff_fedmpq.federated.fedmpq import FedMPQConfig
from tff_fedmpq.lookup import check_bool, check_count, check_name
from tff_fedmpq.simulation.compute import AUTO, DTYPE_POLICIES, resolve_compute
from tff_fedmpq.simulation.models import MODEL_DEPTHS
from tff_fedmpq.simulation.populations import tiered_budgets


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Settings of a run beside those of its scheme. Defaults are the paper's set-up.

    Attributes:
      scheme: Configuration of the scheme, with the number of rounds.
      dataset: Name of the data set.
      train_examples: Number of training images to use, drawn by the seed; None uses
        all.
      validation_examples: Number of further training images, drawn by the seed, that
        replace the test images, for tuning; None evaluates on the test images.
      model: Name of the network; None is the data set's own.
      alpha: Concentration of the Dirichlet partition; smaller is more heterogeneous.
      num_clients: Number of clients.
      budgets: Bits per weight of each client, 1 to 8, fractions allowed; () gives 20,
        30, 30 and 20 % of the clients 2, 4, 6 and 8 bits, as in the paper.
      clients_per_round: Number of clients that train in a round.
      device_rounds: Number of last rounds after which the models that devices get are
        evaluated, beside the global model.
      augment: Whether training images are augmented, in the way of the data set.
      compute: Number format of the layers on clients; "auto" is bfloat16 for quantized
        schemes on processors with instructions for it, else float32.
      seed: Seed of all randomness.

    Raises:
      ValueError: naming the setting, what it may be and what was found.
    """

    scheme: LocalTrainingConfig = FedMPQConfig(rounds=50)
    dataset: str = "cifar10"
    train_examples: Optional[int] = None
    validation_examples: Optional[int] = None
    model: Optional[str] = None
    alpha: float = 0.5
    num_clients: int = 10
    budgets: Sequence[float] = ()
    clients_per_round: int = 5
    device_rounds: int = 1
    augment: bool = True
    compute: str = AUTO
    seed: int = 0

    def __post_init__(self) -> None:
        check_count(self.scheme.rounds or 0, "rounds")
        for name in ("num_clients", "clients_per_round", "device_rounds"):
            check_count(getattr(self, name), name)
        for name in ("train_examples", "validation_examples"):
            if getattr(self, name) is not None:
                check_count(getattr(self, name), name)
        check_bool(self.augment, "augment")
        _require(
            math.isfinite(self.alpha) and self.alpha > 0, "alpha", "above 0", self.alpha
        )
        _require(
            self.clients_per_round <= self.num_clients,
            "clients_per_round",
            f"at most the number of clients, {self.num_clients}",
            self.clients_per_round,
        )
        _require(0 <= self.seed < 2**31, "seed", "from 0 to 2**31 - 1", self.seed)
        if self.model is not None:
            check_name(self.model, MODEL_DEPTHS, "model")
        is_quantized = isinstance(self.scheme, CodeTrainingConfig)
        compute = resolve_compute(self.compute, is_quantized)
        object.__setattr__(self, "compute", compute)
        budgets = tuple(map(float, self.budgets)) or tiered_budgets(self.num_clients)
        _require(
            len(budgets) == self.num_clients,
            "budgets",
            f"one number per client, {self.num_clients} in all",
            list(budgets),
        )
        valid = all(1 <= budget <= 8 for budget in budgets)
        _require(valid, "budgets", "1 to 8 bits per weight", list(budgets))
        object.__setattr__(self, "budgets", budgets)

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        return self.scheme.rounds or 0

    @property
    def dtype_policy(self) -> Optional[str]:
        """Keras policy of `compute`."""
        return DTYPE_POLICIES[self.compute]

    def as_dict(self) -> dict[str, Any]:
        """Returns all settings by name, ready for JSON."""
        parts: tuple[Any, ...] = (self, self.scheme)
        settings = {
            field.name: getattr(part, field.name)
            for part in parts
            for field in dataclasses.fields(part)
        }
        settings["scheme"] = self.scheme.name
        settings["budgets"] = list(self.budgets)
        return {name: _as_json(value) for name, value in settings.items()}


# Preset -> data set, or "" for all -> settings that differ from the defaults.
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "paper": {"": {"rounds": 50}},
    # Minutes on two cores: few images, a small network, all clients in every round.
    "quick": {
        "": {
            "rounds": 8,
            "epochs": 1,
            "clients_per_round": 10,
            "train_examples": 10_000,
            "model": "resnet8",
        },
        # Chosen on held-out training images at alpha 0.1, where clients drift apart.
        "digits": {
            "rounds": 30,
            "batch_size": 16,
            "learning_rate": 0.2,
            "float_learning_rate_decay": "cosine",
        },
    },
}


def make_config(
    preset: str = "paper",
    scheme: str = "fedmpq",
    *,
    dataset: str = "cifar10",
    **settings: Any,
) -> ExperimentConfig:
    """Returns the configuration of a preset with some settings replaced.

    Args:
      preset: Name in `PRESETS`.
      scheme: Name in `SCHEMES`.
      dataset: Name of the data set.
      **settings: Settings by name, of `ExperimentConfig` or of the scheme.

    Raises:
      ValueError: for an unknown name, or a setting that is out of range or that the
        scheme does not have.
    """
    check_name(preset, PRESETS, "preset")
    check_name(scheme, SCHEMES, "scheme")
    of_scheme = field_names(SCHEMES[scheme]())
    of_experiment = field_names(ExperimentConfig) - {"scheme"}
    unknown = sorted(set(settings) - of_scheme - of_experiment)
    if unknown:
        raise ValueError(
            f"{scheme} has no settings {unknown}; it has "
            f"{sorted(of_scheme | of_experiment)}."
        )
    chosen = {**PRESETS[preset][""], **PRESETS[preset].get(dataset, {})}
    if scheme.endswith("_literal"):  # Keeps the paper's settings.
        chosen = {k: v for k, v in chosen.items() if k not in LITERAL_CODE_TRAINING}
    chosen |= settings
    return ExperimentConfig(
        scheme=SCHEMES[scheme](**{k: v for k, v in chosen.items() if k in of_scheme}),
        dataset=dataset,
        **{k: v for k, v in chosen.items() if k in of_experiment},
    )


def field_names(config: Any) -> set[str]:
    """Returns the names of the fields of a dataclass, or of an instance."""
    return {field.name for field in dataclasses.fields(config)}


class _SettingParser(flags.ArgumentParser):
    """Parses the text of a flag as the type of a field; "none" stands for None."""

    def __init__(self, annotation: Any):
        super().__init__()
        self._is_optional = type(None) in get_args(annotation)
        self._names = allowed_names(annotation)
        types = [t for t in (annotation, *get_args(annotation)) if t in _PARSERS]
        self._parse: Any = _PARSERS[types[0]] if types else str
        self.syntactic_help = "|".join(self._names)

    def flag_type(self) -> str:
        """Returns the type that `--help` shows."""
        return (
            "name"
            if self._names
            else getattr(self._parse, "__name__", "value").lstrip("_")
        )

    def parse(self, argument: Any) -> Any:
        """Returns the value, or `_NONE` for None.

        Raises:
          ValueError: if the text is not of the field's type.
        """
        if not isinstance(argument, str):
            return argument
        if self._is_optional and argument.lower() == "none":
            return _NONE
        if self._names:
            check_name(argument, dict.fromkeys(self._names), "name")
        return self._parse(argument)


def _bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"expected true or false, found {text!r}")
    return text.lower() == "true"


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part.strip())


_NONE = object()  # Stands for None, which is absl's value of a flag not given.
_PARSERS: dict[Any, Callable[[str], Any]] = {
    bool: _bool,
    int: int,
    float: float,
    Sequence[float]: _numbers,
}


def define_flags() -> None:
    """Defines a flag for every setting of a run and of all schemes.

    The flags have no default of their own; `read_flags` returns those that were given.
    """
    for name, (annotation, text) in _settings().items():
        if name != "dataset":
            flags.DEFINE(_SettingParser(annotation), name, None, text)


def read_flags() -> dict[str, Any]:
    """Returns the settings that were given on the command line, by name."""
    given = {
        name: flags.FLAGS[name].value
        for name in _settings()
        if name != "dataset" and flags.FLAGS[name].present
    }
    return {k: None if v is _NONE else v for k, v in given.items()}


def _settings() -> dict[str, tuple[Any, str]]:
    """Returns type and help of every setting, by name."""
    found: dict[str, tuple[Any, str]] = {}
    holders: dict[str, dict[str, Any]] = {}
    for scheme, make in SCHEMES.items():
        configs: tuple[Any, ...] = (ExperimentConfig(), make())
        for config in configs:
            annotations = get_type_hints(type(config))
            documented = _documented(type(config))
            for field in dataclasses.fields(config):
                if field.name != "scheme":
                    text = documented[field.name]
                    found[field.name] = (annotations[field.name], text)
                    value = getattr(config, field.name)
                    holders.setdefault(field.name, {})[scheme] = value
    return {
        name: (annotation, f"{text} {_defaults(name, holders[name])}")
        for name, (annotation, text) in found.items()
    }


def _defaults(name: str, values: Mapping[str, Any]) -> str:
    """Returns a sentence on the default of a setting in schemes and presets."""
    literal = {k: v for k, v in values.items() if k.endswith("_literal")}
    of_schemes = {k: v for k, v in values.items() if k not in literal} or literal
    if len(set(map(repr, of_schemes.values()))) == 1:
        parts = [_text(next(iter(of_schemes.values())))]
    else:
        parts = [f"{_text(value)} ({scheme})" for scheme, value in of_schemes.items()]
    if len(values) < len(SCHEMES):
        parts.append(f"only in {', '.join(values)}")
    for preset, settings in PRESETS.items():
        parts += [
            f"{_text(changed[name])} ({' on '.join(filter(None, [preset, dataset]))})"
            for dataset, changed in settings.items()
            if name in changed
        ]
    return f"Default: {', '.join(parts)}."


def _text(value: Any) -> str:
    return (
        str(value).lower() if isinstance(value, bool) or value is None else str(value)
    )


def _documented(config: type) -> dict[str, str]:
    """Returns the "Attributes:" sections of a class and its bases, by name."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        section = (cls.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
        entries = re.findall(r"^      (\w+): (.*(?:\n        .*)*)", section, re.M)
        found |= {name: " ".join(text.split()) for name, text in entries}
    return found


def parse_seeds(texts: Iterable[str]) -> list[int]:
    """Returns seeds given as text.

    Raises:
      ValueError: for text that is not a whole number of at least 0.
    """
    seeds = []
    for text in texts:
        _require(text.strip().isdecimal(), "a seed", "a whole number, 0 or more", text)
        seeds.append(int(text))
    return seeds


def _as_json(value: Any) -> Any:
    if callable(value):
        return f"{value.__module__}:{value.__qualname__}"
    return value


def _require(condition: Union[bool, Any], name: str, expected: str, found: Any) -> None:
    if not condition:
        raise ValueError(f"{name} has to be {expected}; found {found!r}.")
