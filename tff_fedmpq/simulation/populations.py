"""Populations of clients by their bit budgets."""

from collections.abc import Mapping

# The paper's population: 20, 30, 30 and 20 % of the clients at 2, 4, 6 and 8 bits.
PAPER_TIERS: Mapping[float, float] = {2.0: 0.2, 4.0: 0.3, 6.0: 0.3, 8.0: 0.2}


def tiered_budgets(
    num_clients: int, tiers: Mapping[float, float] = PAPER_TIERS
) -> tuple[float, ...]:
    """Returns the budgets of N clients, in bits per weight, ascending.

    `tiers` maps a budget to its share of the clients; the paper's give N = 10 clients
    2, 2, 4, 4, 4, 6, 6, 6, 8, 8. Where shares do not give whole clients, boundaries are
    rounded to nearest. Raises ValueError unless N >= 1 and the shares add up to 1.
    """
    if num_clients < 1:
        raise ValueError(f"Expected at least one client, found {num_clients}.")
    if min(tiers.values()) < 0 or abs(sum(tiers.values()) - 1) > 1e-9:
        raise ValueError(f"Shares of tiers have to add up to 1, found {dict(tiers)}.")
    budgets: list[float] = []
    total = 0.0
    for budget, share in sorted(tiers.items()):
        total += share
        budgets += [float(budget)] * (round(total * num_clients) - len(budgets))
    return tuple(budgets)
