"""Which clients take part in a round: seeded, serializable, and resumed exactly.

    sampler = ClientSampler.by_budget(budgets, seed=0, dropout=0.1)
    state, metrics = process.next(state, sampler.select(5))

A round's clients are a function of the sampler's settings and the round's number, which
is all that `select` changes. A sampler is a `tff.program.FederatedDataSource` and its
own iterator, so that `tff.learning.programs.train_model` takes it, and TFF's program
state managers save and load it.

In round t, a client is first available or not; k of the available ones are chosen
without replacement, by weight; of these each fails on its own with the probability
`dropout`. Diurnal availability has the probability (1 + cos 2 pi (t/T - i/N)) / 2 for
the i-th of N clients: they are spread evenly over the time zones of a day of T rounds.
A round has fewer clients than k, or none, where no more are there.
"""

from __future__ import annotations

import dataclasses
import json
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tff_fedmpq._tff import tff
from tff_fedmpq.federated.population import as_client_ids
from tff_fedmpq.lookup import check_count

_AVAILABILITY, _DROPOUT = 1, 2  # Tell their random numbers from those of the choice.


@dataclasses.dataclass
class ClientSampler(
    tff.program.FederatedDataSource, tff.program.FederatedDataSourceIterator
):
    """Draws the clients of one round after the other.

    Attributes:
      client_ids: All clients, strings or whole numbers.
      seed: Seed of all draws, >= 0.
      weights: Weight of each client in the choice, 0 for never; None weighs all alike.
      dropout: Probability that a chosen client fails, from 0 to below 1.
      rounds_per_day: Rounds T of a day; None makes all clients available always.
      round_number: Number of the next round, from 1.
    """

    client_ids: Sequence[Any]
    seed: int = 0
    weights: Sequence[float] | None = None
    dropout: float = 0.0
    rounds_per_day: int | None = None
    round_number: int = 1

    def __post_init__(self) -> None:
        self.client_ids = as_client_ids(self.client_ids)
        if not self.client_ids:
            raise ValueError("client_ids is empty; expected at least one client.")
        if self.weights is not None:
            self.weights = [float(weight) for weight in self.weights]
            right = np.isfinite(self.weights).all() and min(self.weights) >= 0
            if len(self.weights) != len(self.client_ids) or not right:
                raise ValueError(
                    f"weights: expected {len(self.client_ids)} finite numbers of at "
                    f"least 0, found {self.weights[:10]}."
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"dropout has to be from 0 to below 1; found {self.dropout!r}."
            )
        if self.rounds_per_day is not None:
            check_count(self.rounds_per_day, "rounds_per_day")
        check_count(self.round_number, "round_number")
        if not isinstance(self.seed, numbers.Integral):
            raise TypeError(f"seed has to be a whole number; found {self.seed!r}.")
        if self.seed < 0:
            raise ValueError(f"seed has to be at least 0; found {self.seed!r}.")
        self.seed = int(self.seed)

    @classmethod
    def by_budget(cls, budgets: Mapping[Any, float], **settings: Any) -> ClientSampler:
        """Returns a sampler of clients in proportion to their bits per weight."""
        return cls(list(budgets), weights=list(budgets.values()), **settings)

    @classmethod
    def by_data_size(cls, sizes: Mapping[Any, int], **settings: Any) -> ClientSampler:
        """Returns a sampler of clients in proportion to their numbers of examples."""
        return cls(list(sizes), weights=list(sizes.values()), **settings)

    def draw(self, round_number: int, k: int) -> list[str]:
        """Returns the clients of a round, in the order of `client_ids`."""
        check_count(k, "k")
        count = len(self.client_ids)
        p = np.ones(count) if self.weights is None else np.array(self.weights)
        if self.rounds_per_day is not None:
            phases = round_number / self.rounds_per_day - np.arange(count) / count
            rng = self._generator(round_number, _AVAILABILITY)
            p = p * (rng.random(count) < (1 + np.cos(2 * np.pi * phases)) / 2)
        k = min(k, np.count_nonzero(p))
        if k == 0:
            return []
        is_uniform = p.min() == p.max()
        rng = self._generator(round_number)
        chosen = rng.choice(
            count, k, replace=False, p=None if is_uniform else p / p.sum()
        )
        if self.dropout:
            rng = self._generator(round_number, _DROPOUT)
            chosen = chosen[rng.random(k) >= self.dropout]
        return [self.client_ids[client] for client in sorted(chosen)]

    def _generator(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *numbers])

    def select(self, k: int | None = None) -> list[str]:
        """Returns the clients of the next round, of k that were asked for; None is all.

        They are ids in the order of `client_ids`.
        """
        drawn = self.draw(self.round_number, len(self.client_ids) if k is None else k)
        self.round_number += 1
        return drawn

    @property
    def federated_type(self) -> tff.FederatedType:
        """The type of a selection, {str}@CLIENTS."""
        return tff.FederatedType(np.str_, tff.CLIENTS)

    def iterator(self) -> ClientSampler:
        """Returns a sampler of the same rounds from now on."""
        return dataclasses.replace(self)

    def to_bytes(self) -> bytes:
        """Returns the sampler as JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_bytes(cls, buffer: bytes) -> ClientSampler:
        """Returns the sampler that `to_bytes` wrote."""
        return cls(**json.loads(buffer))
