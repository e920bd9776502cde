"""Questions 6 to 8 of the study: what settings are chosen by.

All at the preset "tuning", which does not see the test images. Questions 6 and 8 spell
out how codes learn and who decides bits: rows mean the same when a default changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tff_fedmpq.simulation.reproduction import paper
from tff_fedmpq.simulation.reproduction.tables import Grid, Slot, Variant, make_grid

PRESET = "tuning"
_BOTH = ("aqfl", "fedmpq")
_FEDMPQ = ("fedmpq",)

# eta of codes, constant or along half a cosine.
_SLOW = {"learning_rate": 0.3, "learning_rate_decay": "none"}
_SLOW_DECAY = {"learning_rate": 0.3, "learning_rate_decay": "cosine"}
_FAST_DECAY = {"learning_rate": 1.0, "learning_rate_decay": "cosine"}
_SGD = {"learning_rate": 0.1, "learning_rate_decay": "none"}
SGD_DECAY: Mapping[str, Any] = {"learning_rate": 0.1, "learning_rate_decay": "cosine"}
_ALL_FALL = {**SGD_DECAY, "float_learning_rate_decay": "cosine"}

SIGNED: Mapping[str, Any] = {"representation": "sign_magnitude"}
# Clients weigh v_n |D_n|.
BY_BITS: Mapping[str, Any] = {"aggregation_weight": "budget_and_examples"}
FEEDBACK: Mapping[str, Any] = {"error_feedback": True}
_BY_DISTORTION = {"allocation": "rate_distortion"}
_FEEDBACK_BY_DISTORTION = {**FEEDBACK, **_BY_DISTORTION}
COMPENSATION: Mapping[str, Any] = {"code_update": "compensated"}
# Weights of 1, 2, 4 and 8 bits then move by 11, 17, 22 and 21 eta sigma^2, not by 2.5,
# 5, 10 and 21 (scales of least squares, Gaussian weights).
_EQUAL_RATES = {"low_bit_damping": -0.3}
# Weights then move by as much as those of float models do.
WEIGHT_RATES: Mapping[str, Any] = {"learning_rate_unit": "weight"}
# Where weights are spread over all of their range, such scales widen it.
_GAUSSIAN = {"scale_rule": "gaussian"}
_ALGORITHM_2 = {"allocation": "pruning_growing"}
# What was the default when these questions were asked; FedMPQ's bits by Algorithm 2.
_FORMER = {
    "error_feedback": False,
    "code_update": "integer",
    "learning_rate_unit": "code",
}

# --- question 6: which improvements are worth being defaults? -----------------

# On top of sign-magnitude codes, scales of least squares and `_FORMER`.
IMPROVEMENTS: Mapping[str, Variant] = {
    "eta0.3": Variant("eta 0.3", _BOTH, _SLOW),
    "feedback": Variant("eta 0.3, error feedback (EF)", _BOTH, _SLOW, FEEDBACK),
    "feedback+cosine": Variant("eta 0.3 to 0, EF", _BOTH, _SLOW_DECAY, FEEDBACK),
    "feedback+pooled": Variant(
        "eta 0.3, EF, pooled BatchNorm statistics",
        _BOTH,
        _SLOW,
        {**FEEDBACK, "pooled_statistics": True},
    ),
    "feedback+distortion": Variant(
        "eta 0.3, EF, bits by distortion", _FEDMPQ, _SLOW, _FEEDBACK_BY_DISTORTION
    ),
    "feedback+distortion+cosine": Variant(
        "eta 0.3 to 0, EF, bits by distortion",
        _FEDMPQ,
        _SLOW_DECAY,
        _FEEDBACK_BY_DISTORTION,
    ),
    "feedback+distortion+cosine+examples": Variant(
        "eta 0.3 to 0, EF, bits by distortion, clients weigh by |D_n|",
        _FEDMPQ,
        _SLOW_DECAY,
        {**_FEEDBACK_BY_DISTORTION, "aggregation_weight": "examples"},
    ),
    "feedback+distortion+cosine1+damping": Variant(
        "eta 1 to 0, damped at few bits, EF, bits by distortion",
        _FEDMPQ,
        _FAST_DECAY,
        {**_FEEDBACK_BY_DISTORTION, "low_bit_damping": 0.5},
    ),
    "feedback+distortion+cosine+compensation+equal": Variant(
        "eta 0.3 to 0, rounding compensated, few bits learn nearly as fast, EF, "
        "bits by distortion",
        _FEDMPQ,
        _SLOW_DECAY,
        {**_FEEDBACK_BY_DISTORTION, **COMPENSATION, **_EQUAL_RATES},
    ),
    "feedback+cosine+weight-rates": Variant(
        "eta 0.1 to 0 of weights, EF", _BOTH, SGD_DECAY, {**FEEDBACK, **WEIGHT_RATES}
    ),
    "feedback+distortion+compensation+weight-rates": Variant(
        "eta 0.1 of weights, rounding compensated, EF, bits by distortion",
        _FEDMPQ,
        _SGD,
        {**_FEEDBACK_BY_DISTORTION, **COMPENSATION, **WEIGHT_RATES},
    ),
    "feedback+cosine+compensation+weight-rates": Variant(
        "eta 0.1 to 0 of weights, rounding compensated, EF",
        _BOTH,
        SGD_DECAY,
        {**FEEDBACK, **COMPENSATION, **WEIGHT_RATES},
    ),
    "feedback+distortion+cosine+compensation+weight-rates": Variant(
        "eta 0.1 to 0 of weights, rounding compensated, EF, bits by distortion",
        _FEDMPQ,
        SGD_DECAY,
        {**_FEEDBACK_BY_DISTORTION, **COMPENSATION, **WEIGHT_RATES},
    ),
}


def improvements() -> Grid:
    """Returns candidates one by one, at alpha 0.5."""
    slots = {
        (variant.title, paper.SCHEME_TITLES[scheme]): _slot(
            f"study/alpha0.5/{name}/{scheme}",
            scheme,
            variant,
            {"alpha": 0.5},
            {**_former(scheme), **variant.options},
        )
        for name, variant in IMPROVEMENTS.items()
        for scheme in variant.schemes
    }
    title = "Question 6: improvements"
    return make_grid(title, "settings", slots, with_paper=False)


_CANDIDATE = {**FEEDBACK, **WEIGHT_RATES, "code_update": "integer"}
_COMPENSATED = {**_CANDIDATE, **COMPENSATION}
# Those that are left, over seeds, degrees of heterogeneity and budgets.
FINALISTS: Mapping[str, Variant] = {
    "fedavg": Variant("FP32 FedAvg", ["fedavg"]),
    "fedavg-falling": Variant("FP32 FedAvg, rate 0.1 to 0", ["fedavg"], _ALL_FALL),
    "fpq8": Variant("FPQ8", ["fpq8"], SGD_DECAY, _CANDIDATE),
    "aqfl-former": Variant("AQFL, former defaults", ["aqfl"], _SLOW, _FORMER),
    "aqfl": Variant("AQFL", ["aqfl"], SGD_DECAY, _CANDIDATE),
    "aqfl-gaussian": Variant(
        "AQFL, scales of Gaussian weights",
        ["aqfl"],
        SGD_DECAY,
        {**_CANDIDATE, **_GAUSSIAN},
    ),
    "aqfl-compensated": Variant(
        "AQFL, rounding compensated", ["aqfl"], SGD_DECAY, _COMPENSATED
    ),
    "aqfl-compensated-falling": Variant(
        "AQFL, rounding compensated, float rest 0.1 to 0 too",
        ["aqfl"],
        _ALL_FALL,
        _COMPENSATED,
    ),
    "fedmpq-former": Variant(
        "FedMPQ, former defaults", _FEDMPQ, _SLOW, {**_FORMER, **_ALGORITHM_2}
    ),
    "fedmpq": Variant("FedMPQ", _FEDMPQ, SGD_DECAY, {**_CANDIDATE, **_BY_DISTORTION}),
    "fedmpq-gaussian": Variant(
        "FedMPQ, scales of Gaussian weights",
        _FEDMPQ,
        SGD_DECAY,
        {**_CANDIDATE, **_BY_DISTORTION, **_GAUSSIAN},
    ),
    "fedmpq-compensated": Variant(
        "FedMPQ, rounding compensated",
        _FEDMPQ,
        SGD_DECAY,
        {**_COMPENSATED, **_BY_DISTORTION},
    ),
    "fedmpq-compensated-without-lasso": Variant(
        "FedMPQ, rounding compensated, no Lasso",
        _FEDMPQ,
        SGD_DECAY,
        {**_COMPENSATED, **_BY_DISTORTION, "lasso": 0.0},
    ),
    "fedmpq-compensated-falling": Variant(
        "FedMPQ, rounding compensated, float rest 0.1 to 0 too",
        _FEDMPQ,
        _ALL_FALL,
        {**_COMPENSATED, **_BY_DISTORTION},
    ),
    "fedmpq-algorithm2": Variant(
        "FedMPQ, bits by Algorithm 2",
        _FEDMPQ,
        SGD_DECAY,
        {**_CANDIDATE, **_ALGORITHM_2},
    ),
    "fedmpq-algorithm2-compensated": Variant(
        "FedMPQ, bits by Algorithm 2, rounding compensated",
        _FEDMPQ,
        SGD_DECAY,
        {**_COMPENSATED, **_ALGORITHM_2},
    ),
}
_ONE_PRECISION = ("fedavg", "fpq8")  # Whatever the budgets.


class Population(NamedTuple):
    """Clients that finalists are compared on.

    Attributes:
      title: what they are.
      settings: of `ExperimentConfig`.
      all_schemes: whether it differs from another for schemes without budgets.
    """

    title: str
    settings: Mapping[str, Any]
    all_schemes: bool = True


POPULATIONS: Mapping[str, Population] = {
    "alpha0.5": Population("alpha 0.5", {"alpha": 0.5}),
    "alpha0.1": Population("alpha 0.1", {"alpha": 0.1}),
    "two-bits": Population(
        "alpha 0.5, all clients at 2 bits",
        {"alpha": 0.5, "budgets": (2.0,) * 10},
        all_schemes=False,
    ),
}


def finalists() -> Grid:
    """Returns those that are left of question 6."""
    slots = {
        (variant.title, population.title): _slot(
            f"study/finalists/{place}/{name}",
            scheme,
            variant,
            population.settings,
            variant.options,
        )
        for place, population in POPULATIONS.items()
        for name, variant in FINALISTS.items()
        for scheme in variant.schemes
        if population.all_schemes or scheme not in _ONE_PRECISION
    }
    note = (
        "Where nothing else is said: eta 0.1 to 0 of weights, error feedback, FedMPQ's "
        "bits by distortion. Former defaults: eta 0.3 of codes, no error feedback, "
        "bits by Algorithm 2."
    )
    title = "Question 6: the finalists"
    return make_grid(title, "settings", slots, with_paper=False, note=note)


# --- question 7: which learning rates of quantized kernels? --------------------


class RatesTried(NamedTuple):
    """Settings, and the learning rates that are tried with them.

    Attributes:
      title: of a row, with a place for the rate.
      reading: "" for our defaults, or "_literal".
      options: of the schemes.
      rates: of codes in the literal reading; else of weights, at the first round.
    """

    title: str
    reading: str
    options: Mapping[str, Any]
    rates: Sequence[float]


RATES_TRIED: Mapping[str, RatesTried] = {
    "eta": RatesTried("eta {:g} to 0", "", {}, (0.03, 0.1, 0.3)),
    "literal-eta": RatesTried(
        "literal, eta {:g}", "_literal", {}, (0.03, 0.1, 0.3, 1.0)
    ),
    "literal-signed-eta": RatesTried(
        "literal, sign and magnitude planes, both weigh clients by v_n |D_n|, eta {:g}",
        "_literal",
        {**SIGNED, **BY_BITS},
        (0.1, 1.0),
    ),
}


def learning_rates() -> Grid:
    """Returns rates for our defaults and for two literal readings."""
    slots = {
        (tried.title.format(rate), paper.SCHEME_TITLES[scheme]): Slot(
            f"study/rates/{name}{rate:g}/{scheme}",
            {
                "dataset": "cifar10",
                "alpha": 0.5,
                "scheme": f"{scheme}{tried.reading}",
                "scheme_options": tried.options,
                "learning_rate": rate,
            },
            only_preset=PRESET,
        )
        for name, tried in RATES_TRIED.items()
        for rate in tried.rates
        for scheme in _BOTH
    }
    title = "Question 7: learning rates"
    return make_grid(title, "rate", slots, with_paper=False)


# --- question 8: what separates FedMPQ from training at 8 bits? ----------------

LIMITS: Mapping[str, Variant] = {
    "weights8bits-activations8bits": Variant(
        "weights 8 bits, activations 8 bits (FPQ8)", ["fpq8"], _SLOW
    ),
    "weights8bits-activations4bits": Variant(
        "weights 8 bits, activations 4 bits", ["fpq8"], _SLOW, {"activation_bits": 4}
    ),
    "weights4bits-activations4bits": Variant(
        "weights 4 bits, activations 4 bits",
        ["aqfl"],
        {**_SLOW, "budgets": (4.0,) * 10},
    ),
    "weights2bits-activations4bits": Variant(
        "weights 2 bits, activations 4 bits",
        ["aqfl"],
        {**_SLOW, "budgets": (2.0,) * 10},
    ),
    "float-masters": Variant(
        "FedMPQ's mix, codes trained by float masters on the device "
        "(EF, bits by distortion)",
        _FEDMPQ,
        _SLOW,
        {**_FEEDBACK_BY_DISTORTION, "code_update": "straight_through"},
    ),
}


def limits() -> Grid:
    """Returns ways to train the same network, with the former defaults."""
    slots = {
        (variant.title, "CIFAR-10"): _slot(
            f"study/limits/{name}",
            scheme,
            variant,
            {"alpha": 0.5},
            {**_former(scheme), **variant.options},
        )
        for name, variant in LIMITS.items()
        for scheme in variant.schemes
    }
    title = "Question 8: what separates FedMPQ from 8 bits"
    return make_grid(title, "precision of all clients", slots, with_paper=False)


def _former(scheme: str) -> Mapping[str, Any]:
    """Returns what a scheme's options were by default."""
    return {**_FORMER, **_ALGORITHM_2} if scheme == "fedmpq" else _FORMER


def _slot(
    group: str,
    scheme: str,
    variant: Variant,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Slot:
    return Slot(
        group,
        {
            "dataset": "cifar10",
            "scheme": scheme,
            **settings,
            **variant.settings,
            "scheme_options": options,
        },
        only_preset=PRESET,
    )
