"""Tests of the Dirichlet partition and its manifest."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_fedmpq.simulation.data import partitions
from tff_fedmpq.simulation.data.partitions import Partition, dirichlet_partition

LABELS = np.random.default_rng(0).integers(0, 10, 5_000)


def count_classes(partition):
    """Returns each client's number of examples of each class of `LABELS`."""
    shares = [LABELS[indices] for indices in partition.client_indices]
    return np.stack([np.bincount(share, minlength=10) for share in shares])


def test_the_draws_of_the_paper_runs_are_kept():
    # Results in studies/ were made with these draws.
    partition = dirichlet_partition(LABELS, 5, 0.5, seed=7)
    np.testing.assert_array_equal(partition.sizes, [1031, 1072, 1048, 1233, 616])
    first = [indices[:2].tolist() for indices in partition.client_indices]
    expected = [[4581, 589], [2715, 3710], [1679, 4049], [4321, 1373], [903, 257]]
    assert first == expected


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 6), max_size=200),
    num_clients=st.integers(1, 30),
    alpha=st.floats(5e-324, 1.7e308),
    seed=st.integers(0, 2**64),
)
def test_every_example_is_at_exactly_one_client(labels, num_clients, alpha, seed):
    partition = dirichlet_partition(np.array(labels), num_clients, alpha, seed)

    assert partition.num_clients == num_clients
    assert all(indices.dtype == np.int64 for indices in partition.client_indices)
    everything = np.concatenate(partition.client_indices)
    np.testing.assert_array_equal(np.sort(everything), np.arange(len(labels)))
    assert partition.sizes.sum() == len(labels)


def test_same_seed_same_partition_whatever_the_global_generator():
    np.random.seed(1)
    first = dirichlet_partition(LABELS, 10, 0.5, seed=3)
    np.random.seed(2)
    second = dirichlet_partition(LABELS, 10, 0.5, seed=3)
    other = dirichlet_partition(LABELS, 10, 0.5, seed=4)

    assert first == second
    assert first != other
    assert first != "a partition"


def test_a_large_alpha_is_nearly_uniform():
    counts = count_classes(dirichlet_partition(LABELS, 10, 1e6, seed=0))
    expected = np.bincount(LABELS) / 10.0
    # Proportions deviate by 1e-4; what remains is rounding at both cut points.
    np.testing.assert_allclose(counts, np.tile(expected, (10, 1)), atol=2.0)


@pytest.mark.parametrize("alpha", [1e-300, 1e-6])
def test_a_tiny_alpha_gives_each_class_to_one_client(alpha):
    partition = dirichlet_partition(LABELS, 10, alpha, seed=0)
    counts = count_classes(partition)
    np.testing.assert_array_equal(counts.max(axis=0), np.bincount(LABELS))
    assert (partition.sizes == 0).any()


def test_concentration_falls_with_alpha():
    def mean_largest_share(alpha):
        shares = []
        for seed in range(20):
            counts = count_classes(dirichlet_partition(LABELS, 10, alpha, seed))
            shares.append((counts.max(axis=0) / counts.sum(axis=0)).mean())
        return np.mean(shares)

    shares = [mean_largest_share(alpha) for alpha in (0.01, 0.1, 0.5, 1.0, 10.0, 1e4)]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 5.0])
def test_proportions_have_the_moments_of_the_dirichlet_distribution(alpha):
    rng = np.random.default_rng(0)
    draws = np.stack(
        [partitions._sample_dirichlet(rng, 4, alpha) for _ in range(20_000)]
    )
    # Var p_i = (1/N) (1 - 1/N) / (N alpha + 1).
    np.testing.assert_allclose(draws.sum(axis=1), 1.0)
    np.testing.assert_allclose(draws.mean(axis=0), 0.25, atol=0.015)
    variance = 0.25 * 0.75 / (4 * alpha + 1)
    np.testing.assert_allclose(draws.var(axis=0), variance, rtol=0.05)


@pytest.mark.parametrize("alpha", [5e-324, 1e-308, 1e-6])
def test_the_smallest_alphas_pick_one_client_evenly(alpha):
    rng = np.random.default_rng(0)
    draws = np.stack(
        [partitions._sample_dirichlet(rng, 4, alpha) for _ in range(2_000)]
    )
    np.testing.assert_allclose(draws.max(axis=1), 1.0, atol=1e-3)
    # Six standard deviations of the mean: 6 sqrt(1/4 * 3/4 / 2000) = 0.058.
    np.testing.assert_allclose(draws.mean(axis=0), 0.25, atol=0.058)


def test_a_client_does_not_hold_one_class_after_another():
    labels = np.repeat(np.arange(10), 100)
    (indices,) = dirichlet_partition(labels, 1, 1.0, seed=0).client_indices
    changes = np.count_nonzero(np.diff(labels[indices]))
    assert changes > 800  # 9 if sorted, 900 expected for a random order.


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.nan, np.inf])
def test_alpha_has_to_be_positive_and_finite(alpha):
    with pytest.raises(ValueError, match="alpha: expected a finite number above 0"):
        dirichlet_partition(LABELS, 10, alpha, seed=0)


def test_other_wrong_arguments():
    with pytest.raises(ValueError, match="num_clients: expected at least 1, found 0"):
        dirichlet_partition(LABELS, 0, 1.0, seed=0)
    with pytest.raises(ValueError, match="seed: expected 0 or more, found -1"):
        dirichlet_partition(LABELS, 1, 1.0, seed=-1)
    with pytest.raises(ValueError, match="one dimension, found shape"):
        dirichlet_partition(LABELS[:, np.newaxis], 1, 1.0, seed=0)
    with pytest.raises(TypeError, match="expected integers, found float"):
        dirichlet_partition(LABELS * 0.5, 1, 1.0, seed=0)


@pytest.mark.parametrize(
    "client_indices, message",
    [
        ((), "at least one client"),
        (([0, 1], [1, 2]), "1 repetitions"),
        (([0], [-1]), r"client_indices\[1\]: expected .* 0 or more, found -1"),
        (([0.5],), "found float64"),
        (([[0]],), "expected int64"),
    ],
)
def test_a_partition_checks_its_indices(client_indices, message):
    with pytest.raises(ValueError, match=message):
        Partition(client_indices, alpha=1.0, seed=0)


def test_indices_cannot_be_changed_later():
    mine = np.array([1, 2])
    partition = Partition((mine,), alpha=1.0, seed=0)
    mine[0] = 7
    np.testing.assert_array_equal(partition.client_indices[0], [1, 2])
    with pytest.raises(ValueError, match="read-only"):
        partition.client_indices[0][0] = 7


def test_manifest_round_trip_keeps_order_and_empty_clients(tmp_path):
    partition = Partition(
        ([3, 0], [], [2]), np.float32(0.1), np.int64(2**40), dataset="cifar10"
    )
    path = tmp_path / "partition.json"
    partition.save(path)
    loaded = Partition.load(path)

    assert loaded == partition
    assert loaded.dataset == "cifar10"
    assert loaded.alpha == partition.alpha
    np.testing.assert_array_equal(loaded.client_indices[0], [3, 0])
    assert loaded.client_indices[1].dtype == np.int64
    assert [p.name for p in tmp_path.iterdir()] == ["partition.json"]


def test_a_failed_save_leaves_the_old_manifest(tmp_path, monkeypatch):
    path = tmp_path / "partition.json"
    old = Partition(([0],), alpha=1.0, seed=0)
    old.save(path)

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        Partition(([1],), alpha=1.0, seed=0).save(path)
    assert Partition.load(path) == old
    assert [p.name for p in tmp_path.iterdir()] == ["partition.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m.pop("client_indices"),
        lambda m: m.update(client_indices=[[0, 0]]),
        lambda m: m.update(client_indices="none"),
        lambda m: m["client_indices"].pop(),
        lambda m: m["client_indices"][0].pop(),
        lambda m: m.update(alpha=-1.0),
        lambda m: m.update(seed="0"),
        lambda m: m.update(dataset=None),
        lambda m: m.update(format="something else"),
    ],
)
def test_a_damaged_manifest_is_refused_with_its_name(tmp_path, damage):
    path = tmp_path / "partition.json"
    dirichlet_partition(LABELS[:50], 1, 1.0, seed=0).save(path)
    manifest = json.loads(path.read_text())
    damage(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="partition.json: not a valid partition"):
        Partition.load(path)


def test_a_truncated_or_missing_manifest(tmp_path):
    path = tmp_path / "partition.json"
    with pytest.raises(FileNotFoundError, match="partition.json"):
        Partition.load(path)
    dirichlet_partition(LABELS[:50], 2, 1.0, seed=0).save(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="not a valid partition manifest"):
        Partition.load(path)
