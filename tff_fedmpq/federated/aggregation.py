"""The seam between clients' accepted updates and the server's next model.

    client result --checks, decode--> change of weights, of statistics; weight  @CLIENTS
                                              |
                                              |  a `tff.aggregators` factory for each
                                              v
    next model <--server optimizer-- mean change of weights                     @SERVER
               <-- + --------------- mean change of statistics

A change is what the server's present model would become by this client alone, less that
model. A client that is left out changes nothing and has weight 0: a weighted factory
does not count it, another one counts a change of zero. Statistics of BatchNorm are
aggregated apart, by a second process of the same factory, since their sizes are others.
They are common to all clients: those of one budget may be a single client's.

With differential privacy, clients' data enter the state only by its mechanism:
bit-widths follow from budgets alone. Measurements of a round, its participants and
whether it was abandoned are not covered: they are the server's to keep.
"""

from __future__ import annotations

import collections
import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Callable, NamedTuple, Union

import numpy as np

from tff_fedmpq._tff import tff
from tff_fedmpq.federated.robust_means import TrimmedMeanFactory
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.keras.variables import ModelSpec
from tff_fedmpq.lookup import lookup

Factory = Union[
    tff.aggregators.WeightedAggregationFactory,
    tff.aggregators.UnweightedAggregationFactory,
]
_FACTORIES = typing.get_args(Factory)
_EVENT = "dp_event"  # Field of the state of TFF's aggregators.

# Those of TFF adapt their norms to the clients' of earlier rounds.
AGGREGATORS: Mapping[str, Callable[[], Factory]] = {
    "clipping": lambda: tff.learning.robust_aggregator(zeroing=False),
    "median": lambda: TrimmedMeanFactory(0.5),
    "trimmed_mean": TrimmedMeanFactory,
    "zeroing": lambda: tff.learning.robust_aggregator(clipping=False),
}


class Aggregated(NamedTuple):
    """What the aggregators make of a round, by "weights" and "statistics"."""

    state: Any  # Of the processes.
    changes: Mapping[str, Any]  # Mean changes, lists of float32 tensors.
    measurements: Any  # Of the processes.


def find_factory(aggregator: Any) -> Factory | None:
    """Returns the factory of a name, or the factory itself; TypeError for others."""
    if aggregator is None or isinstance(aggregator, _FACTORIES):
        return aggregator
    if not isinstance(aggregator, str):
        raise TypeError(
            "aggregator has to be a factory of tff.aggregators or tff.learning, or one "
            f"of the names {sorted(AGGREGATORS)}; found {aggregator!r}."
        )
    return lookup(aggregator, AGGREGATORS, "aggregator")()


@dataclasses.dataclass(frozen=True)
class Aggregation:
    """The aggregation processes of a learning process."""

    processes: Mapping[str, tff.templates.AggregationProcess]
    is_private: bool  # Whether they add noise for differential privacy.

    @classmethod
    def of(cls, factory: Factory, spec: ModelSpec, scheme: Scheme) -> Aggregation:
        """Creates the processes for a model.

        TypeError if the factory cannot; ValueError for privacy with pruning, and with
        secure sums.
        """
        shapes = {"weights": spec.trainable_shapes}
        if spec.non_trainable_shapes:
            shapes["statistics"] = spec.non_trainable_shapes
        processes = {}
        for name, part in sorted(shapes.items()):
            value = tff.to_type([tff.TensorType(np.float32, shape) for shape in part])
            is_weighted = isinstance(factory, _FACTORIES[0])
            weight = (tff.TensorType(np.float32),) if is_weighted else ()
            process = factory.create(value, *weight)
            found = process.next.type_signature.result.result.member
            if not value.is_assignable_from(found):
                raise TypeError(
                    f"aggregator returns {found} of clients' {value}; use one that "
                    "returns the same types."
                )
            processes[name] = process
        states = [p.initialize.type_signature.result.member for p in processes.values()]
        is_private = any(map(_has_event, states))
        if is_private and scheme.pruning is not None:
            raise ValueError(
                "What pruning leaves depends on clients' data, which differential "
                "privacy does not cover; set pruning_threshold=None."
            )
        if is_private and any(map(_is_secure, processes.values())):
            raise ValueError(
                "TFF cannot compile a round of differential privacy with secure sums; "
                "use tff.learning.dp_aggregator or tff.learning.secure_aggregator."
            )
        return cls(processes, is_private)

    def initialize(self, state: Any) -> Any:
        """Adds the processes' to a state, inside of a federated computation."""
        initial = ((name, p.initialize()) for name, p in self.processes.items())
        own = tff.federated_zip(collections.OrderedDict(initial))
        types = state.type_signature.member, own.type_signature.member

        @tff.tensorflow.computation(*types)
        def add(state, own):
            return state._replace(aggregator=own)

        return tff.federated_map(add, (state, own))

    def next(self, state: Any, changes: Any, weights: Any) -> Any:
        """Returns an `Aggregated`@SERVER, inside of a federated computation."""
        parts: list[Any] = [collections.OrderedDict() for _ in Aggregated._fields]
        for name, process in self.processes.items():
            weight = (weights,) if process.is_weighted else ()
            output = process.next(state[name], changes[name], *weight)
            found = output.state, output.result, output.measurements
            for part, value in zip(parts, found):
                part[name] = value
        return tff.federated_zip(Aggregated(*parts))


def epsilon(state: Any, delta: float) -> float:
    """Returns the epsilon of a process's state for one client's part in all rounds.

    The state of a round with an aggregator of differential privacy holds the event that
    its noise is; `dp_accounting` composes those of all rounds, for weights and for
    statistics. Participants are taken to be known: sampling them amplifies nothing.

    Args:
      state: State of a process, after at least one round.
      delta: Probability, 0 to 1, with which epsilon may not hold.

    Raises:
      ValueError: for a state before the first round, or without such an aggregator.
    """
    import dp_accounting

    events = [dp_accounting.DpEvent.from_named_tuple(e) for e in _events(state)]
    rounds = int(state.distributor["round"])
    if not events or not rounds:
        raise ValueError(
            "Only a state of at least one round with an aggregator of differential "
            "privacy, such as tff.learning.dp_aggregator, has an epsilon."
        )
    accountant = dp_accounting.rdp.RdpAccountant()
    for event in events:
        if not accountant.supports(event):
            raise ValueError(f"dp_accounting cannot account for {event!r}.")
        accountant.compose(event, rounds)
    return float(accountant.get_epsilon(delta))


def _is_secure(process: tff.templates.AggregationProcess) -> bool:
    """Returns whether a process adds up securely."""
    proto = tff.framework.ConcreteComputation.get_proto(process.next)
    return b"federated_secure" in proto.SerializeToString()


def _has_event(state_type: Any) -> bool:
    """Returns whether a state of this type holds events of differential privacy."""
    if not isinstance(state_type, tff.StructType):
        return False
    elements = tff.structure.iter_elements(state_type)
    return any(name == _EVENT or _has_event(t) for name, t in elements)


def _events(state: Any) -> Iterator[Any]:
    """Yields the events of differential privacy in a state."""
    if hasattr(state, "_asdict"):
        state = state._asdict()
    if isinstance(state, Mapping):
        if _EVENT in state:
            yield state[_EVENT]
            return
        state = list(state.values())
    if isinstance(state, (list, tuple)):
        for part in state:
            yield from _events(part)
