"""Settings of a run, and presets.

`ExperimentConfig` and the scheme's own configuration decide the outcome of a run; paths
are no part of them. `make_config` takes the settings of both by name, so a setting is
declared once: as a documented field of a dataclass.
"""

# Not `from __future__ import annotations`; see `federated.config`.
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Literal, Optional, Union, cast

from tff_fedmpq.baselines.registry import SCHEMES
from tff_fedmpq.federated.config import (
    LITERAL_CODE_TRAINING,
    CodeTrainingConfig,
    LocalTrainingConfig,
    allowed_names,
    check_not_negative,
)
from tff_fedmpq.federated.fedmpq import FedMPQConfig
from tff_fedmpq.lookup import (
    check_bool,
    check_count,
    check_name,
    kilobytes_of,
    lookup,
)
from tff_fedmpq.simulation.compute import AUTO, DTYPE_POLICIES, resolve_compute
from tff_fedmpq.simulation.models import MODEL_DEPTHS
from tff_fedmpq.simulation.populations import tiered_budgets

# Names here, objects in `federated.aggregation`; a test keeps them equal.
Aggregator = Union[
    Literal["clipping", "median", "trimmed_mean", "zeroing"], Callable[[], Any]
]
ServerOptimizer = Literal["adam", "momentum", "yogi"]


@dataclasses.dataclass(frozen=True)
class Workers:
    """Machines that train the clients of a run (`tff_fedmpq.worker`).

    Attributes:
      addresses: See `tff_fedmpq.remote_runtime`, also for the two below.
      tls_dir: Folder with this machine's certificate.
      insecure: Whether to use a network without TLS.
      clients_dir: Folder for the clients' files, which is kept. Workers read theirs in
        their `--data_dir`. None is one in the output directory.
    """

    addresses: tuple[str, ...]
    tls_dir: Optional[str] = None
    insecure: bool = False
    clients_dir: Optional[str] = None


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """Settings of a run beside those of its scheme. Defaults are the paper's set-up.

    A ValueError names the setting that is wrong, what it may be and what was found.

    Attributes:
      scheme: Configuration of the scheme, with the number of rounds.
      dataset: Name of the data set.
      train_examples: Number of training images to use, drawn by the seed; None uses
        all.
      validation_examples: Number of further training images, drawn by the seed, that
        replace the test images, for tuning; None evaluates on the test images.
      model: Name of the network, or a function of data set and seed that returns a
        Keras model; None is the data set's own.
      alpha: Concentration of the Dirichlet partition; smaller is more heterogeneous.
      num_clients: Number of clients.
      budgets: Bits per weight of each client, 1 to 8, fractions allowed, or the size of
        its model, such as 40kB; () gives 20, 30, 30 and 20 % of the clients 2, 4, 6 and
        8 bits, as in the paper.
      clients_per_round: Number of clients that train in a round.
      device_rounds: Number of last rounds after which the models that devices get are
        evaluated, beside the global model.
      aggregator: How clients' changes become one: "clipping", "zeroing", "median",
        "trimmed_mean", or a function that returns a TFF aggregation factory; None is
        the weighted mean.
      noise_multiplier: Noise of differential privacy over the norm that changes are
        clipped to; None neither adds noise nor clips.
      clipping_norm: That norm; None adapts it to the median of the clients' from 0.1
        on, as `tff.learning.dp_aggregator` does.
      server_optimizer: Optimizer of the server: "momentum" (FedAvgM), "adam" or "yogi"
        (FedAdam, FedYogi); None adds the clients' change.
      server_learning_rate: Learning rate of `server_optimizer`.
      augment: Whether training images are augmented, in the way of the data set.
      compute: Number format of the layers on clients; "auto" is bfloat16 for quantized
        schemes on processors with instructions for it, else float32.
      seed: Seed of all randomness.
    """

    scheme: LocalTrainingConfig = FedMPQConfig(rounds=50)
    dataset: str = "cifar10"
    train_examples: Optional[int] = None
    validation_examples: Optional[int] = None
    model: Optional[Union[str, Callable[[Any, int], Any]]] = None
    alpha: float = 0.5
    num_clients: int = 10
    budgets: Sequence[Union[float, str]] = ()
    clients_per_round: int = 5
    device_rounds: int = 1
    aggregator: Optional[Aggregator] = None
    noise_multiplier: Optional[float] = None
    clipping_norm: Optional[float] = None
    server_optimizer: Optional[ServerOptimizer] = None
    server_learning_rate: Optional[float] = None
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
        if self.model is not None and not callable(self.model):
            check_name(self.model, MODEL_DEPTHS, "model")
        self._check_server()
        is_quantized = isinstance(self.scheme, CodeTrainingConfig)
        compute = resolve_compute(self.compute, is_quantized)
        object.__setattr__(self, "compute", compute)
        clients = self.num_clients
        given = (b if "kB" in str(b) else float(b) for b in self.budgets)
        budgets: tuple[Any, ...] = tuple(given) or tiered_budgets(clients)
        object.__setattr__(self, "budgets", budgets)
        self._require("alpha", 0 < self.alpha < math.inf, "above 0 and finite")
        at_most = f"at most the number of clients, {clients}"
        self._require("clients_per_round", self.clients_per_round <= clients, at_most)
        self._require("seed", 0 <= self.seed < 2**31, "from 0 to 2**31 - 1")
        per_client = f"one number per client, {clients} in all"
        self._require("budgets", len(budgets) == clients, per_client)
        is_valid = all(
            kilobytes_of(b) > 0 if isinstance(b, str) else 1 <= b <= 8 for b in budgets
        )
        self._require("budgets", is_valid, "1 to 8 bits per weight")

    def _check_server(self) -> None:
        for name, kind in (
            ("aggregator", Aggregator),
            ("server_optimizer", ServerOptimizer),
        ):
            value = getattr(self, name)
            if value is not None and not (callable(value) and name == "aggregator"):
                check_name(value, dict.fromkeys(allowed_names(kind)), name)
        for name in ("noise_multiplier", "server_learning_rate"):
            if getattr(self, name) is not None:
                check_not_negative(getattr(self, name), name)
        if self.aggregator is not None and self.noise_multiplier is not None:
            raise ValueError("noise_multiplier has an aggregator of its own; set one.")
        if self.clipping_norm is not None:
            check_not_negative(self.clipping_norm, "clipping_norm")
            self._require("clipping_norm", self.clipping_norm > 0, "above 0")
            if self.noise_multiplier is None:
                raise ValueError("clipping_norm goes with noise_multiplier.")
        if (self.server_optimizer is None) != (self.server_learning_rate is None):
            raise ValueError("server_optimizer and server_learning_rate go together.")

    def _require(self, name: str, is_valid: bool, expected: str) -> None:
        if not is_valid:
            found = getattr(self, name)
            raise ValueError(f"{name} has to be {expected}; found {found!r}.")

    @property
    def rounds(self) -> int:
        """The scheme's number of rounds."""
        return self.scheme.rounds or 0

    @property
    def dtype_policy(self) -> Optional[str]:
        """Keras policy of `compute`."""
        return DTYPE_POLICIES[self.compute]

    def as_dict(self) -> dict[str, Any]:
        """Returns all settings by name, ready for JSON."""
        settings = {
            field.name: getattr(part, field.name)
            for part in cast(tuple[Any, ...], (self, self.scheme))
            for field in dataclasses.fields(part)
        }
        settings |= {"scheme": self.scheme.name, "budgets": list(self.budgets)}
        for name, value in settings.items():
            if callable(value):
                known = value if hasattr(value, "__qualname__") else type(value)
                settings[name] = f"{known.__module__}:{known.__qualname__}"
        return settings


# Preset -> data set, or "" for all -> settings that differ from the defaults.
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "paper": {"": {"rounds": 50}},
    # Minutes on two cores: few images, a small network, all clients in every round.
    # Chosen on held-out training images.
    "quick": {
        "": {
            "rounds": 18,
            "epochs": 1,
            "batch_size": 32,
            "learning_rate": 0.4,
            "float_learning_rate_decay": "cosine",
            "num_clients": 4,
            "clients_per_round": 4,
            "train_examples": 10_000,
            "augment": False,
            "model": "resnet8",
        },
        "digits": {
            "rounds": 30,
            "batch_size": 16,
            "learning_rate": 0.2,
            "num_clients": 10,
            "clients_per_round": 10,
        },
    },
}


def make_config(
    preset: str = "paper",
    scheme: Union[str, Callable[..., LocalTrainingConfig]] = "fedmpq",
    *,
    dataset: str = "cifar10",
    **settings: Any,
) -> ExperimentConfig:
    """Returns the configuration of a preset with some settings replaced.

    `preset` is a name in `PRESETS`, `scheme` one in `SCHEMES` or the class of a
    configuration; settings are fields of `ExperimentConfig` or of the scheme's
    configuration. Raises ValueError for unknown names, and for a setting that is out of
    range or that the scheme does not have.
    """
    check_name(preset, PRESETS, "preset")
    build_scheme = lookup(scheme, SCHEMES, "scheme")
    of_scheme = field_names(build_scheme())
    of_experiment = field_names(ExperimentConfig) - {"scheme"}
    known = of_scheme | of_experiment
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"{scheme} has no settings {unknown}; it has {sorted(known)}.")
    chosen = {**PRESETS[preset][""], **PRESETS[preset].get(dataset, {})}
    if str(scheme).endswith("_literal"):  # Keeps the paper's settings.
        chosen = {k: v for k, v in chosen.items() if k not in LITERAL_CODE_TRAINING}
    chosen |= settings
    return ExperimentConfig(
        scheme=build_scheme(**{k: v for k, v in chosen.items() if k in of_scheme}),
        dataset=dataset,
        **{k: v for k, v in chosen.items() if k in of_experiment},
    )


def field_names(config: Any) -> set[str]:
    """Returns the names of the fields of a dataclass, or of an instance."""
    return {field.name for field in dataclasses.fields(config)}
