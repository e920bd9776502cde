"""A round of Flower's simulation engine with PyTorch: ResNet-20, SGD, augmentation.

    python flower_round.py CLIENTS.npz BATCH_SIZE

Every client has one core, so that as many train at once as there are cores.
"""

from __future__ import annotations

import os
import sys

import numpy as np
import torch
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

_MAX_ROUNDS = 1_000
_FILTERS = (16, 32, 64)


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, channels: int, filters: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, filters, 3, stride, 1, bias=False),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            nn.Conv2d(filters, filters, 3, 1, 1, bias=False),
            nn.BatchNorm2d(filters),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != filters:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, filters, 1, stride, bias=False),
                nn.BatchNorm2d(filters),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet20() -> nn.Module:
    """Returns the network that `tff_fedmpq.resnet20` builds."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    channels = 16
    for stage, filters in enumerate(_FILTERS):
        for block in range(3):
            layers.append(Block(channels, filters, 2 if stage and not block else 1))
            channels = filters
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*layers, *pool)


def crop_and_flip(images: torch.Tensor) -> torch.Tensor:
    """Pads by 4 pixels, crops at random, and mirrors half of the images."""
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (4, 4, 4, 4))
    tops, lefts = torch.randint(0, 9, (2, count))
    rows = tops[:, None] + torch.arange(height)
    columns = lefts[:, None] + torch.arange(width)
    flips = torch.rand(count) < 0.5
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    picked = torch.arange(count)[:, None, None]
    cropped = padded[picked, :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


class Client(NumPyClient):
    """A client that trains one epoch."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, batch_size: int):
        self._images = torch.from_numpy(images).permute(0, 3, 1, 2)
        self._labels = torch.from_numpy(labels).long()
        self._batch_size = batch_size

    def fit(self, parameters, config):
        """Returns the weights after an epoch of SGD."""
        torch.set_num_threads(1)
        model = resnet20()
        names = model.state_dict().keys()
        values = map(torch.from_numpy, parameters)
        model.load_state_dict(dict(zip(names, values)))
        optimizer = torch.optim.SGD(
            model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4
        )
        for chosen in torch.randperm(len(self._labels)).split(self._batch_size):
            batch = crop_and_flip(self._images[chosen]).float() / 127.5 - 1.0
            optimizer.zero_grad()
            logits = model(batch)
            nn.functional.cross_entropy(logits, self._labels[chosen]).backward()
            optimizer.step()
        weights = [value.numpy() for value in model.state_dict().values()]
        return weights, len(self._labels), {}


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
    with np.load(path) as file:
        num_clients = len(file.files) // 2

    def client_fn(context):
        number = context.node_config["partition-id"]
        with np.load(path) as file:
            examples = file[f"images{number}"], file[f"labels{number}"]
        return Client(*examples, int(batch_size)).to_client()

    def server_fn(context):
        weights = [value.numpy() for value in resnet20().state_dict().values()]
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
