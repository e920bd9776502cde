"""Dithered lattices: nearest points by brute force, errors by the theory.

The theory of subtractive dither: the error is uniform over the Voronoi cell whatever
the input is. Sampling errors are given as standard errors of the seeded samples.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_fedmpq.baselines import lattice as lattice_lib
from tff_fedmpq.baselines.lattice import HEXAGONAL, INTEGERS

# Columns generate the lattice; the equations' own, apart from the code's.
GENERATORS = {
    "integer": np.array([[1.0]]),
    "hexagonal": np.array([[2.0, 1.0], [0.0, math.sqrt(3)]]),
}
# Of the Voronoi cell: the closed form for a hexagon is 5 / (36 sqrt 3).
SECOND_MOMENTS = {"integer": 1 / 12, "hexagonal": 0.0801875}
SOURCES = {
    "gaussian": lambda rng, shape: rng.normal(size=shape),
    "laplace": lambda rng, shape: rng.laplace(scale=math.sqrt(0.5), size=shape),
}
# Differential entropy at variance 1, bits per entry.
ENTROPIES = {
    "gaussian": 0.5 * math.log2(2 * math.pi * math.e),
    "laplace": math.log2(2 * math.e * math.sqrt(0.5)),
}
SIGMAS = 5.0

every_lattice = pytest.mark.parametrize("name", sorted(GENERATORS))
every_source = pytest.mark.parametrize("source", sorted(SOURCES))


def volume(name):
    return abs(np.linalg.det(GENERATORS[name]))


def draw(source, num_vectors, name, seed=0):
    """Vectors of independent entries of variance 1, and numbers for the dither."""
    rng = np.random.default_rng(seed)
    shape = (num_vectors, len(GENERATORS[name]))
    x = SOURCES[source](rng, shape).astype(np.float32)
    return x, rng.random(shape, np.float32)


def restore(name, x, step, uniform):
    """Vectors after the way there and back, and their coordinates."""
    lattice = lattice_lib.LATTICES[name]
    coordinates = lattice_lib.quantize(lattice, x, step, uniform)
    restored = lattice_lib.dequantize(lattice, coordinates, step, uniform)
    return restored.numpy().astype(np.float64), coordinates.numpy()


def nearest_distance(name, x):
    """Distance to the nearest point among all in the neighbourhood: float64[n]."""
    generator = GENERATORS[name]
    base = np.floor(np.linalg.solve(generator, x.T).T)
    shifts = itertools.product(range(-3, 5), repeat=len(generator))
    distances = [
        np.linalg.norm((base + shift) @ generator.T - x, axis=1) for shift in shifts
    ]
    return np.min(distances, axis=0)


def kolmogorov_distance(values, cdf):
    """Largest distance of the empirical distribution from `cdf`."""
    values = np.sort(values)
    expected, n = cdf(values), len(values)
    above = np.arange(1, n + 1) / n - expected
    below = expected - np.arange(n) / n
    return max(above.max(), below.max())


# --- points -----------------------------------------------------------------


@every_lattice
def test_dimension_is_that_of_the_generator(name):
    assert lattice_lib.LATTICES[name].dimension == len(GENERATORS[name])


@every_lattice
def test_points_are_those_of_the_generator(name):
    """Coordinates name every point of the lattice, and each once."""
    lattice, dimension = lattice_lib.LATTICES[name], len(GENERATORS[name])
    grid = np.array(list(itertools.product(range(-6, 7), repeat=dimension)))
    points = lattice.points(tf.constant(grid, tf.float32)).numpy().astype(np.float64)
    multiples = np.linalg.solve(GENERATORS[name], points.T).T
    np.testing.assert_allclose(multiples, np.rint(multiples), atol=1e-5)
    found = {tuple(row) for row in np.rint(multiples).astype(int).tolist()}
    assert len(found) == len(grid)
    assert set(itertools.product(range(-2, 3), repeat=dimension)) <= found


@every_lattice
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), size=st.floats(1e-3, 1e3))
def test_nearest_is_the_nearest(name, seed, size):
    lattice = lattice_lib.LATTICES[name]
    rng = np.random.default_rng(seed)
    x = rng.uniform(-size, size, [100, lattice.dimension]).astype(np.float32)
    coordinates = lattice.nearest(tf.constant(x))
    np.testing.assert_array_equal(coordinates, np.rint(coordinates))
    distance = np.linalg.norm(lattice.points(coordinates).numpy() - x, axis=1)
    nearest = nearest_distance(name, x.astype(np.float64))
    np.testing.assert_allclose(distance, nearest, atol=1e-6 * max(size, 1) + 1e-6)


@every_lattice
def test_a_lattice_point_is_its_own_nearest(name):
    lattice = lattice_lib.LATTICES[name]
    grid = itertools.product(range(-20, 21), repeat=lattice.dimension)
    coordinates = tf.constant(list(grid), tf.float32)
    nearest = lattice.nearest(lattice.points(coordinates))
    np.testing.assert_array_equal(nearest, coordinates)


@every_lattice
def test_the_dithers_cell_is_one_cell(name):
    """Modulo the lattice it is uniform: multiples' fractions are, independently."""
    lattice, n = lattice_lib.LATTICES[name], 40_000
    uniform = np.random.default_rng(1).random((n, lattice.dimension), np.float32)
    dither = lattice.cell(tf.constant(uniform)).numpy().astype(np.float64)
    multiples = np.linalg.solve(GENERATORS[name], dither.T).T
    fractions = multiples - np.floor(multiples)
    for column in fractions.T:
        assert kolmogorov_distance(column, lambda t: t) < 1.95 / math.sqrt(n)
    if lattice.dimension == 2:
        correlation = np.corrcoef(fractions.T)[0, 1]
        assert abs(correlation) < SIGMAS / math.sqrt(n)


# --- distortion -------------------------------------------------------------


@every_lattice
@every_source
@pytest.mark.parametrize("step", [0.05, 0.5, 3.0])
def test_mean_squared_error_is_the_second_moment(name, source, step):
    """Per entry Delta^2 G V^(2/L), at a fine and at a coarse step alike."""
    x, uniform = draw(source, 40_000, name)
    restored, _ = restore(name, x, step, uniform)
    squared = np.mean((restored - x) ** 2, axis=1)
    dimension = len(GENERATORS[name])
    expected = step**2 * SECOND_MOMENTS[name] * volume(name) ** (2 / dimension)
    standard_error = np.std(squared) / math.sqrt(len(squared))
    assert abs(np.mean(squared) - expected) < SIGMAS * standard_error
    assert standard_error < 0.01 * expected  # The test can tell.


@every_source
@pytest.mark.parametrize("step", [0.5, 3.0])
def test_the_error_of_integers_is_uniform(source, step):
    x, uniform = draw(source, 40_000, "integer")
    restored, _ = restore("integer", x, step, uniform)
    error = (restored - x)[:, 0] / step
    assert np.max(np.abs(error)) < 0.5 + 1e-4
    distance = kolmogorov_distance(error, lambda t: t + 0.5)
    assert distance < 1.95 / math.sqrt(len(error))


@every_source
@pytest.mark.parametrize("step", [0.5, 3.0])
def test_the_error_of_the_hexagonal_lattice_is_uniform(source, step):
    """Over a hexagon of inradius 1: its share within radius t is t^2, per sextant."""
    x, uniform = draw(source, 40_000, "hexagonal")
    restored, _ = restore("hexagonal", x, step, uniform)
    error = (restored - x) / step
    angles = np.arange(6) * math.pi / 3
    normals = np.stack([np.cos(angles), np.sin(angles)])
    gauge = error @ normals
    radius, sextant = np.max(gauge, axis=1), np.argmax(gauge, axis=1)
    n = len(error)
    assert np.max(radius) < 1 + 1e-4
    distance = kolmogorov_distance(radius, lambda t: np.clip(t, 0, 1) ** 2)
    assert distance < 1.95 / math.sqrt(n)
    shares = np.bincount(sextant, minlength=6) / n
    assert np.max(np.abs(shares - 1 / 6)) < SIGMAS * math.sqrt(5 / 36 / n)


@every_lattice
@every_source
@pytest.mark.parametrize("step", [0.5, 3.0])
def test_the_error_does_not_depend_on_the_input(name, source, step):
    x, uniform = draw(source, 40_000, name)
    restored, _ = restore(name, x, step, uniform)
    error = restored - x
    for of_x, of_error in ((x, error), (np.abs(x), error**2), (x**2, np.abs(error))):
        for a, b in itertools.product(of_x.T, of_error.T):
            correlation = np.corrcoef(a, b)[0, 1]
            assert abs(correlation) < SIGMAS / math.sqrt(len(x))


@every_lattice
@pytest.mark.parametrize("value", [0.0, 0.37, -2.5])
def test_a_constant_is_restored_without_bias(name, value):
    _, uniform = draw("gaussian", 40_000, name)
    x = np.full(uniform.shape, value, np.float32)
    restored, _ = restore(name, x, 1.0, uniform)
    standard_error = np.std(restored, axis=0) / math.sqrt(len(x))
    assert np.all(np.abs(restored.mean(axis=0) - value) < SIGMAS * standard_error)
    assert np.all(standard_error > 0)


@every_lattice
def test_another_dither_restores_something_else(name):
    """The receiver needs the sender's: a wrong one adds its own error twice."""
    lattice = lattice_lib.LATTICES[name]
    x, uniform = draw("gaussian", 10_000, name)
    _, other = draw("gaussian", 10_000, name, seed=1)
    coordinates = lattice_lib.quantize(lattice, x, 1.0, uniform)
    right = lattice_lib.dequantize(lattice, coordinates, 1.0, uniform).numpy()
    wrong = lattice_lib.dequantize(lattice, coordinates, 1.0, other).numpy()
    assert np.mean((wrong - x) ** 2) > 2.5 * np.mean((right - x) ** 2)


def test_steps_broadcast():
    """One step per vector is what each step alone gives."""
    x, uniform = draw("gaussian", 100, "hexagonal")
    steps = np.linspace(0.1, 2, 100, dtype=np.float32)[:, np.newaxis]
    together, _ = restore("hexagonal", x, steps, uniform)
    for i in (0, 50, 99):
        row = slice(i, i + 1)
        alone, _ = restore("hexagonal", x[row], steps[i, 0], uniform[row])
        np.testing.assert_array_equal(together[row], alone)


# --- rate -------------------------------------------------------------------


def entropy_oracle(symbols):
    """Bits of all symbols at their empirical entropy, float64."""
    _, counts = np.unique(symbols, return_counts=True)
    return float(-np.sum(counts * np.log2(counts / len(symbols))))


def rate(coordinates):
    """Bits per entry, coordinates coded apart."""
    return sum(entropy_oracle(column) for column in coordinates.T) / coordinates.size


@every_lattice
@every_source
@pytest.mark.parametrize("step", [1 / 16, 1 / 4])
def test_rate_at_small_steps_is_the_theorys(name, source, step):
    """Per entry h(X) - log2(Delta V^(1/L)), but for what a step blurs the density."""
    x, uniform = draw(source, 200_000, name)
    _, coordinates = restore(name, x, step, uniform)
    dimension = len(GENERATORS[name])
    expected = ENTROPIES[source] - math.log2(step * volume(name) ** (1 / dimension))
    # The blur adds about Delta^2 to the variance of an entry (dither and error); a
    # sample's entropy is off by 1/sqrt(n), and by half a unit per symbol used.
    blur = 2.0 * step**2
    sampling = SIGMAS * 1.44 / math.sqrt(x.size)
    bias = sum(len(np.unique(c)) for c in coordinates.T) / x.size
    assert abs(rate(coordinates) - expected) < blur + sampling + bias
    assert blur + sampling + bias < 0.15


def test_the_hexagon_beats_the_square_at_equal_rate():
    """By the space-filling gain, 10 log10((1/12) / 0.0802) = 0.17 dB, or 0.028 bits."""
    x, uniform = draw("gaussian", 200_000, "hexagonal")
    distortions, rates = [], []
    for name, step in (("integer", 0.1), ("hexagonal", 0.1 / math.sqrt(2 * 3**0.5))):
        shape = (-1, len(GENERATORS[name]))
        restored, coordinates = restore(
            name, x.reshape(shape), step, uniform.reshape(shape)
        )
        distortions.append(np.mean((restored - x.reshape(shape)) ** 2))
        rates.append(rate(coordinates))
    # A bit is worth a factor of four in distortion.
    gain = 10 * math.log10(distortions[0] / distortions[1])
    gain += 20 * math.log10(2) * (rates[0] - rates[1])
    expected = 10 * math.log10(SECOND_MOMENTS["integer"] / SECOND_MOMENTS["hexagonal"])
    assert expected == pytest.approx(0.167, abs=0.001)
    # Standard errors: 0.006 dB of the distortions; that of the rates largely cancels.
    assert gain == pytest.approx(expected, abs=0.04)


@every_lattice
def test_no_information_needs_no_bits(name):
    """A dither of zero's own cell leaves zeros where they are."""
    lattice = lattice_lib.LATTICES[name]
    _, uniform = draw("gaussian", 1_000, name)
    coordinates = lattice_lib.quantize(lattice, tf.zeros_like(uniform), 1.0, uniform)
    assert rate(coordinates.numpy()) == 0.0


def test_lattices_have_names():
    assert lattice_lib.LATTICES == {"integer": INTEGERS, "hexagonal": HEXAGONAL}
