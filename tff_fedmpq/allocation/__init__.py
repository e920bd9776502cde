"""Bit-widths within budgets: by distortion, or by Pruning-Growing (Algorithm 2)."""

from tff_fedmpq.allocation.budgets import PAPER_TIERS, check_budgets, tiered_budgets
from tff_fedmpq.allocation.prune_and_grow import (
    prune_and_grow,
    prune_and_grow_graph,
    uniform_bit_widths,
)

__all__ = [
    "PAPER_TIERS",
    "check_budgets",
    "prune_and_grow",
    "prune_and_grow_graph",
    "tiered_budgets",
    "uniform_bit_widths",
]
