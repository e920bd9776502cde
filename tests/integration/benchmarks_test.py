"""Benchmarks still run: what they time is called once."""

import importlib
import pathlib

import numpy as np
import pytest
from oracles.problem import small_model

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.syspath_prepend(_ROOT)
    return importlib.import_module("benchmarks.server")


def test_the_servers_steps_are_those_of_a_round(server, monkeypatch):
    """A client that sends back what it received leaves the changes at zero."""
    monkeypatch.setitem(server._MODELS, "small", lambda seed: small_model())
    steps = server.client_steps("small")
    assert set(steps) == {"select", "accumulate", "prune_and_grow"}
    assert steps["select"]()["codes"].shape[0] > 0
    sums = steps["accumulate"]()
    assert sums.total_weight == 1
    assert not np.any(sums.weights)
    assert steps["prune_and_grow"]().shape == (1, 2)


def test_algorithm_2_is_called_as_the_server_calls_it(server):
    """It raises an error where a client gets more than its budget."""
    row = server.time_allocation(num_clients=20, num_layers=7, repeats=5)
    assert (row["layers"], row["clients"]) == (7, 20)
