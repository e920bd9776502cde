"""Oracles of Pruning-Growing, one client and one bit at a time.

FedMPQ (Chen & Vikalo, CVPR 2024), Eq. 16 and Algorithm 2, and its generalization to a
value per bit. Arithmetic is exact; nothing is shared with the package under test.
"""

from __future__ import annotations

import math
from fractions import Fraction

MIN_BIT_WIDTH = 1
MAX_BIT_WIDTH = 8


def rounded_bit_width(mean):
    """Returns the nearest integer, halves to even, clipped to 1..8."""
    return min(max(round(Fraction(float(mean))), MIN_BIT_WIDTH), MAX_BIT_WIDTH)


def pruning_order(bit_reductions, layer_sizes):
    """Returns layers by m * (db + 1) descending, ties by index ascending."""
    keys = [
        (-int(size) * (int(reduction) + 1), layer)
        for layer, (size, reduction) in enumerate(zip(layer_sizes, bit_reductions))
    ]
    return [layer for _, layer in sorted(keys)]


def used_bits(bit_widths, layer_sizes):
    """Returns sum_l b_l m_l as a Python integer."""
    return sum(int(b) * int(size) for b, size in zip(bit_widths, layer_sizes))


def capacity_bits(budget, layer_sizes):
    """Returns floor(budget * number of weights), exact."""
    total = sum(int(size) for size in layer_sizes)
    return math.floor(Fraction(float(budget)) * total)


def corrected(mean_bit_widths, bit_reductions, layer_sizes, budget):
    """Prunes and grows layer after layer: Algorithm 2, corrected.

    Growing reaches the first layer too, and never exceeds the budget.
    """
    order = pruning_order(bit_reductions, layer_sizes)
    capacity = capacity_bits(budget, layer_sizes)
    bit_widths = [rounded_bit_width(mean) for mean in mean_bit_widths]
    cur = 0
    while used_bits(bit_widths, layer_sizes) > capacity:
        if bit_widths[order[cur]] > MIN_BIT_WIDTH:
            bit_widths[order[cur]] -= 1
        else:
            cur += 1
    cur = len(order) - 1
    while cur >= 0:
        raised = list(bit_widths)
        raised[order[cur]] += 1
        fits = used_bits(raised, layer_sizes) <= capacity
        if raised[order[cur]] <= MAX_BIT_WIDTH and fits:
            bit_widths = raised
        else:
            cur -= 1
    return bit_widths


def distortion_values(distortions, bit_reductions, layer_sizes):
    """Returns (D(b - 1) - D(b)) / (m (db + 1)), exact: values[b - 2][layer].

    Args:
      distortions: D(1), ..., D(8).
      bit_reductions: db, [L].
      layer_sizes: m, [L].
    """
    exact = [Fraction(float(d)) for d in distortions]
    return [
        [
            (exact[b - 2] - exact[b - 1]) / (int(size) * (int(reduction) + 1))
            for size, reduction in zip(layer_sizes, bit_reductions)
        ]
        for b in range(MIN_BIT_WIDTH + 1, MAX_BIT_WIDTH + 1)
    ]


def by_value(values, mean_bit_widths, layer_sizes, budget):
    """Prunes the least valuable bits, then grows the most valuable ones that fit.

    Of equal bits, the higher one and the later layer is pruned first and grown last.

    Args:
      values: Value of bit b of a layer, values[b - 2][layer], for b = 2, ..., 8; not
        increasing in b.
      mean_bit_widths: [L].
      layer_sizes: [L].
      budget: Bits per weight.
    """
    bit_widths = [rounded_bit_width(mean) for mean in mean_bit_widths]
    left = capacity_bits(budget, layer_sizes) - used_bits(bit_widths, layer_sizes)

    def rank(layer, bit):
        return -values[bit - 2][layer], bit, layer

    while left < 0:
        prunable = [i for i, b in enumerate(bit_widths) if b > MIN_BIT_WIDTH]
        layer = max(prunable, key=lambda i: rank(i, bit_widths[i]))
        bit_widths[layer] -= 1
        left += int(layer_sizes[layer])
    while True:
        growable = [
            i
            for i, b in enumerate(bit_widths)
            if b < MAX_BIT_WIDTH and layer_sizes[i] <= left
        ]
        if not growable:
            return bit_widths
        layer = min(growable, key=lambda i: rank(i, bit_widths[i] + 1))
        bit_widths[layer] += 1
        left -= int(layer_sizes[layer])
