"""Partition of a data set's training examples over clients.

The FedMPQ paper's partition (Chen & Vikalo, CVPR 2024, section 4): for each class c
a vector of proportions p_c ~ Dir_N(alpha) is drawn, and the class's shuffled examples
are split over the N clients in these proportions. The smaller alpha, the fewer
clients share a class. A client may have no examples at all.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import pathlib
from typing import Any

import numpy as np

from tff_fedmpq.files import PathLike, write_atomically

_FORMAT = "tff_fedmpq.partition/1"
# What a damaged manifest can raise.
_OF_DAMAGE = (KeyError, OverflowError, RecursionError, TypeError, ValueError)


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """The training examples of each client; can be saved as a JSON manifest.

    Attributes:
      client_indices: Positions of each client's examples in the training set,
        int64[n_i], in the client's order, read-only. No position occurs twice.
      alpha: Concentration of the Dirichlet distribution, > 0.
      seed: Seed of the draw, >= 0.
      dataset: Name of the data set, or "".
    """

    client_indices: tuple[np.ndarray, ...]
    alpha: float
    seed: int
    dataset: str = ""

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
        object.__setattr__(self, "client_indices", indices)
        # As Python's own types, which JSON keeps.
        object.__setattr__(self, "alpha", float(self.alpha))
        object.__setattr__(self, "seed", operator.index(self.seed))
        object.__setattr__(self, "dataset", str(self.dataset))

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
            "alpha": self.alpha,
            "seed": self.seed,
            "num_clients": self.num_clients,
            "num_examples": int(self.sizes.sum()),
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
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels: expected one dimension, found shape {labels.shape}.")
    if labels.size and labels.dtype.kind not in "iu":
        raise TypeError(f"labels: expected integers, found {labels.dtype}.")
    if num_clients < 1:
        raise ValueError(f"num_clients: expected at least 1, found {num_clients}.")
    _check_draw(alpha, seed)
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


def _check_draw(alpha: float, seed: int) -> None:
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha: expected a finite number above 0, found {alpha}.")
    if operator.index(seed) < 0:
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
