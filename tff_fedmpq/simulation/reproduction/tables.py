"""The paper's Tables 1 to 4 and Figure 2 as grids of slots.

A `Slot` is what one place of a table asks for: settings on top of a preset's, under a
readable id. The same grids say what is run (`cells`) and what the document shows, so
the two cannot come apart.

What the paper does not say, and is assumed here: half of the clients train in a round
for every number of clients (Table 2); Table 3, Table 4 and Figure 2 are at alpha 0.5;
Figure 2 is of CIFAR-10.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tff_fedmpq.simulation.reproduction import paper


@dataclasses.dataclass(frozen=True)
class Slot:
    """One place of a table; with a seed and a preset it is a run.

    Attributes:
      group: id without the seed, such as "table1/cifar10/alpha0.5/fedmpq".
      settings: of `ExperimentConfig`, on top of the preset's.
      paper: the paper's accuracy, %; None where it prints none.
      only_preset: the one preset that it may be run at; "" allows all.
    """

    group: str
    settings: Mapping[str, Any]
    paper: float | None = None
    only_preset: str = ""


class Variant(NamedTuple):
    """A way to run some schemes, as a row of a table.

    Attributes:
      title: what it is.
      schemes: that it is for.
      settings: of `ExperimentConfig`.
      options: of the schemes.
    """

    title: str
    schemes: Sequence[str]
    settings: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table of slots.

    Attributes:
      title: what it is of.
      corner: heading of the column of row headings.
      rows: row headings.
      columns: column headings.
      slots: (row heading, column heading) -> slot; a place may be empty.
      with_paper: whether the paper has such a table.
      note: a sentence below the title.
    """

    title: str
    corner: str
    rows: Sequence[str]
    columns: Sequence[str]
    slots: Mapping[tuple[str, str], Slot]
    with_paper: bool = True
    note: str = ""


# The rows of Table 4: FedMPQ without some of its parts. The first is AQFL.
ABLATION: Mapping[str, Mapping[str, Any]] = {
    "aqfl": {"scheme": "aqfl"},
    "lasso": {
        "scheme": "fedmpq",
        "scheme_options": {"pruning_threshold": None, "allocation": "keep"},
    },
    "msb": {"scheme": "fedmpq", "scheme_options": {"lasso": 0.0, "allocation": "keep"}},
    "msb+lasso": {"scheme": "fedmpq", "scheme_options": {"allocation": "keep"}},
    "msb+alg2": {"scheme": "fedmpq", "scheme_options": {"lasso": 0.0}},
    "all": {"scheme": "fedmpq"},
}
ABLATION_TITLES: Mapping[str, str] = {
    "aqfl": "AQFL",
    "lasso": "Lasso",
    "msb": "MSB pruning",
    "msb+lasso": "MSB pruning, Lasso",
    "msb+alg2": "MSB pruning, allocation",
    "all": "all three (FedMPQ)",
}


def table_1() -> list[Grid]:
    """Returns Table 1: six schemes at three degrees of heterogeneity."""
    grids = []
    for dataset, by_scheme in paper.TABLE_1.items():
        slots = {}
        for column, alpha in enumerate(paper.ALPHAS):
            for scheme, numbers in by_scheme.items():
                place = (paper.SCHEME_TITLES[scheme], f"alpha {alpha:g}")
                slots[place] = Slot(
                    f"table1/{dataset}/alpha{alpha:g}/{scheme}",
                    {"dataset": dataset, "alpha": alpha, "scheme": scheme},
                    numbers[column],
                )
        title = f"Table 1, {paper.DATASET_TITLES[dataset]}: heterogeneity"
        grids.append(make_grid(title, "scheme", slots))
    return grids


def table_2() -> list[Grid]:
    """Returns Table 2: six schemes with 10, 20 and 40 clients."""
    grids = []
    for dataset, by_scheme in paper.TABLE_2.items():
        slots = {}
        for column, clients in enumerate(paper.CLIENTS):
            for scheme, numbers in by_scheme.items():
                place = (paper.SCHEME_TITLES[scheme], f"{clients} clients")
                slots[place] = Slot(
                    f"table2/{dataset}/clients{clients}/{scheme}",
                    {
                        "dataset": dataset,
                        "scheme": scheme,
                        "num_clients": clients,
                        "clients_per_round": clients // 2,
                    },
                    numbers[column],
                )
        title = f"Table 2, {paper.DATASET_TITLES[dataset]}: number of clients"
        grids.append(make_grid(title, "scheme", slots))
    return grids


def table_3() -> list[Grid]:
    """Returns Table 3: FedMPQ's lambda and epsilon."""
    slots = {}
    for lasso, numbers in paper.TABLE_3.items():
        for epsilon, number in zip(paper.EPSILONS, numbers):
            slots[f"lambda {lasso:g}", f"epsilon {epsilon:g}"] = Slot(
                f"table3/cifar10/lambda{lasso:g}/epsilon{epsilon:g}",
                {
                    "dataset": "cifar10",
                    "scheme": "fedmpq",
                    "scheme_options": {"lasso": lasso, "pruning_threshold": epsilon},
                },
                number,
            )
    return [make_grid("Table 3, CIFAR-10: lambda and epsilon of FedMPQ", "", slots)]


def table_4() -> list[Grid]:
    """Returns Table 4: FedMPQ without some of its parts."""
    slots = {
        (ABLATION_TITLES[row], paper.DATASET_TITLES[dataset]): ablation_slot(
            row, dataset
        )
        for dataset in paper.TABLE_4
        for row in ABLATION
    }
    return [make_grid("Table 4: parts of FedMPQ", "parts", slots)]


def ablation_slot(row: str, dataset: str) -> Slot:
    """Returns a place of Table 4."""
    return Slot(
        f"table4/{dataset}/{row}",
        {"dataset": dataset, **ABLATION[row]},
        paper.TABLE_4[dataset][row],
    )


def figure_2() -> list[Grid]:
    """Returns Figure 2: accuracy at the end for several local epochs."""
    slots = {
        (paper.SCHEME_TITLES[scheme], f"{epochs} epochs"): epochs_slot(scheme, epochs)
        for epochs in paper.FIGURE_2_EPOCHS
        for scheme in paper.FIGURE_2_SCHEMES
    }
    note = "The paper prints a figure and no numbers; at 5 epochs they are Table 1's."
    return [make_grid("Figure 2, CIFAR-10: local epochs", "scheme", slots, note=note)]


def epochs_slot(scheme: str, epochs: int) -> Slot:
    """Returns a point of Figure 2."""
    return Slot(
        f"figure2/epochs{epochs}/{scheme}",
        {"dataset": "cifar10", "scheme": scheme, "local_epochs": epochs},
        paper.TABLE_1["cifar10"][scheme][1] if epochs == 5 else None,
    )


def make_grid(
    title: str,
    corner: str,
    slots: Mapping[tuple[str, str], Slot],
    *,
    with_paper: bool = True,
    note: str = "",
) -> Grid:
    """Returns a grid whose headings stand in the order in which slots name them."""
    rows = list(dict.fromkeys(row for row, _ in slots))
    columns = list(dict.fromkeys(column for _, column in slots))
    return Grid(title, corner, rows, columns, dict(slots), with_paper, note)
