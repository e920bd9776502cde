import collections

import pytest

from studies.definitions import DIRECTORY, _resolve, load_study

STUDY = """
title = "t"
question = "q"
seeds = [0, 1]
baselines = ["aqfl"]
pairs = [["alpha0.5-few-fedmpq", "alpha0.5-many-aqfl"]]

[protocol]
rounds = 3

[populations]
few = [1, 2]
many = [8, 8]

[axes]
alpha = [0.5, 1.0]
population = ["few", "many"]

[[runs]]
name = "fedmpq"
scheme = "fedmpq"
lasso = 0.0

[[runs]]
name = "aqfl"
title = "AQFL"
scheme = "aqfl"

[[runs]]
name = "fedavg"
scheme = "fedavg"
population = "many"
"""


def load(tmp_path, text=STUDY):
    path = tmp_path / "small.toml"
    path.write_text(text)
    return load_study(str(path))


def test_cells_are_the_product_of_the_axes(tmp_path):
    study = load(tmp_path)

    assert [cell.id for cell in study.cells] == [
        "alpha0.5-few-fedmpq",
        "alpha0.5-many-fedmpq",
        "alpha1-few-fedmpq",
        "alpha1-many-fedmpq",
        "alpha0.5-few-aqfl",
        "alpha0.5-many-aqfl",
        "alpha1-few-aqfl",
        "alpha1-many-aqfl",
        "alpha0.5-fedavg",
        "alpha1-fedavg",
    ]
    assert study.cells[2].settings == {
        "rounds": 3,
        "alpha": 1.0,
        "scheme": "fedmpq",
        "lasso": 0.0,
        "budgets": [1, 2],
    }
    assert study.cells[-1].settings["budgets"] == [8, 8]


def test_run_that_fixes_an_axis_belongs_to_all_its_groups(tmp_path):
    study = load(tmp_path)

    assert len(study.groups) == 4
    for group in study.groups:
        prefix = f"alpha{group['alpha']:g}-"
        assert [cell.id for cell in study.cells_of(group)] == [
            f"{prefix}{group['population']}-fedmpq",
            f"{prefix}{group['population']}-aqfl",
            f"{prefix}fedavg",
        ]


def test_several_grids_are_united(tmp_path):
    text = STUDY[: STUDY.index("[axes]")].replace("pairs", "# pairs")
    text += '[[axes]]\nalpha = [0.5]\n[[axes]]\ndataset = ["digits"]\n'
    text += '[[runs]]\nname = "aqfl"\nscheme = "aqfl"\n'

    assert [c.id for c in load(tmp_path, text).cells] == [
        "alpha0.5-aqfl",
        "digits-aqfl",
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        (('title = "t"', ""), "missing .'title'"),
        (("seeds = ", "sedes = [0]\nseeds = "), "unknown .'sedes'"),
        (('["few", "many"]', '["few", "rich"]'), "Unknown population 'rich'"),
        (('["aqfl"]', '["aqlf"]'), "aqlf"),
        (("alpha0.5-few-fedmpq", "alpha0.7-few-fedmpq"), "alpha0.7"),
        (('name = "aqfl"', 'name = "fedmpq"'), "name of its own"),
        (("seeds =", "seeds ="[::-1]), "small.toml"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, STUDY.replace(*change, 1))


def test_unknown_study_lists_the_known_ones():
    with pytest.raises(ValueError, match=", one_bit, populations, .*table1, table4"):
        load_study("nothing")


def test_texts_stand_for_functions_and_none():
    assert _resolve("studies.definitions:load_study") is load_study
    assert _resolve("None") is None
    assert _resolve("cosine") == "cosine"
    assert _resolve(2.0) == 2.0
    for wrong in ("studies.definitions:nothing", "studies.nothing:load_study"):
        with pytest.raises(ValueError, match="cannot be imported"):
            _resolve(wrong)


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("*.toml")), ids=lambda p: p.stem)
def test_studies_of_the_repository_can_be_loaded(path):
    study = load_study(path.stem)

    assert study.cells
    assert len({cell.id for cell in study.cells}) == len(study.cells)


def test_populations_has_each_float_run_once_per_alpha():
    study = load_study("populations")

    of_runs = collections.Counter(cell.run for cell in study.cells)
    assert (of_runs["fedavg"], of_runs["fpq8"], of_runs["fedmpq"]) == (2, 2, 2 * 4)
    group = study.cells_of({"alpha": 0.1, "population": "frugal"})
    assert {cell.run for cell in group} == set(of_runs)
    sums = {name: sum(budgets) for name, budgets in study.populations.items()}
    assert sums["frugal"] / sums["paper"] == pytest.approx(0.84)
