"""A process's clients: their ids, budgets, and rows in tables.

Ids are strings, as TFF has them. A whole number is taken for its digits wherever an id
is given: 7 and "7" are one client.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tff_fedmpq._tff import tff
from tff_fedmpq.allocation.pruning_growing import check_budgets
from tff_fedmpq.federated.scheme import Scheme

_EXAMPLE = 'such as ["a", "b"]'


@dataclasses.dataclass(frozen=True, eq=False)
class Population:
    """The clients of a process.

    Attributes:
      client_ids: Ids in the order of rows, ascending; as numbers if all are digits.
      budgets: Bits per weight of each client, float64[N].
    """

    client_ids: list[str]
    budgets: np.ndarray

    @classmethod
    def of(
        cls,
        budgets: Mapping[Any, float],
        client_data: tff.simulation.datasets.ClientData,
        scheme: Scheme,
    ) -> Population:
        """Returns clients with their budgets under a scheme.

        TypeError or ValueError for ids or budgets that are wrong, and for clients
        without data.
        """
        if not isinstance(budgets, Mapping):
            raise TypeError(
                "budgets has to be a mapping of client ids to bits per weight, such as "
                f'{{"a": 4}}; found {_name(budgets)}.'
            )
        if not budgets:
            raise ValueError("budgets is empty; expected a budget for each client id.")
        ids = as_client_ids(list(budgets))
        given = dict(zip(ids, budgets.values()))
        known = set(as_client_ids(client_data.client_ids))
        if set(ids) - known:
            raise ValueError(
                f"client_data has no clients {sorted(set(ids) - known)}, which have a "
                f"budget; it has {sorted(known)[:10]}."
            )
        numeric = all(i.isascii() and i.isdigit() for i in ids)
        order = sorted(ids, key=lambda i: (int(i), i) if numeric else i)
        values = check_budgets([given[client_id] for client_id in order])
        if values.ndim != 1:
            raise ValueError("A client's budget is one number; found a sequence.")
        if scheme.common_budget is not None:
            values = np.full_like(values, scheme.common_budget)
        if (values < scheme.min_budget).any():
            raise ValueError(
                f"{scheme.name} needs budgets of at least {scheme.min_budget:g} bits "
                f"per weight; found {values.min():g}."
            )
        return cls(order, values)

    @property
    def digest(self) -> int:
        """A number that differs between populations, from 0 to 2**63 - 1."""
        content = json.dumps([self.client_ids, self.budgets.tolist()]).encode()
        return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1

    def row(self, client_id: Any) -> int:
        """Returns a client's row; ValueError for an unknown id."""
        (client_id,) = as_client_ids([client_id])
        if client_id not in self.client_ids:
            raise ValueError(
                f"No client {client_id!r}; clients are {self.client_ids[:10]}."
            )
        return self.client_ids.index(client_id)

    def participants(self, client_ids: Any) -> list[str]:
        """Returns the ids of a round's clients.

        They are in a list, a tuple or an array. TypeError or ValueError for what is not
        an id, and for an id that is unknown or given twice.
        """
        checked = as_client_ids(client_ids)
        unknown = sorted(set(checked) - set(self.client_ids))
        if unknown:
            raise ValueError(
                f"No budget was given for clients {unknown[:10]}; clients are "
                f"{self.client_ids[:10]}."
            )
        return checked

    def key_lookup(self) -> tff.Computation:
        """Builds (string -> int32[1]): a client's row in tables, from its id."""
        client_ids = self.client_ids

        @tff.tensorflow.computation(tff.TensorType(np.str_))
        def key_of(client_id):
            matches = tf.equal(tf.constant(client_ids), client_id)
            problem = tf.strings.join(["No budget was given for client ", client_id])
            known = tf.debugging.Assert(tf.reduce_any(matches), [problem])
            with tf.control_dependencies([known]):
                return tf.reshape(tf.argmax(matches, output_type=tf.int32), [1])

        return key_of


def as_client_ids(client_ids: Any) -> list[str]:
    """Returns client ids as strings; ValueError if one occurs twice."""
    if isinstance(client_ids, (tf.Tensor, np.ndarray)):
        client_ids = np.asarray(client_ids).tolist()
    if isinstance(client_ids, (str, bytes)) or not isinstance(client_ids, Sequence):
        raise TypeError(
            f"Client ids have to be a list, {_EXAMPLE}; found {_name(client_ids)}."
        )
    checked = [_as_client_id(client_id) for client_id in client_ids]
    twice = [i for i, count in collections.Counter(checked).items() if count > 1]
    if twice:
        raise ValueError(f"Clients {sorted(twice)[:10]} were given twice.")
    return checked


def _as_client_id(client_id: Any) -> str:
    if isinstance(client_id, tf.data.Dataset):
        raise TypeError(
            f"A round takes client ids, {_EXAMPLE}, not data sets; each client's "
            "examples are read from client_data by its id."
        )
    if isinstance(client_id, bytes):
        return client_id.decode()
    if isinstance(client_id, str):
        return str(client_id)
    if isinstance(client_id, numbers.Integral) and not isinstance(client_id, bool):
        return str(int(client_id))
    found = _name(client_id)
    raise TypeError(f"A client id is a string or a whole number; found {found}.")


def _name(value: Any) -> str:
    """Returns a value as a short text."""
    is_short = isinstance(value, (str, bytes, numbers.Number, type(None)))
    return repr(value) if is_short else type(value).__name__
