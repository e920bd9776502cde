"""A round of NVFlare's simulator with PyTorch, by its Collab API.

    python nvflare_round.py CLIENTS.npz BATCH_SIZE

Every client has one thread and a process of its own, which lasts from round to round;
if they were fewer, the simulator would start them anew for each task. The server calls
the clients, so that they need not poll it for tasks.
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile

import torch_client
from nvflare.app_common.aggregators.weighted_aggregation_helper import (
    WeightedAggregationHelper,
)
from nvflare.collab import CollabRecipe, collab
from nvflare.private.fed.app.simulator.simulator_runner import SimulatorRunner

_TIMEOUT_SECONDS = 3_600.0
_COUNTS = "num_batches_tracked"  # Integers, whose average NVFlare refuses.


class Server:
    """Federated averaging that waits for a line before each round."""

    def __init__(self, commands: int, answers: int):
        """Takes the file descriptors of the lines that are read and written."""
        self.commands = commands
        self.answers = answers

    @collab.main
    def run(self):
        """Runs rounds until the end of the input."""
        weights = torch_client.resnet20().state_dict()
        with open(self.commands) as commands, open(self.answers, "w") as answers:
            print("ready", file=answers, flush=True)
            while commands.readline():
                clients = collab.clients(timeout=_TIMEOUT_SECONDS)
                average = WeightedAggregationHelper(exclude_vars=_COUNTS)
                for name, (trained, num_examples) in clients.train(weights):
                    average.add(trained, num_examples, name, contribution_round=0)
                weights |= average.get_result()
                print("done", file=answers, flush=True)


class Client:
    """A client that trains one epoch."""

    def __init__(self, path: str, batch_size: int):
        self.path = path
        self.batch_size = batch_size

    @collab.init
    def load(self):
        """Loads the examples; the simulator's clients are site-1, site-2, ..."""
        number = int(collab.site_name.split("-")[1]) - 1
        self._examples = torch_client.load_client(self.path, number)

    @collab.publish
    def train(self, weights):
        """Returns the weights after an epoch of SGD, and the number of examples."""
        model = torch_client.resnet20()
        model.load_state_dict(weights)
        torch_client.train_epoch(model, *self._examples, self.batch_size)
        return model.state_dict(), len(self._examples[1])


def main(path: str, batch_size: str) -> None:
    """Runs rounds as they are asked for."""
    # The simulator's processes take another standard input, and log to the output.
    server = Server(os.dup(0), os.dup(1))
    os.dup2(2, 1)
    os.environ["PYTHONPATH"] = str(pathlib.Path(__file__).parent)
    num_clients = torch_client.count_clients(path)
    recipe = CollabRecipe("round", server, Client(path, int(batch_size)))
    with tempfile.TemporaryDirectory() as folder:
        recipe.export(folder)
        simulator = SimulatorRunner(
            os.path.join(folder, "round"),
            os.path.join(folder, "workspace"),
            n_clients=num_clients,
            threads=num_clients,
            log_config="ERROR",
        )
        sys.exit(simulator.run())


if __name__ == "__main__":
    main(*sys.argv[1:])
