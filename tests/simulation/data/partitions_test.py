"""Tests of partitions and their manifest."""

import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tff_fedmpq.simulation.data import partitions
from tff_fedmpq.simulation.data.partitions import (
    Partition,
    column_partition,
    dirichlet_partition,
    iid_partition,
    quantity_partition,
    shard_partition,
)

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
    with pytest.raises(ValueError, match="num_clients has to be a whole number"):
        dirichlet_partition(LABELS, 0, 1.0, seed=0)
    with pytest.raises(ValueError, match="seed: expected 0 or more, found -1"):
        dirichlet_partition(LABELS, 1, 1.0, seed=-1)
    with pytest.raises(ValueError, match="one dimension, found shape"):
        dirichlet_partition(LABELS[:, np.newaxis], 1, 1.0, seed=0)
    with pytest.raises(TypeError, match="expected integers, found float"):
        dirichlet_partition(LABELS * 0.5, 1, 1.0, seed=0)


# --- other partitions -------------------------------------------------------

PARTITIONS = {
    "shards": lambda seed: shard_partition(LABELS, 10, 2, seed),
    "quantity": lambda seed: quantity_partition(5_000, 10, 0.5, seed),
    "iid": lambda seed: iid_partition(5_000, 10, seed),
}


@pytest.mark.parametrize("name", PARTITIONS)
def test_other_partitions_are_whole_and_a_function_of_the_seed(name):
    make = PARTITIONS[name]
    everything = np.concatenate(make(3).client_indices)
    np.testing.assert_array_equal(np.sort(everything), np.arange(5_000))
    assert make(3) == make(3) != make(4)


def test_two_shards_of_equal_size_are_few_classes():
    partition = shard_partition(LABELS, 10, 2, seed=0)
    np.testing.assert_array_equal(partition.sizes, 500)
    # A shard of 250 out of sorted classes of about 500 lies in at most two of them.
    classes = (count_classes(partition) > 0).sum(axis=1)
    assert classes.max() <= 4 and classes.mean() < 4
    (everything,) = shard_partition(LABELS, 1, 7, seed=0).client_indices
    assert np.count_nonzero(np.diff(LABELS[everything])) > 4_000  # And mixed.
    sizes = shard_partition(LABELS[:23], 4, 3, seed=0).sizes
    assert sizes.sum() == 23 and sizes.max() - sizes.min() <= 3


def test_a_skew_of_quantity_leaves_classes_alike():
    partition = quantity_partition(5_000, 10, 0.5, seed=0)
    sizes = partition.sizes
    assert sizes.max() > 10 * sizes.min()
    largest = count_classes(partition)[sizes.argmax()]
    expected = np.bincount(LABELS) / 5_000
    np.testing.assert_allclose(largest / largest.sum(), expected, atol=0.04)
    even = quantity_partition(5_000, 10, 1e9, seed=0).sizes
    np.testing.assert_allclose(even, 500, atol=1)


def test_iid_sizes_are_equal_and_classes_alike():
    partition = iid_partition(5_003, 10, seed=0)
    assert sorted(set(partition.sizes)) == [500, 501]
    counts = count_classes(iid_partition(5_000, 5, seed=0))
    assert (np.abs(counts - counts.mean(axis=0)) < 60).all()


def test_a_column_names_the_clients():
    column = np.array(["zoe", "ann", "zoe", "bob", "ann"])
    partition = column_partition(column, "letters")
    assert partition.client_ids == ("ann", "bob", "zoe")
    assert [i.tolist() for i in partition.client_indices] == [[1, 4], [3], [0, 2]]
    assert (partition.alpha, partition.seed) == (None, None)
    assert column_partition(column.astype(object)) == column_partition(column.tolist())
    numbers = column_partition(np.array([7, 10, 7]))
    assert dict(zip(numbers.client_ids, numbers.sizes)) == {"7": 2, "10": 1}
    for wrong in ([0.5, 1.0], [["a"]], [b"a"], np.array(["a", None], object)):
        with pytest.raises(TypeError, match="column: expected one dimension of"):
            column_partition(wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda: shard_partition(LABELS, 10, 0, seed=0),
        lambda: shard_partition(LABELS, 0, 2, seed=0),
        lambda: shard_partition(LABELS[:, np.newaxis], 10, 2, seed=0),
        lambda: quantity_partition(100, 10, 0.0, seed=0),
        lambda: quantity_partition(-1, 10, 1.0, seed=0),
        lambda: iid_partition(LABELS, 10, seed=0),
        lambda: iid_partition(100, 10, seed=-1),
        lambda: iid_partition(100, 2.5, seed=0),
        lambda: column_partition([]),
    ],
)
def test_wrong_arguments_of_other_partitions(make):
    with pytest.raises(ValueError) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: iid_partition(100, 2, seed=None),
        lambda: dirichlet_partition(LABELS, 2, None, seed=0),
        lambda: quantity_partition(100, 2, 1.0, seed=0.5),
    ],
)
def test_what_is_drawn_needs_a_seed_and_alpha(make):
    with pytest.raises(TypeError):
        make()


def test_arrays_are_split_over_the_clients():
    x, y = np.arange(8).reshape(4, 2), np.arange(4)
    arrays = Partition(([3, 0], [], [2]), client_ids=("c", "a", "b")).split(x, y)
    assert list(arrays) == ["c", "a", "b"]
    np.testing.assert_array_equal(arrays["c"][0], x[[3, 0]])
    np.testing.assert_array_equal(arrays["b"][1], [2])
    assert arrays["a"][0].shape == (0, 2)
    with pytest.raises(ValueError, match="expected more than 3 examples, found 3"):
        Partition(([3, 0],)).split(x, y[:3])


# --- what holds of all ------------------------------------------------------


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


@pytest.mark.parametrize("ids", [("a",), ("a", "a"), ("a", "b", "c")])
def test_each_client_has_an_id_of_its_own(ids):
    with pytest.raises(ValueError, match="client_ids: expected 2 different ids"):
        Partition(([0], [1]), client_ids=ids)


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


@pytest.mark.parametrize(
    "partition",
    [*(make(0) for make in PARTITIONS.values()), column_partition(["b", "a", "b"])],
    ids=lambda partition: partition.method,
)
def test_every_partition_is_saved_and_loaded(tmp_path, partition):
    partition.save(tmp_path / "partition.json")
    loaded = Partition.load(tmp_path / "partition.json")
    assert loaded == partition
    assert loaded.client_ids == partition.client_ids
    assert loaded.method == partition.method


def test_a_manifest_is_as_documented(tmp_path):
    """Also one that another program wrote."""
    manifest = {
        "format": "tff_fedmpq.partition/2",
        "dataset": "mine",
        "method": "by hand",
        "alpha": None,
        "seed": None,
        "num_clients": 2,
        "num_examples": 3,
        "client_ids": ["x", "y"],
        "client_indices": [[4, 0], [2]],
    }
    path = tmp_path / "partition.json"
    path.write_text(json.dumps(manifest))
    loaded = Partition.load(path)
    assert loaded.split(np.arange(5))["x"][0].tolist() == [4, 0]
    loaded.save(path)
    assert json.loads(path.read_text()) == manifest
    assert all(name in partitions.__doc__ for name in manifest)


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
        lambda m: m.update(client_ids=[]),
        lambda m: m.pop("client_ids"),
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
