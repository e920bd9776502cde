"""A study of our own: what is FedMPQ's gain over AQFL made of?

Eight questions, on CIFAR-10 at alpha 0.5 (the sixth at 0.1 too):

1. How do both do under the paper's literal reading, and under each repair alone?
2. Which part of FedMPQ matters at our defaults (the rows of Table 4)?
3. Is AQFL's trouble its first and last layer?
4. How does the gain depend on the share of 2-bit clients?
5. And on the number of local epochs?
6. Which improvements are worth being defaults, and what is left when the rates of all
   schemes fall alike?
7. Which learning rates of codes are best for each?
8. What separates FedMPQ from training at 8 bits: weights, activations, rounding?

The last three choose settings: they are for the preset "tuning", which does not see the
test images.

The literal reading: codes in offset binary, scales `2 max|W|`, a pruned plane is
dropped and not saturated, Eq. 6-10 with eta 0.1, models averaged as they come back,
AQFL weighs clients by |D_n| and FedMPQ by v_n |D_n|. Its Algorithm 2 is ours, which
never exceeds a budget; the one that is printed, which does, is a row of its own.

Many of these runs are runs of the paper's tables too; `cells` runs such only once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, NamedTuple

from tff_fedmpq.allocation.budgets import tiered_budgets
from tff_fedmpq.simulation.reproduction import paper
from tff_fedmpq.simulation.reproduction.tables import (
    ABLATION,
    ABLATION_TITLES,
    Grid,
    Slot,
    ablation_slot,
    epochs_slot,
    make_grid,
)

SEEDS = (0, 1)
_CHOOSING = "tuning"  # The preset of questions that settings are chosen by.
_PAIR = ("aqfl", "fedmpq")
_COMMON = {"dataset": "cifar10", "alpha": 0.5}

_SLOW = {"learning_rate": 0.3, "learning_rate_decay": "none"}
_SLOW_DECAY = {"learning_rate": 0.3, "learning_rate_decay": "cosine"}
_FAST_DECAY = {"learning_rate": 1.0, "learning_rate_decay": "cosine"}
_SGD_DECAY = {"learning_rate": 0.1, "learning_rate_decay": "cosine"}
_FEEDBACK = {"error_feedback": True}
_DISTORTION = {"error_feedback": True, "allocation": "rate_distortion"}
_COMPENSATION = {"code_update": "compensated"}
# Weights of 1, 2, 4 and 8 bits then move by 11, 17, 22 and 21 eta sigma^2, not by 2.5,
# 5, 10 and 21 (scales of least squares, Gaussian weights).
_EQUAL_RATES = {"low_bit_damping": -0.3}
# Weights then move by as much as those of float models do.
_WEIGHT_RATES = {"learning_rate_unit": "weight"}
_ALL_FALL = {**_SGD_DECAY, "float_learning_rate_decay": "cosine"}
# What was the default when question 6 was asked.
_PLAIN = {
    "error_feedback": False,
    "code_update": "integer",
    "learning_rate_unit": "code",
}


class Reading(NamedTuple):
    """A reading of the paper: the literal one, with a change.

    Attributes:
      title: what the change is.
      schemes: those that it changes.
      settings: of `ExperimentConfig`.
      options: of the scheme.
    """

    title: str
    schemes: tuple[str, ...] = _PAIR
    settings: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}


READINGS: Mapping[str, Reading] = {
    "literal": Reading("the paper, literally, but within budgets"),
    "literal+representation": Reading(
        "sign and magnitude planes", options={"representation": "sign_magnitude"}
    ),
    "literal+scales": Reading(
        "least-squares scales", options={"scale_rule": "least_squares"}
    ),
    "literal+saturation": Reading(
        "saturating pruning", ("fedmpq",), options={"saturate": True}
    ),
    "literal+weights": Reading(
        "AQFL weighs by v_n |D_n|",
        ("aqfl",),
        options={"aggregation_weight": "budget_and_examples"},
    ),
    "literal+rate": Reading("eta 0.3", settings={"learning_rate": 0.3}),
    "literal+feedback": Reading("error feedback", options=_FEEDBACK),
    "literal+training": Reading(
        "eta 0.1 to 0 of weights, rounding compensated",
        settings=_SGD_DECAY,
        options={**_COMPENSATION, **_WEIGHT_RATES},
    ),
    "literal+printed-algorithm2": Reading(
        "(no repair) Algorithm 2 as printed",
        ("fedmpq",),
        options={"allocation": "literal_pruning_growing"},
    ),
}


class Improvement(NamedTuple):
    """What may become a default, on top of sign-magnitude codes of least squares.

    Attributes:
      title: what it is.
      settings: of `ExperimentConfig`.
      options: of the scheme.
      schemes: that it is for.
    """

    title: str
    settings: Mapping[str, Any]
    options: Mapping[str, Any] = {}
    schemes: tuple[str, ...] = _PAIR


IMPROVEMENTS: Mapping[str, Improvement] = {
    "eta1": Improvement("eta 1", {**_SLOW, "learning_rate": 1.0}),
    "eta0.3": Improvement("eta 0.3", _SLOW),
    "feedback": Improvement("eta 0.3, error feedback (EF)", _SLOW, _FEEDBACK),
    "feedback+cosine": Improvement("eta 0.3 to 0, EF", _SLOW_DECAY, _FEEDBACK),
    "feedback+pooled": Improvement(
        "eta 0.3, EF, pooled BatchNorm statistics",
        _SLOW,
        {**_FEEDBACK, "pooled_statistics": True},
    ),
    "feedback+distortion": Improvement(
        "eta 0.3, EF, bits by distortion", _SLOW, _DISTORTION, ("fedmpq",)
    ),
    "feedback+distortion+cosine": Improvement(
        "eta 0.3 to 0, EF, bits by distortion", _SLOW_DECAY, _DISTORTION, ("fedmpq",)
    ),
    "feedback+distortion+cosine+examples": Improvement(
        "eta 0.3 to 0, EF, bits by distortion, clients weigh by |D_n|",
        _SLOW_DECAY,
        {**_DISTORTION, "aggregation_weight": "examples"},
        ("fedmpq",),
    ),
    "feedback+distortion+cosine1+damping": Improvement(
        "eta 1 to 0, damped at few bits, EF, bits by distortion",
        _FAST_DECAY,
        {**_DISTORTION, "low_bit_damping": 0.5},
        ("fedmpq",),
    ),
    "feedback+distortion+cosine+compensation+equal": Improvement(
        "eta 0.3 to 0, rounding compensated, few bits learn nearly as fast, EF, "
        "bits by distortion",
        _SLOW_DECAY,
        {**_DISTORTION, **_COMPENSATION, **_EQUAL_RATES},
        ("fedmpq",),
    ),
    "feedback+cosine+weight-rates": Improvement(
        "eta 0.1 to 0 of weights, EF", _SGD_DECAY, {**_FEEDBACK, **_WEIGHT_RATES}
    ),
    "feedback+distortion+compensation+weight-rates": Improvement(
        "eta 0.1 of weights, rounding compensated, EF, bits by distortion",
        {**_SGD_DECAY, "learning_rate_decay": "none"},
        {**_DISTORTION, **_COMPENSATION, **_WEIGHT_RATES},
        ("fedmpq",),
    ),
    "feedback+cosine+compensation+weight-rates": Improvement(
        "eta 0.1 to 0 of weights, rounding compensated, EF",
        _SGD_DECAY,
        {**_FEEDBACK, **_COMPENSATION, **_WEIGHT_RATES},
    ),
    "feedback+distortion+cosine+compensation+weight-rates": Improvement(
        "eta 0.1 to 0 of weights, rounding compensated, EF, bits by distortion",
        _SGD_DECAY,
        {**_DISTORTION, **_COMPENSATION, **_WEIGHT_RATES},
        ("fedmpq",),
    ),
}

TWO_BIT_SHARES = (0, 20, 40, 60, 80, 100)
LOCAL_EPOCHS = (1, 5, 10)
WEIGHT_RATES = (0.03, 0.1, 0.3)  # eta of our defaults, at the first round
CODE_RATES = (0.1, 0.3, 1.0)  # eta of the literal reading
# The other clients' shares of 4, 6 and 8 bits, as in the paper's population.
_OTHER_TIERS: Mapping[float, float] = {4.0: 3 / 8, 6.0: 3 / 8, 8.0: 2 / 8}


def study() -> list[Grid]:
    """Returns the study's questions, a grid each."""
    return [grid() for grid in QUESTIONS.values()]


def _repairs() -> Grid:
    slots = {
        (reading.title, paper.SCHEME_TITLES[scheme]): _reading_slot(name, scheme)
        for name, reading in READINGS.items()
        for scheme in reading.schemes
    }
    for scheme in _PAIR:
        slots["all repairs: our defaults", paper.SCHEME_TITLES[scheme]] = Slot(
            f"study/defaults/{scheme}", {**_COMMON, "scheme": scheme}
        )
    note = "Each row but the last is the literal reading with one change."
    title = "Question 1: the literal reading, and each repair alone"
    return make_grid(title, "reading", slots, with_paper=False, note=note)


def _reading_slot(name: str, scheme: str) -> Slot:
    reading = READINGS[name]
    return Slot(
        f"study/{name}/{scheme}",
        {
            **_COMMON,
            **reading.settings,
            "scheme": f"{scheme}_literal",
            "scheme_options": reading.options,
        },
    )


def _parts() -> Grid:
    slots = {
        (ABLATION_TITLES[row], "CIFAR-10"): ablation_slot(row, "cifar10")
        for row in ABLATION
    }
    title = "Question 2: the parts of FedMPQ at our defaults"
    return make_grid(title, "parts", slots, with_paper=False)


def _outer_layers() -> Grid:
    slots = {
        ("AQFL, first and last layer at 8 bits", "CIFAR-10"): Slot(
            "study/outer-layers8/aqfl",
            {
                **_COMMON,
                "scheme": "aqfl",
                "scheme_options": {"outer_bit_width": 8},
            },
        ),
        ("AQFL", "CIFAR-10"): Slot(
            "study/defaults/aqfl", {**_COMMON, "scheme": "aqfl"}
        ),
    }
    title = "Question 3: AQFL with first and last layer at 8 bits"
    return make_grid(title, "setting", slots, with_paper=False)


def _two_bit_clients() -> Grid:
    slots = {
        (_budget_title(share), paper.SCHEME_TITLES[scheme]): Slot(
            f"study/two-bit{share}/{scheme}",
            {**_COMMON, "scheme": scheme, "budgets": _budgets(share / 100)},
        )
        for share in TWO_BIT_SHARES
        for scheme in _PAIR
    }
    note = (
        "The other clients' bits are as near to the paper's proportions as ten clients "
        "allow; so the average of all changes too."
    )
    title = "Question 4: share of 2-bit clients"
    return make_grid(title, "2-bit clients", slots, with_paper=False, note=note)


def _budgets(share: float, num_clients: int = 10) -> tuple[float, ...]:
    others = {bits: (1 - share) * part for bits, part in _OTHER_TIERS.items()}
    return tuple(tiered_budgets(num_clients, {2.0: share, **others}).tolist())


def _budget_title(share: int) -> str:
    bits = ", ".join(f"{budget:g}" for budget in _budgets(share / 100))
    return f"{share} % ({bits})"


def _local_epochs() -> Grid:
    slots = {
        (f"{epochs}", paper.SCHEME_TITLES[scheme]): epochs_slot(scheme, epochs)
        for epochs in LOCAL_EPOCHS
        for scheme in _PAIR
    }
    title = "Question 5: local epochs"
    return make_grid(title, "local epochs", slots, with_paper=False)


def _improvements() -> Grid:
    slots = {
        (improvement.title, paper.SCHEME_TITLES[scheme]): Slot(
            f"study/alpha0.5/{name}/{scheme}",
            {
                **_COMMON,
                "scheme": scheme,
                **improvement.settings,
                "scheme_options": {**_PLAIN, **improvement.options},
            },
            only_preset=_CHOOSING,
        )
        for name, improvement in IMPROVEMENTS.items()
        for scheme in improvement.schemes
    }
    title = "Question 6: improvements"
    return make_grid(title, "settings", slots, with_paper=False)


class Finalist(NamedTuple):
    """What is compared over seeds and degrees of heterogeneity before it is a default.

    Attributes:
      title: what it is.
      scheme: that trains.
      settings: of `ExperimentConfig`.
      options: of the scheme.
    """

    title: str
    scheme: str
    settings: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}


_CANDIDATE = {**_FEEDBACK, **_COMPENSATION, **_WEIGHT_RATES}
_CANDIDATE_DISTORTION = {**_CANDIDATE, "allocation": "rate_distortion"}
FINALISTS: Mapping[str, Finalist] = {
    "fedavg": Finalist("FP32 FedAvg", "fedavg"),
    "fedavg-falling": Finalist("FP32 FedAvg, rate 0.1 to 0", "fedavg", _ALL_FALL),
    "fpq8": Finalist("FPQ8, candidate", "fpq8", _SGD_DECAY, _CANDIDATE),
    "aqfl-former": Finalist("AQFL, former default", "aqfl", _SLOW, _PLAIN),
    "aqfl": Finalist("AQFL, candidate", "aqfl", _SGD_DECAY, _CANDIDATE),
    "aqfl-falling": Finalist(
        "AQFL, candidate, float rest 0.1 to 0 too", "aqfl", _ALL_FALL, _CANDIDATE
    ),
    "fedmpq-former": Finalist("FedMPQ, former default", "fedmpq", _SLOW, _PLAIN),
    "fedmpq": Finalist("FedMPQ, candidate", "fedmpq", _SGD_DECAY, _CANDIDATE),
    "fedmpq-distortion": Finalist(
        "FedMPQ, candidate, bits by distortion",
        "fedmpq",
        _SGD_DECAY,
        _CANDIDATE_DISTORTION,
    ),
    "fedmpq-falling-distortion": Finalist(
        "FedMPQ, candidate, bits by distortion, float rest 0.1 to 0 too",
        "fedmpq",
        _ALL_FALL,
        _CANDIDATE_DISTORTION,
    ),
}


# By part of a cell's id: title, settings.
_POPULATIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "alpha0.5": ("alpha 0.5", {"alpha": 0.5}),
    "alpha0.1": ("alpha 0.1", {"alpha": 0.1}),
    "two-bits": (
        "alpha 0.5, all clients at 2 bits",
        {"alpha": 0.5, "budgets": (2.0,) * 10},
    ),
}


def _finalists() -> Grid:
    slots = {
        (finalist.title, title): Slot(
            f"study/finalists/{population}/{name}",
            {
                "dataset": "cifar10",
                "scheme": finalist.scheme,
                **population_settings,
                **finalist.settings,
                "scheme_options": finalist.options,
            },
            only_preset=_CHOOSING,
        )
        for population, (title, population_settings) in _POPULATIONS.items()
        for name, finalist in FINALISTS.items()
    }
    note = (
        "Candidate: eta 0.1 to 0 of weights, rounding compensated, EF; former default: "
        "eta 0.3 of codes, no EF."
    )
    title = "Question 6: the finalists"
    return make_grid(title, "settings", slots, with_paper=False, note=note)


def _learning_rates() -> Grid:
    slots = {}
    for rate in WEIGHT_RATES:
        for scheme in _PAIR:
            slots[f"eta {rate:g} to 0 of weights", paper.SCHEME_TITLES[scheme]] = Slot(
                f"study/rates/eta{rate:g}/{scheme}",
                {**_COMMON, "scheme": scheme, "learning_rate": rate},
                only_preset=_CHOOSING,
            )
    for rate in CODE_RATES:
        for scheme in _PAIR:
            literal = _reading_slot("literal", scheme)
            slots[f"literal, eta {rate:g}", paper.SCHEME_TITLES[scheme]] = Slot(
                f"study/rates/literal-eta{rate:g}/{scheme}",
                {**literal.settings, "learning_rate": rate},
                only_preset=_CHOOSING,
            )
    title = "Question 7: learning rates"
    return make_grid(title, "rate", slots, with_paper=False)


class Limit(NamedTuple):
    """A way to train the same network, with what was the default at question 6.

    Attributes:
      title: what it is.
      scheme: that trains it.
      options: of the scheme.
      budgets: of the clients; none = the paper's.
    """

    title: str
    scheme: str
    options: Mapping[str, Any] = {}
    budgets: tuple[float, ...] = ()


LIMITS: Mapping[str, Limit] = {
    "weights8bits-activations8bits": Limit(
        "weights 8 bits, activations 8 bits (FPQ8)", "fpq8"
    ),
    "weights8bits-activations4bits": Limit(
        "weights 8 bits, activations 4 bits", "fpq8", {"activation_bits": 4}
    ),
    "weights4bits-activations4bits": Limit(
        "weights 4 bits, activations 4 bits", "aqfl", budgets=(4.0,) * 10
    ),
    "weights2bits-activations4bits": Limit(
        "weights 2 bits, activations 4 bits", "aqfl", budgets=(2.0,) * 10
    ),
    "float-masters": Limit(
        "FedMPQ's mix, codes trained by float masters on the device "
        "(EF, bits by distortion)",
        "fedmpq",
        {**_DISTORTION, "code_update": "straight_through"},
    ),
}


def _limits() -> Grid:
    slots = {
        (limit.title, "CIFAR-10"): Slot(
            f"study/limits/{name}",
            {
                **_COMMON,
                **_SLOW,
                "scheme": limit.scheme,
                "scheme_options": {**_PLAIN, **limit.options},
                "budgets": limit.budgets,
            },
            only_preset=_CHOOSING,
        )
        for name, limit in LIMITS.items()
    }
    title = "Question 8: what separates FedMPQ from 8 bits"
    return make_grid(title, "precision of all clients", slots, with_paper=False)


# By the name under which a text refers to them (`study_document`).
QUESTIONS: Mapping[str, Callable[[], Grid]] = {
    "repairs": _repairs,
    "parts": _parts,
    "outer_layers": _outer_layers,
    "two_bit_clients": _two_bit_clients,
    "local_epochs": _local_epochs,
    "improvements": _improvements,
    "finalists": _finalists,
    "rates": _learning_rates,
    "limits": _limits,
}
