"""Averages of the last rounds' models, for the study of mechanisms; no package part.

Training goes on from the last model; what is evaluated, and what devices get, is the
mean of the models and BatchNorm statistics of the last rounds (Polyak & Juditsky,
"Acceleration of Stochastic Approximation by Averaging", 1992).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf

from tff_fedmpq.federated.fedmpq import FedMPQConfig


@dataclasses.dataclass(frozen=True)
class AveragedFedMPQConfig(FedMPQConfig):
    """FedMPQ whose models are averaged over rounds before they are evaluated.

    Attributes:
      averaged_rounds: Number of last rounds; 1 is FedMPQ itself.
    """

    averaged_rounds: int = 1

    @contextlib.contextmanager
    def around_run(self, experiment: Any, config: Any) -> Iterator[None]:
        """Evaluates averages while `studies/run.py` runs this.

        `experiment` is the module that runs, whose functions are replaced.
        """
        states: collections.deque[Any] = collections.deque(maxlen=self.averaged_rounds)
        build, assign = experiment.build_process, experiment.assign_global_weights
        evaluator = experiment.DeviceEvaluator

        def build_recorder(*arguments: Any, **options: Any) -> _Recorder:
            return _Recorder(build(*arguments, **options), states)

        def assign_mean(model: Any, weights: Any) -> None:
            assign(model, mean_of([state.global_model_weights for state in states]))

        class MeanEvaluator(evaluator):
            def evaluate(self, state: Any) -> Any:
                weights = mean_of([s.global_model_weights for s in states])
                statistics = mean_of([s.distributor["statistics"] for s in states])
                distributor = {**state.distributor, "statistics": statistics}
                return super().evaluate(
                    state._replace(
                        global_model_weights=weights,
                        distributor=collections.OrderedDict(distributor),
                    )
                )

        replaced = {
            "build_process": build_recorder,
            "assign_global_weights": assign_mean,
            "DeviceEvaluator": MeanEvaluator,
        }
        with mock.patch.multiple(experiment, **replaced):
            yield


def mean_of(structures: Any) -> Any:
    """Returns the mean of structures of arrays."""
    return tf.nest.map_structure(lambda *parts: np.mean(parts, axis=0), *structures)


class _Recorder:
    """A learning process that notes the states after its rounds."""

    def __init__(self, process: Any, states: Any):
        self._process, self._states = process, states

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process, name)

    def next(self, state: Any, client_ids: Any) -> Any:
        """Runs a round."""
        output = self._process.next(state, client_ids)
        self._states.append(output.state)
        return output
