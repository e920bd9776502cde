"""The study: settings of its questions, and what it shares with the paper's tables."""

from __future__ import annotations

import collections

import pytest

from tff_fedmpq.simulation.reproduction import cells, study, tables, tuning


def configs():
    """Group -> configuration, at the reduced protocol where it can be run there."""
    return {
        cell.id.rsplit("/", 1)[0]: cell.config
        for preset in ("tuning", "reduced")
        for cell in cells.expand("study", preset, [0])
        if cell.config
    }


@pytest.mark.parametrize("preset", ["paper", "reduced"])
def test_settings_are_not_chosen_on_test_images(preset):
    choosing = tuple(f"study/{x}" for x in ("alpha", "finalists", "rates", "limits"))
    found = {"choosing": set(), "answering": set()}
    for cell in cells.expand("study", preset, [0]):
        kind = "choosing" if cell.id.startswith(choosing) else "answering"
        found[kind].add(cell.obstacle)
    (obstacle,) = found["choosing"]
    assert "at the preset tuning only" in obstacle
    assert found["answering"] == {""}


def test_all_are_of_cifar10_and_but_for_finalists_at_alpha_half():
    for group, config in configs().items():
        alpha = 0.1 if group.startswith("study/finalists/alpha0.1/") else 0.5
        assert (config.dataset, config.alpha) == ("cifar10", alpha)
    assert tuple(cells.DEFAULT_SEEDS["study"]) == (0, 1)


@pytest.mark.parametrize("scheme", ["aqfl", "fedmpq"])
@pytest.mark.parametrize(
    ("first", "second", "changed"),
    [
        ("eta0.3", "feedback", {"error_feedback"}),
        ("feedback", "feedback+cosine", {"learning_rate_decay"}),
        ("feedback", "feedback+pooled", {"pooled_statistics"}),
        ("feedback", "feedback+distortion", {"allocation"}),
        (
            "feedback+distortion",
            "feedback+distortion+cosine",
            {"learning_rate_decay"},
        ),
    ],
)
def test_an_improvement_changes_one_setting(scheme, first, second, changed):
    if scheme not in tuning.IMPROVEMENTS[second].schemes:
        pytest.skip(f"{second} is not for {scheme}")
    ids = (f"study/alpha0.5/{name}/{scheme}" for name in (first, second))
    before, after = (flatten(configs()[name]) for name in ids)
    assert {key for key in before if before[key] != after[key]} == changed


def finalists(population):
    """Name -> settings and options."""
    folder = f"study/finalists/{population}/"
    return {
        name.removeprefix(folder): flatten(config)
        for name, config in configs().items()
        if name.startswith(folder)
    }


def differing(first, second):
    return {key for key in first if first[key] != second[key]}


@pytest.mark.parametrize("population", tuning.POPULATIONS)
@pytest.mark.parametrize(
    ("first", "second", "changed"),
    [
        ("fedavg", "fedavg-falling", {"float_learning_rate_decay"}),
        ("aqfl", "aqfl-compensated", {"code_update"}),
        (
            "aqfl-compensated",
            "aqfl-compensated-falling",
            {"float_learning_rate_decay"},
        ),
        ("aqfl", "fedmpq", {"scheme", "lasso", "pruning_threshold", "allocation"}),
        ("aqfl", "aqfl-gaussian", {"scale_rule"}),
        ("fedmpq", "fedmpq-gaussian", {"scale_rule"}),
        ("fedmpq", "fedmpq-compensated", {"code_update"}),
        ("fedmpq", "fedmpq-algorithm2", {"allocation"}),
        ("fedmpq-compensated", "fedmpq-compensated-without-lasso", {"lasso"}),
        (
            "fedmpq-compensated",
            "fedmpq-compensated-falling",
            {"float_learning_rate_decay"},
        ),
        ("fedmpq-algorithm2", "fedmpq-algorithm2-compensated", {"code_update"}),
    ],
)
def test_finalists_differ_as_they_say(population, first, second, changed):
    found = finalists(population)
    if first not in found:
        assert (population, first) == ("two-bits", "fedavg")  # It has no budgets.
        return
    # The rate of codes is of no consequence for FP32, which has none.
    ignored = {"learning_rate", "learning_rate_decay"} if first == "fedavg" else set()
    assert differing(found[first], found[second]) - ignored == changed


@pytest.mark.parametrize("population", tuning.POPULATIONS)
def test_candidates_learn_alike(population):
    found = finalists(population)
    names = {"fpq8", "aqfl", "fedmpq"} & set(found)
    candidates = [found[name] for name in names]
    assert len(candidates) == (2 if population == "two-bits" else 3)
    for key in (
        *("learning_rate", "learning_rate_decay", "learning_rate_unit", "code_update"),
        *("error_feedback", "float_learning_rate", "float_learning_rate_decay"),
    ):
        assert len({config[key] for config in candidates}) == 1
    for scheme, own in (("aqfl", set()), ("fedmpq", {"allocation"})):
        former, candidate = found[f"{scheme}-former"], found[scheme]
        assert differing(former, candidate) == own | {
            *("learning_rate", "learning_rate_decay", "learning_rate_unit"),
            "error_feedback",
        }


@pytest.mark.parametrize("scheme", ["aqfl", "fedmpq", "fpq8"])
def test_the_finalists_of_plain_names_are_the_defaults(scheme):
    slots = {s.group: s for grid in cells.grids() for s in grid.slots.values()}
    names = (f"study/finalists/alpha0.5/{scheme}", f"table1/cifar10/alpha0.5/{scheme}")
    chosen, default = (cells.build_config(slots[n], "tuning", 0) for n in names)
    assert chosen == default


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("aqfl", (None, "keep", "examples")),
        ("fedmpq", (0.03, "pruning_growing", "budget_and_examples")),
    ],
)
def test_the_literal_reading(scheme, expected):
    config = configs()[f"study/literal/{scheme}"]
    options = config.scheme_options
    assert (config.learning_rate, config.learning_rate_decay) == (0.1, "none")
    assert (options["code_update"], options["learning_rate_unit"]) == (
        *("integer", "code"),
    )
    assert (options["saturate"], options["error_feedback"]) == (False, False)
    assert options["representation"] == "offset_binary"
    assert options["scale_rule"] == "max"
    parts = ("pruning_threshold", "allocation", "aggregation_weight")
    assert tuple(options[part] for part in parts) == expected


_SIGNED = {"representation": "sign_magnitude"}
_BY_BITS = {"aggregation_weight": "budget_and_examples"}
_FALLING = {"learning_rate_decay": "cosine", "learning_rate_unit": "weight"}
# What a reading changes for AQFL and for FedMPQ, which weighs by bits already; None
# where it is not for a scheme.
_CHANGES = {
    "literal+representation": (_SIGNED, _SIGNED),
    "literal+scales": 2 * ({"scale_rule": "least_squares"},),
    "literal+representation+saturation": (None, {**_SIGNED, "saturate": True}),
    "literal+weights": (_BY_BITS, {}),
    "literal+representation+weights": ({**_SIGNED, **_BY_BITS}, _SIGNED),
    "literal+examples": ({}, {"aggregation_weight": "examples"}),
    "literal+low-rate": ({"learning_rate": 0.03}, None),
    "literal+rate": (None, {"learning_rate": 0.3}),
    "literal+feedback": 2 * ({"error_feedback": True},),
    "literal+training": (_FALLING, _FALLING),
    "literal+distortion": (None, {"allocation": "rate_distortion"}),
    "literal+printed-algorithm2": (None, {"allocation": "literal_pruning_growing"}),
}


@pytest.mark.parametrize("name", [n for n in study.READINGS if n != "literal"])
def test_a_reading_changes_what_it_says(name):
    found = configs()
    for scheme, expected in zip(("aqfl", "fedmpq"), _CHANGES[name]):
        assert (scheme in study.READINGS[name].schemes) == (expected is not None)
        if expected is not None:
            literal = flatten(found[f"study/literal/{scheme}"])
            changed = flatten(found[f"study/{name}/{scheme}"])
            assert changed == {**literal, **expected}
            assert all(literal[key] != value for key, value in expected.items())


_NO_REPAIRS = (
    *("literal+printed-algorithm2", "literal+examples"),
    *("literal+low-rate", "literal+rate"),
)


def test_all_repairs_together_are_our_defaults():
    found = configs()
    for scheme in ("aqfl", "fedmpq"):
        defaults = flatten(found[f"study/defaults/{scheme}"])
        repaired = flatten(found[f"study/literal/{scheme}"])
        for name, reading in study.READINGS.items():
            if scheme in reading.schemes and name not in _NO_REPAIRS:
                repaired.update(reading.settings)
                repaired.update(reading.options)
        assert repaired.pop("scheme") == f"{defaults.pop('scheme')}_literal"
        if scheme == "aqfl":  # It prunes nothing.
            defaults.pop("saturate"), repaired.pop("saturate")
        assert repaired == defaults


def flatten(config):
    settings = config.as_dict()
    options = settings.pop("scheme_options")
    return {**settings, **options}


def test_shares_of_two_bit_clients():
    found = configs()
    for share in (0, 20, 40, 60, 80, 100):
        budgets = found[f"study/two-bit{share}/fedmpq"].budgets
        assert collections.Counter(budgets)[2.0] == share // 10
    assert found["study/two-bit40/aqfl"].budgets == (2, 2, 2, 2, 4, 4, 6, 6, 8, 8)
    assert found["study/two-bit20/aqfl"] == found["study/defaults/aqfl"]


def test_runs_of_the_papers_tables_are_theirs():
    owner = cells.owners("paper")
    for scheme in ("aqfl", "fedmpq"):
        first = f"table1/cifar10/alpha0.5/{scheme}"
        shared = ("study/defaults", "study/two-bit20", "figure2/epochs5")
        shared += ("table2/cifar10/clients10",)
        assert {owner[f"{name}/{scheme}"] for name in shared} == {first}
    assert owner["study/literal/aqfl"] == "study/literal/aqfl"


def test_parts_in_the_literal_reading_are_table_4s():
    found = configs()
    aqfl, fedmpq = (
        flatten(found[f"study/literal+representation/{scheme}"])
        for scheme in ("aqfl", "fedmpq")
    )
    parts = {
        group.rpartition("/")[2]: flatten(config)
        for group, config in found.items()
        if group.startswith("study/literal-parts/")
    }
    assert parts.pop("aqfl") == aqfl
    assert parts.pop("all") == fedmpq
    assert parts.pop("aqfl-weights") == {
        **aqfl,
        "aggregation_weight": "budget_and_examples",
    }
    no_lasso, no_pruning = {"lasso": 0.0}, {"pruning_threshold": None}
    keep = {"allocation": "keep"}
    assert parts == {
        "lasso": {**fedmpq, **no_pruning, **keep},
        "msb": {**fedmpq, **no_lasso, **keep},
        "msb+lasso": {**fedmpq, **keep},
        "msb+alg2": {**fedmpq, **no_lasso},
    }
    assert fedmpq["allocation"] == "pruning_growing"
    assert fedmpq["lasso"] > 0 and fedmpq["pruning_threshold"] > 0


def test_parts_where_all_have_two_bits_are_table_4s():
    found = configs()
    for row in tables.ABLATION:
        papers = flatten(found[f"table4/cifar10/{row}"])
        two_bits = flatten(found[f"study/two-bit100-parts/{row}"])
        assert differing(papers, two_bits) == {"budgets"}
        assert two_bits["budgets"] == [2.0] * 10
    for place, default in (("parts", "defaults"), ("two-bit100-parts", "two-bit100")):
        ours = flatten(found[f"study/{default}/fedmpq"])
        algorithm2 = flatten(found[f"study/{place}/algorithm2"])
        assert differing(ours, algorithm2) == {"allocation"}
        assert algorithm2["allocation"] == "pruning_growing"


def test_outer_layers_are_an_option_of_aqfl():
    found = configs()
    for plain, with_outer in (
        ("study/defaults/aqfl", "study/outer-layers8/aqfl"),
        ("study/two-bit100/aqfl", "study/outer-layers8-two-bit100/aqfl"),
    ):
        without, config = flatten(found[plain]), flatten(found[with_outer])
        assert config.pop("outer_bit_width") == 8
        assert config == without


@pytest.mark.parametrize("scheme", ["aqfl", "fedmpq"])
def test_ranges_differ_by_the_scale_rule(scheme):
    found = configs()
    narrow, wide = (
        flatten(found[f"study/ranges/{rule}/{scheme}"])
        for rule in ("least_squares", "gaussian")
    )
    assert differing(narrow, wide) == {"scale_rule"}
    assert narrow == flatten(found[f"study/defaults/{scheme}"])
