"""Populations of clients by their bit budgets."""

from collections.abc import Mapping

from tff_fedmpq.lookup import check_count

# The paper's population: 20, 30, 30 and 20 % of the clients at 2, 4, 6 and 8 bits.
PAPER_TIERS: Mapping[float, float] = {2.0: 0.2, 4.0: 0.3, 6.0: 0.3, 8.0: 0.2}


def tiered_budgets(num_clients: int) -> tuple[float, ...]:
    """Returns the budgets of the paper's population, in bits per weight, ascending.

    Ten clients have 2, 2, 4, 4, 4, 6, 6, 6, 8, 8. Where shares do not give whole
    clients, boundaries are rounded to nearest. ValueError unless there is a client.
    """
    check_count(num_clients, "num_clients")
    budgets: list[float] = []
    total = 0.0
    for budget, share in PAPER_TIERS.items():
        total += share
        budgets += [budget] * (round(total * num_clients) - len(budgets))
    return tuple(budgets)
