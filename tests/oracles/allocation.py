"""Oracles of Algorithm 2 (pruning-growing), one bit at a time.

FedMPQ (Chen & Vikalo, CVPR 2024), Eq. 16 and Algorithm 2.  One client at a
time, exact arithmetic; nothing is shared with the package under test.
"""

from __future__ import annotations

import math
from fractions import Fraction

MIN_BIT_WIDTH = 1
MAX_BIT_WIDTH = 8


def rounded_bit_width(mean):
    """Nearest integer, halves to even, clipped to 1..8."""
    return min(max(round(Fraction(float(mean))), MIN_BIT_WIDTH), MAX_BIT_WIDTH)


def pruning_order(bit_reductions, layer_sizes):
    """Layer indices by m * (db + 1) descending, ties by index ascending."""
    keys = [
        (-int(size) * (int(reduction) + 1), layer)
        for layer, (size, reduction) in enumerate(zip(layer_sizes, bit_reductions))
    ]
    return [layer for _, layer in sorted(keys)]


def used_bits(bit_widths, layer_sizes):
    """sum_l b_l m_l as a Python integer."""
    return sum(int(b) * int(size) for b, size in zip(bit_widths, layer_sizes))


def capacity_bits(budget, layer_sizes):
    """floor(budget * number of weights), exact."""
    total = sum(int(size) for size in layer_sizes)
    return math.floor(Fraction(float(budget)) * total)


def average(bit_widths, layer_sizes):
    """Average bits per weight, exact."""
    total = sum(int(size) for size in layer_sizes)
    return Fraction(used_bits(bit_widths, layer_sizes), total)


def _pruned(mean_bit_widths, order, layer_sizes, budget):
    bit_widths = [rounded_bit_width(mean) for mean in mean_bit_widths]
    cur = 0
    while average(bit_widths, layer_sizes) > Fraction(float(budget)):
        if bit_widths[order[cur]] > MIN_BIT_WIDTH:
            bit_widths[order[cur]] -= 1
        else:
            cur += 1
    return bit_widths


def corrected(mean_bit_widths, bit_reductions, layer_sizes, budget):
    """Prune, then grow down to the first layer without passing the capacity."""
    order = pruning_order(bit_reductions, layer_sizes)
    bit_widths = _pruned(mean_bit_widths, order, layer_sizes, budget)
    capacity = capacity_bits(budget, layer_sizes)
    cur = len(order) - 1
    while cur >= 0:
        layer = order[cur]
        raised = list(bit_widths)
        raised[layer] += 1
        fits = used_bits(raised, layer_sizes) <= capacity
        if raised[layer] <= MAX_BIT_WIDTH and fits:
            bit_widths = raised
        else:
            cur -= 1
    return bit_widths


def literal(mean_bit_widths, bit_reductions, layer_sizes, budget):
    """Algorithm 2 as printed: may overshoot, never grows the first layer."""
    order = pruning_order(bit_reductions, layer_sizes)
    bit_widths = _pruned(mean_bit_widths, order, layer_sizes, budget)
    cur = len(order) - 1
    while average(bit_widths, layer_sizes) < Fraction(float(budget)) and cur > 0:
        if bit_widths[order[cur]] < MAX_BIT_WIDTH:
            bit_widths[order[cur]] += 1
        else:
            cur -= 1
    return bit_widths


def least_distortion(distortions, bit_reductions, layer_sizes, budget):
    """Marginal analysis (Fox 1966), one bit at a time; `distortions` are D(1..8).

    Ties go to the layer of fewer bits, then to the first.
    """
    left = capacity_bits(budget, layer_sizes) - sum(int(m) for m in layer_sizes)
    bit_widths = [MIN_BIT_WIDTH] * len(layer_sizes)
    growing = set(range(len(layer_sizes)))
    while growing:

        def preference(layer):
            b = bit_widths[layer]
            removed = distortions[b - 1] - distortions[b]
            price = int(layer_sizes[layer]) * (int(bit_reductions[layer]) + 1)
            return -removed / price, b, layer

        growing -= {i for i in growing if bit_widths[i] == MAX_BIT_WIDTH}
        if not growing:
            break
        layer = min(growing, key=preference)
        if layer_sizes[layer] <= left:
            bit_widths[layer] += 1
            left -= int(layer_sizes[layer])
        else:
            growing.remove(layer)
    return bit_widths
