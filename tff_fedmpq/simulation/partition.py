"""Partition of a data set's training examples over clients.

The FedMPQ paper's partition (Chen & Vikalo, CVPR 2024, section 4): for each class c
a vector of proportions p_c ~ Dir_N(alpha) is drawn, and the class's shuffled examples
are split over the N clients in these proportions. The smaller alpha, the fewer
clients share a class. A client may end up with no examples at all.

A partition is a value: it says which training examples, in which order, each client
has. It can be saved as a JSON manifest and loaded again, so that runs on other days
or machines use the same one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tff_fedmpq.simulation.files import PathLike, write_atomically

_FORMAT = "tff_fedmpq.partition/1"


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """Which training examples each client has.

    Attributes:
      client_indices: For each client, int64[n_i]: the positions of its examples in
        the training set, in the order in which the client holds them. No position
        occurs twice. The arrays are read-only copies.
      alpha: Concentration of the Dirichlet distribution it was drawn with, > 0.
      seed: Seed it was drawn with, >= 0.
      dataset: Name of the data set it belongs to, or "".
    """

    client_indices: tuple[np.ndarray, ...]
    alpha: float
    seed: int
    dataset: str = ""

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)
        _check_seed(self.seed)
        # NumPy's scalars are welcome, but a manifest holds Python's.
        object.__setattr__(self, "alpha", float(self.alpha))
        object.__setattr__(self, "seed", operator.index(self.seed))
        indices = tuple(_as_indices(i, c) for i, c in enumerate(self.client_indices))
        if not indices:
            raise ValueError(
                "client_indices: expected at least one client, found none."
            )
        everything = np.concatenate(indices)
        repetitions = everything.size - np.unique(everything).size
        if repetitions:
            raise ValueError(
                "client_indices: expected every example at one client at most, found "
                f"{repetitions} repetitions; give each position once."
            )
        object.__setattr__(self, "client_indices", indices)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Partition):
            return NotImplemented
        return self._manifest() == other._manifest()

    # Arrays have no hash; nothing here needs partitions as keys.
    __hash__ = None  # type: ignore[assignment]

    @property
    def num_clients(self) -> int:
        """The number of clients, those without examples included."""
        return len(self.client_indices)

    @property
    def sizes(self) -> np.ndarray:
        """Number of examples of each client, int64[num_clients]."""
        return np.array([c.size for c in self.client_indices], np.int64)

    def class_counts(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """How many examples of each class each client has.

        Args:
          labels: int[n], the labels of the whole training set, 0..num_classes-1.
          num_classes: The number of classes.

        Returns:
          int64[num_clients, num_classes].

        Raises:
          ValueError: The labels are not those of the partition's training set.
        """
        labels = _check_labels(labels)
        self.check_fits(len(labels))
        if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(
                f"labels: expected 0..{num_classes - 1}, found "
                f"{labels.min()}..{labels.max()}; correct num_classes."
            )
        counts = [
            np.bincount(labels[indices], minlength=num_classes)
            for indices in self.client_indices
        ]
        return np.stack(counts).astype(np.int64)

    def check_fits(self, num_examples: int) -> None:
        """Raises ValueError where some position is outside a training set's."""
        highest = max((c.max() for c in self.client_indices if c.size), default=-1)
        if highest >= num_examples:
            raise ValueError(
                f"partition: expected positions below {num_examples}, the number of "
                f"training examples, found {highest}; it was made for other data."
            )

    def save(self, path: PathLike) -> None:
        """Writes the partition as a JSON manifest, whole or not at all."""
        text = json.dumps(self._manifest(), separators=(",", ":"))
        write_atomically(path, f"{text}\n".encode())

    @classmethod
    def load(cls, path: PathLike) -> Partition:
        """Reads a manifest that `save` wrote.

        Raises:
          FileNotFoundError: There is no such file.
          ValueError: It is no manifest, or a damaged one.
        """
        try:
            manifest = json.loads(pathlib.Path(path).read_bytes())
            return cls._from_manifest(manifest)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{os.fspath(path)}: expected a partition manifest, found no file; "
                "make one with Partition.save."
            ) from None
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{os.fspath(path)}: not a valid partition manifest ({error}); delete "
                "it and partition again with the same seed."
            ) from error

    def _manifest(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "dataset": self.dataset,
            "alpha": self.alpha,
            "seed": self.seed,
            "num_clients": self.num_clients,
            "num_examples": int(self.sizes.sum()),
            "client_indices": [c.tolist() for c in self.client_indices],
        }

    @classmethod
    def _from_manifest(cls, manifest: Any) -> Partition:
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            raise ValueError(f"expected an object whose format is {_FORMAT}")
        types = {"client_indices": list, "alpha": float, "seed": int, "dataset": str}
        for key, kind in types.items():
            if not isinstance(manifest.get(key), kind):
                raise ValueError(f"{key}: expected {kind.__name__}")
        partition = cls(**{key: manifest[key] for key in types})
        for key, found in partition._manifest().items():
            # The two counts are redundant: they show where something was lost.
            if manifest.get(key) != found:
                raise ValueError(f"{key}: expected {manifest.get(key)}, found {found}")
        return partition


def dirichlet_partition(
    labels: np.ndarray,
    num_clients: int,
    alpha: float,
    seed: int,
    dataset: str = "",
) -> Partition:
    """Splits each class over the clients in Dirichlet proportions.

    Args:
      labels: int[n], the labels of the training set.
      num_clients: N, at least 1.
      alpha: Concentration > 0; any finite value, however small or large, will do.
      seed: Seed >= 0. The same arguments give the same partition.
      dataset: Name of the data set, kept in the partition.

    Returns:
      A partition of 0..n-1: every example is at exactly one client, and each
      client's examples are in random order. Some clients may be empty.

    Raises:
      ValueError, TypeError: An argument is not as described.
    """
    labels = _check_labels(labels)
    num_clients = operator.index(num_clients)
    if num_clients < 1:
        raise ValueError(
            f"num_clients: expected at least 1, found {num_clients}; give more."
        )
    _check_alpha(alpha)
    _check_seed(seed)
    rng = np.random.default_rng(seed)
    shares: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for label in np.unique(labels):
        examples = rng.permutation(np.flatnonzero(labels == label))
        proportions = _sample_dirichlet(rng, num_clients, alpha)
        cuts = np.rint(np.cumsum(proportions[:-1]) * examples.size).astype(np.int64)
        for share, part in zip(shares, np.split(examples, cuts)):
            share.append(part)
    nothing = np.empty(0, np.int64)
    # Shuffled once more, for otherwise a client would hold one class after another.
    indices = [rng.permutation(np.concatenate([nothing, *share])) for share in shares]
    return Partition(tuple(indices), alpha, seed, dataset)


def _sample_dirichlet(
    rng: np.random.Generator, num_clients: int, alpha: float
) -> np.ndarray:
    """One draw of Dir_N(alpha), float64[num_clients]; no alpha > 0 gives NaN.

    NumPy's own sampler does not return at all for the smallest alphas, and plain
    normalised gamma variates are 0/0 there. A Gamma(alpha) variate is
    G U^(1/alpha) with G ~ Gamma(alpha + 1) and U uniform, so that its logarithm is
    log G - E/alpha with E exponential. Taking the least E off all of them cancels
    in the normalisation and leaves one logarithm finite even where 1/alpha overflows.
    """
    exponentials = rng.standard_exponential(num_clients)
    with np.errstate(over="ignore"):
        penalties = (exponentials - exponentials.min()) / alpha
    logarithms = np.log(rng.standard_gamma(alpha + 1.0, num_clients)) - penalties
    weights = np.exp(logarithms - logarithms.max())
    return weights / weights.sum()


def _check_alpha(alpha: float) -> None:
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(
            f"alpha: expected a finite number above 0, found {alpha}; 0.1 is very "
            "uneven, 1 moderately so, 100 nearly uniform."
        )


def _check_seed(seed: int) -> None:
    if operator.index(seed) < 0:
        raise ValueError(f"seed: expected 0 or more, found {seed}; give another.")


def _check_labels(labels: np.ndarray | Sequence[int]) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(
            f"labels: expected one dimension, found shape {labels.shape}; flatten them "
            "with labels.reshape(-1)."
        )
    if labels.size and labels.dtype.kind not in "iu":
        raise TypeError(
            f"labels: expected integers, found {labels.dtype}; convert one-hot or "
            "float labels to class numbers first."
        )
    return labels


def _as_indices(client: int, indices: Any) -> np.ndarray:
    """A read-only int64 copy of one client's positions."""
    array = np.array(indices)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(
            f"client_indices[{client}]: expected int64[n], found "
            f"{array.dtype}{list(array.shape)}; give a list of positions."
        )
    if array.size and array.min() < 0:
        raise ValueError(
            f"client_indices[{client}]: expected positions of 0 or more, found "
            f"{array.min()}; count from the start of the training set."
        )
    array = array.astype(np.int64)
    array.setflags(write=False)
    return array
