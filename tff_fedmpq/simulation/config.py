"""Everything that decides the outcome of a run, checked, in one place.

Two runs of one `ExperimentConfig` give the same results ("auto" may find another data
set); where files lie and how often something is printed is not part of it. Presets are
settings by name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tff_fedmpq.allocation.budgets import check_budgets, tiered_budgets
from tff_fedmpq.federated.local_training import DECAYS
from tff_fedmpq.federated.schemes import build_scheme, explicit_options
from tff_fedmpq.lookup import check_bool, check_count
from tff_fedmpq.simulation.compute import AUTO, DTYPE_POLICIES, resolve_compute
from tff_fedmpq.simulation.models import MODEL_DEPTHS

_COUNTS = ("num_clients", "clients_per_round", "rounds", "local_epochs", "batch_size")


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """The protocol of a run. Defaults are the paper's set-up (its section 5).

    How codes learn is the scheme's own.

    Attributes:
      scheme: name of the scheme.
      scheme_options: further arguments of the scheme's function, that are no settings
        here; those left at their defaults are added, so that a run says what it did
        when a default has changed.
      dataset: name of the data set, or "auto".
      train_examples: how many training images are used, at most, drawn by the seed;
        None = all.
      validation_examples: how many other training images, drawn by the seed, take the
        place of the test images: for choosing settings. None = the test images.
      model: name in `models.MODEL_DEPTHS`.
      alpha: of the Dirichlet partition; small is heterogeneous.
      num_clients: N.
      budgets: v_n, bits per weight of each client; none given = the paper's shares of
        2, 4, 6 and 8 bits.
      clients_per_round: how many of them train in a round.
      rounds: communication rounds.
      local_epochs: tau.
      batch_size: of local training.
      learning_rate: eta, of quantized kernels, in the unit that the scheme option
        `learning_rate_unit` names; None = the scheme's own. Float models have none.
      learning_rate_decay: "none", or "cosine": eta falls to zero over the rounds; None
        = the scheme's own.
      float_learning_rate: of BatchNorm and biases; in a float model, of all weights.
      float_learning_rate_decay: the same of it; the paper's does not fall.
      momentum: of local SGD.
      weight_decay: of local SGD.
      augment: whether training images are cropped and flipped at random.
      compute: "float32" or "bfloat16", of the layers on clients; "auto" becomes
        bfloat16 for quantized schemes on processors that are faster in it.
      seed: of everything random.
    """

    scheme: str = "fedmpq"
    scheme_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dataset: str = "cifar10"
    train_examples: int | None = None
    validation_examples: int | None = None
    model: str = "resnet20"
    alpha: float = 0.5
    num_clients: int = 10
    budgets: Sequence[float] = ()
    clients_per_round: int = 5
    rounds: int = 50
    local_epochs: int = 5
    batch_size: int = 64
    learning_rate: float | None = None
    learning_rate_decay: str | None = None
    float_learning_rate: float = 0.1
    float_learning_rate_decay: str = "none"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: bool = True
    compute: str = AUTO
    seed: int = 0

    def __post_init__(self):
        """Checks every setting.

        Raises:
          ValueError: naming the setting, what it may be and what was found.
        """
        for name in _COUNTS:
            check_count(getattr(self, name), name)
        check_bool(self.augment, "augment")
        settings = {field.name for field in dataclasses.fields(self)} | {"epochs"}
        shared = sorted(settings & set(self.scheme_options))
        _require(not shared, "scheme_options", "without settings of a run", shared)
        scheme = build_scheme(self.scheme, {})
        options = explicit_options(self.scheme, self.scheme_options)
        object.__setattr__(self, "scheme_options", options)
        for name in ("learning_rate", "learning_rate_decay"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(scheme.training, name))
        for name in ("alpha", "learning_rate", "float_learning_rate"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, "above 0", value)
        _require(
            self.clients_per_round <= self.num_clients,
            "clients_per_round",
            f"at most the number of clients, {self.num_clients}",
            self.clients_per_round,
        )
        for name in ("train_examples", "validation_examples"):
            count = getattr(self, name)
            if count is not None:
                check_count(count, name)
        for name in ("learning_rate_decay", "float_learning_rate_decay"):
            decay = getattr(self, name)
            _require(decay in DECAYS, name, _one_of(DECAYS), decay)
        _require(self.model in MODEL_DEPTHS, "model", _one_of(MODEL_DEPTHS), self.model)
        compute = resolve_compute(self.compute, scheme.weights is not None)
        object.__setattr__(self, "compute", compute)
        _require(0 <= self.momentum < 1, "momentum", "from 0 to below 1", self.momentum)
        _require(self.weight_decay >= 0, "weight_decay", "0 or more", self.weight_decay)
        _require(self.seed >= 0, "seed", "0 or more", self.seed)
        budgets: Sequence[float] = self.budgets
        if len(budgets) == 0:
            budgets = tiered_budgets(self.num_clients).tolist()
        _require(
            len(budgets) == self.num_clients,
            "budgets",
            f"one number per client, {self.num_clients} in all",
            list(budgets),
        )
        checked = tuple(check_budgets(budgets).tolist())
        object.__setattr__(self, "budgets", checked)

    @property
    def dtype_policy(self) -> str | None:
        """The Keras policy that `compute` stands for."""
        return DTYPE_POLICIES[self.compute]

    def as_dict(self) -> dict[str, Any]:
        """Returns all settings, ready for JSON."""
        settings = dataclasses.asdict(self)
        settings["budgets"] = list(self.budgets)
        settings["scheme_options"] = dict(self.scheme_options)
        return settings


# What files of earlier runs do not mention, and how those behaved.
_FORMER_SETTINGS: Mapping[str, Any] = {"float_learning_rate_decay": "none"}


def complete_protocol(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run, those too that were no settings at its time.

    Args:
      protocol: `ExperimentConfig.as_dict` of this version or an earlier one.
    """
    return {**_FORMER_SETTINGS, **protocol}


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The set-up of the paper: ExperimentConfig's defaults.
    "paper": {},
    # Ends within three minutes on two cores: a fifth of the images, a small network,
    # and everyone in every round, which few rounds need most.
    "quick": {
        "train_examples": 10_000,
        "model": "resnet8",
        "rounds": 8,
        "local_epochs": 1,
        "clients_per_round": 10,
    },
}


def config_from_preset(preset: str, **overrides: Any) -> ExperimentConfig:
    """Returns a preset's configuration with some settings replaced.

    Args:
      preset: name in `PRESETS`.
      **overrides: settings of `ExperimentConfig`; None keeps the preset's.

    Raises:
      ValueError: for an unknown preset or a setting out of range.
    """
    _require(preset in PRESETS, "preset", _one_of(PRESETS), preset)
    given = {name: value for name, value in overrides.items() if value is not None}
    return ExperimentConfig(**{**PRESETS[preset], **given})


def parse_seeds(texts: Iterable[str]) -> list[int]:
    """Returns seeds that a user wrote.

    Raises:
      ValueError: for what is no whole number of 0 or more.
    """
    seeds = []
    for text in texts:
        _require(text.strip().isdecimal(), "a seed", "a whole number, 0 or more", text)
        seeds.append(int(text))
    return seeds


def _one_of(names: Iterable[str]) -> str:
    return "one of " + ", ".join(sorted(names))


def _require(condition: bool, name: str, expected: str, found: Any) -> None:
    if not condition:
        raise ValueError(f"{name} has to be {expected}; found {found!r}.")
