"""Results as runs leave them, made by hand."""

from __future__ import annotations

import pytest

from tff_fedmpq.simulation.reproduction import cells, results


def make_result(config, accuracies, num_clients=2):
    """What `run_experiment` returns, with a round per accuracy."""
    return {
        "scheme": config.scheme,
        "precision": "v/v/4",
        "dataset": config.dataset,
        "dataset_source": "by hand",
        "protocol": config.as_dict(),
        "seed": config.seed,
        "versions": {"tff_fedmpq": "0.1.0", "tensorflow": "2.14.1"},
        "hardware": {"processor": "An Abacus", "cores": 2},
        "layers": {"names": ["a"], "sizes": [10]},
        "model_weights": 10,
        "client_examples": [1] * num_clients,
        "rounds": [
            {
                "round": number,
                "test_accuracy": accuracy,
                "test_loss": 2.0,
                "participants": ["0"],
                "train_loss": 1.0,
                "train_accuracy": 0.5,
                "uplink_bits": 8_000_000,
                "downlink_bits": 16_000_000,
                "mean_bit_width": 4.0,
                "bit_widths": [4.0],
                "top_plane_densities": [0.3],
                "next_bit_widths": num_clients * [[4]],
                "clients": num_clients * [{"client": "0"}],
                "seconds": 3600.0,
                "seconds_training": 3000.0,
            }
            for number, accuracy in enumerate(accuracies, 1)
        ],
        "tier_accuracy": {"2": {"accuracy": 0.25, "client": 0}, "8": {"accuracy": 0.5}},
    }


class Maker:
    """Makes records of cells of any table."""

    result = staticmethod(make_result)

    @staticmethod
    def cell(name, preset="paper"):
        table = name.split("/")[0]
        seed = int(name.rsplit("seed", 1)[1])
        (cell,) = cells.select(cells.expand(table, preset, [seed], "bfloat16"), [name])
        return cell

    def finished(self, name, accuracies, preset="paper"):
        cell = self.cell(name, preset)
        result = make_result(cell.config, accuracies)
        return results.finished_record(result, cell, cell.config)

    def unfinished(self, name, rounds_done, preset="paper"):
        cell = self.cell(name, preset)
        return results.unfinished_record(cell, cell.config, rounds_done)


@pytest.fixture
def make():
    return Maker()
