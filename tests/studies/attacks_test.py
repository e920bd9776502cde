"""The attacker's message is altered, others' are not, and the server accepts it."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest

from studies.attacks import AttackedFedMPQConfig
from tff_fedmpq.federated.process import build_process

SETTINGS = {"epochs": 1, "batch_size": 8, "learning_rate_decay": "none"}


def changes_of(problem, attack):
    """Runs rounds of the attacker (8 bits) and of an honest client alone."""
    config = AttackedFedMPQConfig(**SETTINGS, attack=attack)
    process = build_process(*problem.setting, config, seed=3)
    start = process.initialize()
    found = []
    for client in ("bert", "dora"):
        output = process.next(start, [client])
        assert not output.metrics["abandoned"] and not output.metrics["num_rejected"]
        pairs = zip(
            output.state.global_model_weights.trainable,
            start.global_model_weights.trainable,
        )
        found.append([new - old for new, old in pairs])
    return found


@pytest.mark.slow
def test_only_the_attackers_change_is_forged_and_it_is_accepted(runtime, problem):
    (honest, others), (forged, same) = (
        changes_of(problem, attack) for attack in ("none", "sign_flipped")
    )
    for a, b in zip(others, same):
        np.testing.assert_array_equal(a, b)
    # Convolution, gamma, beta, dense kernel, bias.
    for name, index in (("beta", 2), ("bias", 4)):
        assert np.abs(honest[index]).max() > 0, name
        np.testing.assert_allclose(forged[index], -10 * honest[index], rtol=1e-3)
    for index in (0, 3):
        product = np.sum(honest[index] * forged[index])
        norms = [np.linalg.norm(c[index]) for c in (honest, forged)]
        assert product < 0 and norms[1] > 2 * norms[0]


def test_labels_are_flipped_in_the_attackers_files_alone():
    @dataclasses.dataclass
    class Dataset:
        train_labels: np.ndarray
        num_classes: int = 10

    dataset = Dataset(np.arange(10))
    partition = types.SimpleNamespace(client_indices=[[0, 3], [1, 9], [2]])
    written = []
    experiment = types.SimpleNamespace(
        build_client_data=lambda _, data, __: written.append(data.train_labels)
    )
    original = experiment.build_client_data
    for attack in ("label_flipped", "none"):
        config = types.SimpleNamespace(budgets=[4, 8, 2])
        with AttackedFedMPQConfig(attack=attack).around_run(experiment, config):
            experiment.build_client_data("folder", dataset, partition)
        assert experiment.build_client_data is original
    assert written[0].tolist() == [0, 8, 2, 3, 4, 5, 6, 7, 8, 0]
    assert written[1].tolist() == dataset.train_labels.tolist() == list(range(10))


def test_unknown_attacks_are_refused():
    with pytest.raises(ValueError, match="Unknown attack 'noise'"):
        AttackedFedMPQConfig(attack="noise")
