"""Hypothesis strategies and settings that several test modules share."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

BIT_WIDTHS = tuple(range(1, 9))

# Derandomized: the same examples on every machine and in every run.
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)

bit_widths = st.sampled_from(BIT_WIDTHS)
seeds = st.integers(min_value=0, max_value=2**32 - 1)
shapes = st.sampled_from(
    [(), (1,), (2,), (7,), (100,), (1, 1), (4, 5), (2, 3, 4), (3, 3, 2, 8)]
)
magnitudes = st.floats(min_value=-8, max_value=4).map(lambda power: 10.0**power)


@st.composite
def weights(draw):
    """float32 weights of any shape, 1e-8..1e4 in size; some exactly zero."""
    rng = np.random.default_rng(draw(seeds))
    shape = draw(shapes)
    # A higher power makes heavier tails: most weights far below the largest.
    power = draw(st.sampled_from([0.5, 1, 3]))
    values = rng.normal(size=shape)
    values = np.sign(values) * np.abs(values) ** power
    values = np.where(rng.random(shape) < draw(st.sampled_from([0, 0.3, 1])), 0, values)
    return np.asarray(values * draw(magnitudes), np.float32)


@st.composite
def codes(draw):
    """(codes, bit_width): uint8 codes of any shape, gathered around the middle.

    The spread varies from one level to the whole range, so that the upper
    planes are empty, nearly empty or full.
    """
    rng = np.random.default_rng(draw(seeds))
    bit_width = draw(bit_widths)
    spread = 2.0 ** (bit_width - 1) * draw(st.sampled_from([0.02, 0.1, 0.3, 1, 9]))
    middle = 2.0 ** (bit_width - 1) - 0.5
    values = np.rint(middle + spread * rng.normal(size=draw(shapes)))
    return np.asarray(np.clip(values, 0, 2**bit_width - 1), np.uint8), bit_width
