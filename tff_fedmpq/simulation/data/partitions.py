"""Partitions of a data set's training examples over clients.

    dirichlet_partition  labels    classes in Dirichlet proportions; the FedMPQ paper's
    shard_partition      labels    equal shards of sorted labels (McMahan et al., 2017)
    quantity_partition   count     sizes in Dirichlet proportions, classes alike
    iid_partition        count     equal sizes, classes alike
    column_partition     column    a client for each value, such as a writer

A client may have no examples at all. `Partition.save` writes a JSON object:

    format           "tff_fedmpq.partition/2"
    dataset          name of the data set, or ""
    method           how it was made, such as "dirichlet"
    alpha, seed      of the draw, or null
    client_ids       list of strings
    client_indices   for each client, in this order, a list of positions from 0
    num_clients, num_examples    lengths of these lists, to show damage

One that was made by another program needs no more than these.
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import operator
import pathlib
from typing import Any

import numpy as np

from tff_fedmpq.files import PathLike, write_atomically
from tff_fedmpq.lookup import check_count

_FORMAT = "tff_fedmpq.partition/2"
# What a damaged manifest can raise.
_OF_DAMAGE = (KeyError, OverflowError, RecursionError, TypeError, ValueError)


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """The training examples of each client; can be saved as a JSON manifest.

    Attributes:
      client_indices: Positions of each client's examples in the training set,
        int64[n_i], in the client's order, read-only. No position occurs twice.
      alpha: Concentration of the Dirichlet distribution, > 0; None without one.
      seed: Seed of the draw, >= 0; None where nothing was drawn.
      dataset: Name of the data set, or "".
      method: How it was made.
      client_ids: Ids of the clients; () are "0", "1", ...
    """

    client_indices: tuple[np.ndarray, ...]
    alpha: float | None = None
    seed: int | None = None
    dataset: str = ""
    method: str = "dirichlet"
    client_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_draw(self.alpha, self.seed)
        indices = tuple(_as_indices(i, c) for i, c in enumerate(self.client_indices))
        if not indices:
            raise ValueError("client_indices: expected at least one client, found 0.")
        everything = np.concatenate(indices)
        repetitions = everything.size - np.unique(everything).size
        if repetitions:
            expected = "client_indices: expected each position once"
            raise ValueError(f"{expected}, found {repetitions} repetitions.")
        ids = tuple(map(str, self.client_ids or range(len(indices))))
        if len(set(ids)) != len(indices):
            raise ValueError(
                f"client_ids: expected {len(indices)} different ids, found {ids[:10]}."
            )
        # As Python's own types, which JSON keeps.
        kept = {
            "client_indices": indices,
            "alpha": None if self.alpha is None else float(self.alpha),
            "seed": None if self.seed is None else operator.index(self.seed),
            "dataset": str(self.dataset),
            "client_ids": ids,
        }
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Partition):
            return NotImplemented
        return self._manifest() == other._manifest()

    @property
    def num_clients(self) -> int:
        """The number of clients, those without examples included."""
        return len(self.client_indices)

    @property
    def sizes(self) -> np.ndarray:
        """Number of examples of each client, int64[num_clients]."""
        return np.array([c.size for c in self.client_indices], np.int64)

    def split(self, *arrays: np.ndarray) -> dict[str, tuple[np.ndarray, ...]]:
        """Returns each client's part of arrays [n, ...], for `client_data_from_arrays`.

        ValueError if they are shorter than the partition.
        """
        highest = max(indices.max(initial=-1) for indices in self.client_indices)
        shortest = min(map(len, arrays))
        if highest >= shortest:
            raise ValueError(
                f"arrays: expected more than {highest} examples, found {shortest}; the "
                "partition was made for other data."
            )
        return {
            client_id: tuple(array[indices] for array in arrays)
            for client_id, indices in zip(self.client_ids, self.client_indices)
        }

    def save(self, path: PathLike) -> None:
        """Writes the partition atomically as a JSON manifest."""
        text = json.dumps(self._manifest(), separators=(",", ":"))
        write_atomically(path, f"{text}\n".encode())

    @classmethod
    def load(cls, path: PathLike) -> Partition:
        """Reads a manifest that `save` wrote; ValueError if it is damaged."""
        content = pathlib.Path(path).read_bytes()
        try:
            manifest = json.loads(content)
            fields = {f.name: manifest[f.name] for f in dataclasses.fields(cls)}
            partition = cls(**fields)
            # The redundant counts are compared too: they show what is missing.
            for key, expected in partition._manifest().items():
                if manifest.get(key) != expected:
                    raise ValueError(f"{key}: expected {expected!r}")
        except _OF_DAMAGE as error:
            raise ValueError(
                f"{path}: not a valid partition manifest ({error}); delete it and "
                "partition again with the same seed."
            ) from error
        return partition

    def _manifest(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "dataset": self.dataset,
            "method": self.method,
            "alpha": self.alpha,
            "seed": self.seed,
            "num_clients": self.num_clients,
            "num_examples": int(self.sizes.sum()),
            "client_ids": list(self.client_ids),
            "client_indices": [c.tolist() for c in self.client_indices],
        }


def dirichlet_partition(
    labels: np.ndarray, num_clients: int, alpha: float, seed: int, dataset: str = ""
) -> Partition:
    """Splits each class of `labels`, int[n], over the clients in Dirichlet proportions.

    Every one of the positions 0..n-1 is at exactly one client, and each client's are in
    random order. Some clients may be empty. The same arguments give the same partition.
    `alpha` is finite and > 0, however small or large, `seed` is >= 0; other arguments
    raise ValueError or TypeError.
    """
    labels = _as_labels(labels)
    check_count(num_clients, "num_clients")
    _check_draw(float(alpha), operator.index(seed))
    rng = np.random.default_rng(seed)
    shares = [[np.empty(0, np.int64)] for _ in range(num_clients)]
    for label in np.unique(labels):
        examples = rng.permutation(np.flatnonzero(labels == label))
        proportions = _sample_dirichlet(rng, num_clients, alpha)
        cuts = np.rint(np.cumsum(proportions[:-1]) * examples.size).astype(np.int64)
        for share, part in zip(shares, np.split(examples, cuts)):
            share.append(part)
    # Shuffled once more, because a share holds one class after another.
    indices = tuple(rng.permutation(np.concatenate(share)) for share in shares)
    return Partition(indices, alpha, seed, dataset)


def shard_partition(
    labels: np.ndarray,
    num_clients: int,
    shards_per_client: int,
    seed: int,
    dataset: str = "",
) -> Partition:
    """Gives each client as many equal shards of examples sorted by `labels`, int[n].

    Within a class the order is random; shards differ by at most one example. With two
    shards most clients have two classes. Errors are as of `dirichlet_partition`.
    """
    labels = _as_labels(labels)
    check_count(num_clients, "num_clients")
    check_count(shards_per_client, "shards_per_client")
    _check_draw(None, operator.index(seed))
    rng = np.random.default_rng(seed)
    mixed = rng.permutation(labels.size)
    order = mixed[np.argsort(labels[mixed], kind="stable")]
    shards = np.array_split(order, num_clients * shards_per_client)
    dealt = rng.permutation(len(shards)).reshape(num_clients, shards_per_client)
    indices = tuple(
        rng.permutation(np.concatenate([shards[i] for i in own])) for own in dealt
    )
    method = f"{shards_per_client} shards"
    return Partition(indices, None, seed, dataset, method)


def quantity_partition(
    num_examples: int, num_clients: int, alpha: float, seed: int, dataset: str = ""
) -> Partition:
    """Splits random examples in proportions of Dir_N(alpha): skew of quantity alone.

    Errors are as of `dirichlet_partition`.
    """
    check_count(num_examples, "num_examples")
    check_count(num_clients, "num_clients")
    _check_draw(float(alpha), operator.index(seed))
    rng = np.random.default_rng(seed)
    proportions = _sample_dirichlet(rng, num_clients, alpha)
    cuts = np.rint(np.cumsum(proportions[:-1]) * num_examples).astype(np.int64)
    indices = tuple(np.split(rng.permutation(num_examples), cuts))
    return Partition(indices, alpha, seed, dataset, "quantity")


def iid_partition(
    num_examples: int, num_clients: int, seed: int, dataset: str = ""
) -> Partition:
    """Splits random examples equally; sizes differ by at most one.

    Errors are as of `dirichlet_partition`.
    """
    check_count(num_examples, "num_examples")
    check_count(num_clients, "num_clients")
    _check_draw(None, operator.index(seed))
    order = np.random.default_rng(seed).permutation(num_examples)
    indices = tuple(np.array_split(order, num_clients))
    return Partition(indices, None, seed, dataset, "iid")


def column_partition(column: np.ndarray, dataset: str = "") -> Partition:
    """Makes a client of each value of `column`, [n] of strings or whole numbers.

    Ids are the values as strings; examples keep their order. Nothing is drawn.
    """
    column = np.asarray(column)
    known = column.dtype.kind in "iuU" or all(
        isinstance(value, (str, numbers.Integral)) for value in column.flat
    )
    if column.ndim != 1 or not known:
        raise TypeError(
            "column: expected one dimension of strings or whole numbers, found "
            f"{column.dtype}{list(column.shape)}."
        )
    ids, rows = np.unique(column.astype(str), return_inverse=True)
    indices = tuple(np.flatnonzero(rows == row) for row in range(len(ids)))
    return Partition(indices, None, None, dataset, "column", tuple(ids.tolist()))


def _sample_dirichlet(rng: np.random.Generator, n: int, alpha: float) -> np.ndarray:
    """Draws from Dir_n(alpha), float64[n], without NaN for any alpha > 0."""
    # NumPy's own sampler does not return for the smallest alphas, and normalised gamma
    # variates are 0/0 there. A Gamma(alpha) variate is G U^(1/alpha) with
    # G ~ Gamma(alpha + 1) and U uniform, so its logarithm is log G - E/alpha with E
    # exponential. Subtracting the least E from all cancels in the normalisation and
    # keeps one logarithm finite even where 1/alpha overflows.
    exponentials = rng.standard_exponential(n)
    with np.errstate(over="ignore"):
        penalties = (exponentials - exponentials.min()) / alpha
    logarithms = np.log(rng.standard_gamma(alpha + 1.0, n)) - penalties
    weights = np.exp(logarithms - logarithms.max())
    return weights / weights.sum()


def _as_labels(labels: Any) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels: expected one dimension, found shape {labels.shape}.")
    if labels.size and labels.dtype.kind not in "iu":
        raise TypeError(f"labels: expected integers, found {labels.dtype}.")
    return labels


def _check_draw(alpha: float | None, seed: int | None) -> None:
    if alpha is not None and not 0 < alpha < math.inf:
        raise ValueError(f"alpha: expected a finite number above 0, found {alpha}.")
    if seed is not None and operator.index(seed) < 0:
        raise ValueError(f"seed: expected 0 or more, found {seed}.")


def _as_indices(client: int, indices: Any) -> np.ndarray:
    """Returns a read-only int64 copy of one client's positions."""
    array = np.array(indices)
    integers = array.ndim == 1 and (not array.size or array.dtype.kind in "iu")
    if not integers or array.min(initial=0) < 0:
        found = array.min() if integers else f"{array.dtype}{list(array.shape)}"
        raise ValueError(
            f"client_indices[{client}]: expected int64[n] of 0 or more, found {found}."
        )
    array = array.astype(np.int64)
    array.setflags(write=False)
    return array
