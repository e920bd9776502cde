"""A study of our own: what is FedMPQ's gain over AQFL made of?

Nine questions, on CIFAR-10 at alpha 0.5 (finalists of the sixth at 0.1 too):

1. How do both do under the paper's literal reading, and under each repair alone?
2. Which part of FedMPQ matters (the rows of Table 4), read literally with planes of
   sign and magnitude, and at our defaults, also where all have 2 bits?
3. Is AQFL's trouble its first and last layer, also where all have 2 bits?
4. How does the gain depend on the share of 2-bit clients?
5. And on the number of local epochs?
6. Which improvements are worth being defaults?
7. Which learning rates of quantized kernels are best for each?
8. What separates FedMPQ from training at 8 bits: weights, activations, rounding?
9. Does it matter that codes cannot leave the range of their scale?

Questions 6 to 8 choose settings, without the test images: they are in `tuning`.

The literal reading: codes in offset binary, scales `2 max|W|`, a pruned plane is
dropped and not saturated, Eq. 6-10 with eta 0.1, models averaged as they come back,
AQFL weighs clients by |D_n| and FedMPQ by v_n |D_n|. Its Algorithm 2 is ours, which
never exceeds a budget; the one that is printed, which does, is a row of its own.

Many of these runs are runs of the paper's tables too; `cells` runs such only once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from tff_fedmpq.allocation.budgets import tiered_budgets
from tff_fedmpq.simulation.reproduction import paper, tuning
from tff_fedmpq.simulation.reproduction.tables import (
    ABLATION,
    ABLATION_TITLES,
    Grid,
    Slot,
    Variant,
    ablation_slot,
    epochs_slot,
    make_grid,
)

SEEDS = (0, 1)
_PAIR = ("aqfl", "fedmpq")
_COMMON = {"dataset": "cifar10", "alpha": 0.5}
_PAPERS_BUDGETS, _TWO_BITS = "the paper's budgets", "2 bits for all"  # Columns.
_TUNED_RATES = "each at the rate that validation chose: AQFL 0.03, FedMPQ 0.3"  # A row.

# The literal reading, with a change.
READINGS: Mapping[str, Variant] = {
    "literal": Variant("the paper, literally, but within budgets", _PAIR),
    "literal+representation": Variant(
        "sign and magnitude planes", _PAIR, options=tuning.SIGNED
    ),
    "literal+scales": Variant(
        "least-squares scales", _PAIR, options={"scale_rule": "least_squares"}
    ),
    # In offset binary no plane of a network is pruned: saturation would change nothing.
    "literal+representation+saturation": Variant(
        "sign and magnitude planes, saturating pruning",
        ["fedmpq"],
        options={**tuning.SIGNED, "saturate": True},
    ),
    "literal+weights": Variant(
        "both weigh clients by v_n |D_n|",
        _PAIR,
        options=tuning.BY_BITS,
    ),
    "literal+representation+weights": Variant(
        "sign and magnitude planes, both weigh clients by v_n |D_n|",
        _PAIR,
        options={**tuning.SIGNED, **tuning.BY_BITS},
    ),
    "literal+examples": Variant(
        "both weigh clients by |D_n|",
        _PAIR,
        options={"aggregation_weight": "examples"},
    ),
    # By their global models (question 7).
    "literal+low-rate": Variant(
        _TUNED_RATES, ["aqfl"], settings={"learning_rate": 0.03}
    ),
    "literal+rate": Variant(_TUNED_RATES, ["fedmpq"], settings={"learning_rate": 0.3}),
    "literal+feedback": Variant("error feedback", _PAIR, options=tuning.FEEDBACK),
    "literal+training": Variant(
        "eta 0.1 to 0 of weights", _PAIR, tuning.SGD_DECAY, tuning.WEIGHT_RATES
    ),
    "literal+distortion": Variant(
        "bits by distortion", ["fedmpq"], options={"allocation": "rate_distortion"}
    ),
    "literal+printed-algorithm2": Variant(
        "(no repair) Algorithm 2 as printed",
        ["fedmpq"],
        options={"allocation": "literal_pruning_growing"},
    ),
}

TWO_BIT_SHARES = (0, 20, 40, 60, 80, 100)
LOCAL_EPOCHS = (1, 5, 10)
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
    note = (
        "A row is the literal reading with the change that it names; 'our defaults' "
        "has every repair. In the literal reading FedMPQ weighs clients by v_n |D_n|, "
        "AQFL by |D_n|."
    )
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


def _literal_parts() -> Grid:
    """The rows of Table 4, and AQFL with the weights that the others have."""
    weighed = {"scheme": "aqfl", "scheme_options": tuning.BY_BITS}
    parts: Mapping[str, Mapping[str, Any]] = {"aqfl-weights": weighed, **ABLATION}
    titles = {"aqfl-weights": "AQFL, clients weigh v_n |D_n|", **ABLATION_TITLES}
    slots = {
        (titles[row], "CIFAR-10"): Slot(
            f"study/literal-parts/{row}",
            {
                **_COMMON,
                "scheme": f"{settings['scheme']}_literal",
                "scheme_options": {
                    **tuning.SIGNED,
                    **settings.get("scheme_options", {}),
                },
            },
        )
        for row, settings in parts.items()
    }
    title = "Question 2: the parts of FedMPQ, literally, planes of sign and magnitude"
    return make_grid(title, "parts", slots, with_paper=False)


def _parts() -> Grid:
    slots = {}
    for row, settings in ABLATION.items():
        slots[ABLATION_TITLES[row], _PAPERS_BUDGETS] = ablation_slot(row, "cifar10")
        slots[ABLATION_TITLES[row], _TWO_BITS] = Slot(
            f"study/two-bit100-parts/{row}",
            {**_COMMON, "budgets": _budgets(1.0), **settings},
        )
    algorithm2: Mapping[str, Any] = {
        "scheme": "fedmpq",
        "scheme_options": {"allocation": "pruning_growing"},
    }
    for column, place, settings in (
        (_PAPERS_BUDGETS, "parts", algorithm2),
        (_TWO_BITS, "two-bit100-parts", {**algorithm2, "budgets": _budgets(1.0)}),
    ):
        slots["all three, bits by Algorithm 2", column] = Slot(
            f"study/{place}/algorithm2", {**_COMMON, **settings}
        )
    title = "Question 2: the parts of FedMPQ at our defaults"
    return make_grid(title, "parts", slots, with_paper=False)


def _outer_layers() -> Grid:
    outer = {"scheme_options": {"outer_bit_width": 8}}
    slots = {}
    for column, settings, plain, with_outer in (
        (_PAPERS_BUDGETS, {}, "defaults", "outer-layers8"),
        (
            _TWO_BITS,
            {"budgets": _budgets(1.0)},
            "two-bit100",
            "outer-layers8-two-bit100",
        ),
    ):
        for row, group, scheme, options in (
            ("AQFL", plain, "aqfl", {}),
            ("AQFL, first and last layer at 8 bits", with_outer, "aqfl", outer),
            ("FedMPQ", plain, "fedmpq", {}),
        ):
            slots[row, column] = Slot(
                f"study/{group}/{scheme}",
                {**_COMMON, **settings, "scheme": scheme, **options},
            )
    note = (
        "Such an AQFL exceeds its budgets a little: the two layers hold 0.4 % of the "
        "weights."
    )
    title = "Question 3: AQFL with first and last layer at 8 bits"
    return make_grid(title, "scheme", slots, with_paper=False, note=note)


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


def _ranges() -> Grid:
    slots = {
        (title, paper.SCHEME_TITLES[scheme]): Slot(
            f"study/ranges/{rule}/{scheme}",
            {**_COMMON, "scheme": scheme, "scheme_options": {"scale_rule": rule}},
        )
        for rule, title in (
            ("least_squares", "of least squared error"),
            ("gaussian", "of Gaussian weights"),
        )
        for scheme in _PAIR
    }
    title = "Question 9: ranges that can widen"
    return make_grid(title, "scales", slots, with_paper=False)


# By the name under which a text refers to them (`study_document`).
QUESTIONS: Mapping[str, Callable[[], Grid]] = {
    "repairs": _repairs,
    "literal_parts": _literal_parts,
    "parts": _parts,
    "outer_layers": _outer_layers,
    "two_bit_clients": _two_bit_clients,
    "local_epochs": _local_epochs,
    "improvements": tuning.improvements,
    "finalists": tuning.finalists,
    "rates": tuning.learning_rates,
    "limits": tuning.limits,
    "ranges": _ranges,
}
