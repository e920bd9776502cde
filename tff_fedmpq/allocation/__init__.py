"""Bit-widths within budgets: by distortion, or by Pruning-Growing (Algorithm 2)."""

from tff_fedmpq.allocation.budgets import PAPER_TIERS, tiered_budgets
from tff_fedmpq.allocation.policies import get_allocation_policy
from tff_fedmpq.allocation.pruning_growing import (
    check_budgets,
    prune_and_grow,
    prune_and_grow_graph,
    uniform_bit_widths,
)
from tff_fedmpq.allocation.rate_distortion import minimize_distortion_graph

__all__ = [
    "PAPER_TIERS",
    "check_budgets",
    "get_allocation_policy",
    "minimize_distortion_graph",
    "prune_and_grow",
    "prune_and_grow_graph",
    "tiered_budgets",
    "uniform_bit_widths",
]
