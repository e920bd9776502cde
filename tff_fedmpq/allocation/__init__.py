"""Bit-widths of clients within their budgets."""

from tff_fedmpq.allocation.device_budget import DeviceBudget, budget_for
from tff_fedmpq.allocation.pruning_growing import (
    ORDERS,
    AllocationPolicy,
    Order,
    check_budgets,
    prune_and_grow,
    prune_and_grow_graph,
    uniform_bit_widths,
)

__all__ = [
    "ORDERS",
    "AllocationPolicy",
    "DeviceBudget",
    "Order",
    "budget_for",
    "check_budgets",
    "prune_and_grow",
    "prune_and_grow_graph",
    "uniform_bit_widths",
]
