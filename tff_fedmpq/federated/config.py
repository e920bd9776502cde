"""Typed settings of local training, which every scheme's configuration extends.

    LocalTrainingConfig            SGD on float weights
      CodeTrainingConfig           integer updates of quantized kernels
        FedMPQConfig (fedmpq.py), AQFLConfig, FPQ8Config
      FedAvgConfig, FedPAQConfig, UVeQFedConfig

Options with a name also accept the user's own callable. Importing this module does not
import TensorFlow: command lines derive their flags from these classes.
"""

# Not `from __future__ import annotations`: flags are derived from evaluated types, and
# Python 3.9 cannot evaluate `int | None`.
import dataclasses
import math
import typing
from typing import Any, Callable, ClassVar, Literal, NamedTuple, Optional, Union

from tff_fedmpq.lookup import check_bool, check_count, check_name

if typing.TYPE_CHECKING:
    from tff_fedmpq.federated.scheme import Scheme

# Names here, objects in `local_training`, `scheme`, `quantization.scales` and
# `fedmpq`; `tests/federated/config_test.py` keeps them equal.
Decay = Union[Literal["none", "cosine"], Callable[..., Any]]
AggregationWeight = Union[
    Literal["examples", "budget_and_examples"], Callable[..., Any]
]
ScaleRule = Union[Literal["widening", "least_squares", "max"], Callable[..., Any]]
Representation = Literal["sign_magnitude", "offset_binary"]
LearningRateUnit = Literal["weight", "code"]
StepRounding = Literal["nearest", "up"]
OnClientError = Literal["skip", "raise"]


# A number, or a function from the round, from 0, such as a Keras schedule.
LearningRate = Union[float, Callable[..., Any]]


class Rate(NamedTuple):
    """A learning rate: that of the first round, and its decay over the run.

    A rate that is a function of the round does not decay.
    """

    initial: LearningRate
    decay: Decay


def allowed_names(annotation: Any) -> tuple[str, ...]:
    """Returns the names that a field's type lists, () if it lists none."""
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return parts
    return tuple(name for part in parts for name in allowed_names(part))


@dataclasses.dataclass(frozen=True)
class LocalTrainingConfig:
    """SGD of a client on its own examples, and the client's weight in the average.

    A setting that is out of range or unknown raises ValueError.

    Attributes:
      rounds: Rounds of the whole run, over which learning rates decay. None keeps them
        constant. After these rounds a rate that decays stays at its final value.
      epochs: Passes over the client's examples per round, the paper's tau.
      batch_size: Examples per step; the last step of an epoch may have fewer.
      learning_rate: Learning rate of weights; of quantized kernels where there are any.
        A function of the round, from 0, such as a Keras schedule, is the whole rate.
      learning_rate_decay: Decay of `learning_rate`: "none", "cosine" (to zero), or a
        function from the fraction of rounds done, float32[], to a factor.
      learning_rate_floor: Share of the first round's rates that decay does not go
        below, 0 to 1; None lets them reach zero.
      momentum: Momentum of SGD, from 0 to below 1.
      weight_decay: L2 coefficient.
      aggregation_weight: Weight p_n of a client before normalisation: "examples" is
        |D_n|, "budget_and_examples" is v_n |D_n| (FedMPQ, Eq. 15), or a function of
        budget and number of examples, both float32[].
      max_examples: Most examples that a client may hold; one with more is left out.
      min_clients: Fewest clients with examples whose contributions have to count; a
        round of fewer is abandoned, and changes only the round's number.
      client_timeout_seconds: Time for reading and training after which a client is left
        out; None has no limit. Looked at after every example and every step, so it does
        not end the wait for an example that never comes.
      dropout_rate: Chance, drawn by the seed, that a client leaves a round and nothing
        of it arrives, from 0 to below 1: to simulate clients that cannot be relied on.
      on_client_error: What a client that is left out does to its round: "skip" goes on
        without it, "raise" raises ValueError and leaves the state. Dropouts are none.
    """

    name: ClassVar[str]

    rounds: Optional[int] = None
    epochs: int = 5
    batch_size: int = 64
    learning_rate: LearningRate = 0.1
    learning_rate_decay: Decay = "cosine"
    learning_rate_floor: Optional[float] = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    aggregation_weight: AggregationWeight = "examples"
    max_examples: int = 100_000
    min_clients: int = 1
    client_timeout_seconds: Optional[float] = None
    dropout_rate: float = 0.0
    on_client_error: OnClientError = "skip"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_examples", "min_clients"):
            check_count(getattr(self, name), name)
        if self.rounds is not None:
            check_count(self.rounds, "rounds")
        check_rate(self.learning_rate, "learning_rate")
        check_not_negative(self.weight_decay, "weight_decay")
        floor = self.learning_rate_floor
        if floor is not None and not 0 <= floor <= 1:
            raise ValueError(
                f"learning_rate_floor has to be None or from 0 to 1, found {floor!r}."
            )
        for name in ("momentum", "dropout_rate"):
            if not 0 <= getattr(self, name) < 1:
                found = getattr(self, name)
                raise ValueError(f"{name} has to be in [0, 1), found {found!r}.")
        limit = self.client_timeout_seconds
        if limit is not None and not 0 < limit < math.inf:
            raise ValueError(
                f"client_timeout_seconds has to be None or above 0, found {limit!r}."
            )
        annotations = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            names = allowed_names(annotations[field.name])
            value = getattr(self, field.name)
            if names and not callable(value):
                check_name(value, dict.fromkeys(names), field.name)

    def learning_rates(self) -> tuple[Rate, Rate]:
        """Returns the rates of quantized kernels and of float parameters."""
        rate = Rate(self.learning_rate, self.learning_rate_decay)
        return rate, rate

    @property
    def rates_decay(self) -> bool:
        """Whether a learning rate depends on the number of rounds."""
        rates = self.learning_rates()
        return any(r.decay != "none" and not callable(r.initial) for r in rates)

    def compose(self) -> "Scheme":
        """Returns the scheme that this configuration describes."""
        raise NotImplementedError(f"{type(self).__name__} describes no scheme.")


@dataclasses.dataclass(frozen=True)
class CodeTrainingConfig(LocalTrainingConfig):
    """Training of integer codes, and the quantization of models sent to clients.

    Attributes:
      float_learning_rate: Learning rate of float parameters (BatchNorm, biases), as
        `learning_rate`.
      float_learning_rate_decay: Decay of `float_learning_rate`.
      learning_rate_unit: Unit of `learning_rate`: "weight" moves a weight by the rate
        times its gradient, "code" moves its code as Eq. 6-10 are printed, by steps that
        grow with the square of its scale: it suits "least_squares" and "max".
      step_rounding: Power of two that a step of the codes is rounded to (Eq. 6):
        "nearest", or "up", the ceiling that the paper prints.
      activation_bits: Bits of ReLU outputs on clients, 1 to 8; None leaves them float.
      representation: Meaning of the codes: "sign_magnitude", or "offset_binary" as the
        paper reads literally.
      scale_rule: Scale of a layer that is quantized: "widening" (least squared error,
        with room for weights that fill their range), "least_squares", "max" (2 max|W|,
        the paper's), or a function of weights, bit-width, representation.
      error_feedback: Whether the server adds clients' changes to its float weights, so
        that quantization errors do not accumulate; False averages the clients' models.
      statistics_per_budget: Whether the server keeps BatchNorm statistics for each
        budget, and a client is sent a fit over them (`budget_statistics`); False keeps
        common ones.
    """

    float_learning_rate: LearningRate = 0.1
    float_learning_rate_decay: Decay = "none"
    learning_rate_unit: LearningRateUnit = "weight"
    step_rounding: StepRounding = "nearest"
    activation_bits: Optional[int] = 4
    representation: Representation = "sign_magnitude"
    scale_rule: ScaleRule = "widening"
    error_feedback: bool = True
    statistics_per_budget: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate(self.float_learning_rate, "float_learning_rate")
        for name in ("error_feedback", "statistics_per_budget"):
            check_bool(getattr(self, name), name)
        bits = self.activation_bits
        if bits is not None:
            check_count(bits, "activation_bits")
            if bits > 8:
                raise ValueError(f"activation_bits has to be at most 8, found {bits}.")

    def learning_rates(self) -> tuple[Rate, Rate]:
        float_rate = Rate(self.float_learning_rate, self.float_learning_rate_decay)
        return Rate(self.learning_rate, self.learning_rate_decay), float_rate


# The paper's equations where the defaults differ from them.
LITERAL_CODE_TRAINING: dict[str, Any] = {
    "representation": "offset_binary",
    "scale_rule": "max",
    "error_feedback": False,
    "statistics_per_budget": False,
    "learning_rate_unit": "code",
    "learning_rate": 0.1,
    "learning_rate_decay": "none",
}


def check_rate(value: LearningRate, what: str) -> None:
    """Raises ValueError unless a rate is a function, or a number of at least 0."""
    if not callable(value):
        check_not_negative(value, what)


def check_not_negative(value: float, what: str) -> None:
    """Raises ValueError unless a setting is a finite number of at least 0."""
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
        raise ValueError(f"{what} has to be 0 or more, found {value!r}.")
