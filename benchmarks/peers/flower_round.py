"""A round of Flower's simulation engine with PyTorch.

    python flower_round.py CLIENTS.npz BATCH_SIZE

Every client has one core, so that as many train at once as there are cores.
"""

from __future__ import annotations

import os
import sys

import torch
import torch_client
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation

_MAX_ROUNDS = 1_000


class Client(NumPyClient):
    """A client that trains one epoch."""

    def __init__(self, path: str, number: int, batch_size: int):
        self._examples = torch_client.load_client(path, number)
        self._batch_size = batch_size

    def fit(self, parameters, config):
        """Returns the weights after an epoch of SGD."""
        model = torch_client.resnet20()
        weights = zip(model.state_dict(), map(torch.from_numpy, parameters))
        model.load_state_dict(dict(weights))
        torch_client.train_epoch(model, *self._examples, self._batch_size)
        trained = [value.numpy() for value in model.state_dict().values()]
        return trained, len(self._examples[1]), {}


class SteppedFedAvg(FedAvg):
    """Federated averaging that waits for a line before each round."""

    def configure_fit(self, server_round, parameters, client_manager):
        """Waits, then selects all clients; none at the end of the input."""
        if server_round == 1:
            print("ready", flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # Flower offers no way to end a run early.
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(self, server_round, results, failures):
        """Averages, then reports the round."""
        if failures:
            raise RuntimeError(failures[0])
        averaged = super().aggregate_fit(server_round, results, failures)
        print("done", flush=True)
        return averaged


def main(path: str, batch_size: str) -> None:
    """Runs rounds as they are asked for."""
    num_clients = torch_client.count_clients(path)

    def client_fn(context):
        number = context.node_config["partition-id"]
        return Client(path, number, int(batch_size)).to_client()

    def server_fn(context):
        initial = torch_client.resnet20().state_dict().values()
        weights = [value.numpy() for value in initial]
        strategy = SteppedFedAvg(
            fraction_evaluate=0.0,
            min_fit_clients=num_clients,
            min_available_clients=num_clients,
            initial_parameters=ndarrays_to_parameters(weights),
        )
        config = ServerConfig(num_rounds=_MAX_ROUNDS)
        return ServerAppComponents(strategy=strategy, config=config)

    run_simulation(
        server_app=ServerApp(server_fn=server_fn),
        client_app=ClientApp(client_fn=client_fn),
        num_supernodes=num_clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
