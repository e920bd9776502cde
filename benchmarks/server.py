"""The server's own work: per client, and Pruning-Growing over many clients.

(a) Milliseconds per client of a round, for ResNet-20 and ResNet-44 and a client of 4
bits: *select* (`Server.message_for`: find the client's bit-widths, quantize the global
model to them and pack it), *accumulate* (`Server.accumulate`: check, unpack, dequantize
and add what it sent) and *prune_and_grow* (Pruning-Growing for this client, which is
part of *select*). Each is run as one graph, as in the TFF worker, without TFF's own
cost.

(b) FedMPQ's allocation policy, as the server's graph holds it, for more and more
clients and layers, with a server's inputs: the paper's tiers of budgets, an averaged
and so fractional bit-width per layer, 0 to 2 bits pruned, layer sizes as in a residual
network of three stages. The bar is on 10,000 clients of 50 layers; "build" is the first
call, which traces the graph.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from benchmarks import measure
from tff_fedmpq.federated import acceptance, messages
from tff_fedmpq.federated.client_work import ClientResult
from tff_fedmpq.federated.fedmpq import FedMPQConfig
from tff_fedmpq.federated.local_training import TrainingSums
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.federated.server import Server
from tff_fedmpq.keras.resnets import resnet, resnet20, resnet44
from tff_fedmpq.keras.variables import ModelSpec, float_non_trainable_variables
from tff_fedmpq.simulation.populations import tiered_budgets

_MODELS = {
    "resnet8": functools.partial(resnet, 8, (32, 32, 3), 10),
    "resnet20": resnet20,
    "resnet44": resnet44,
}
_NUM_CLIENTS = 10
_CLIENT = 2  # The first of the clients of 4 bits.
_BAR = (10_000, 50)


def client_steps(model_name: str) -> dict[str, Callable[[], Any]]:
    """Returns what the server does for one client, each as a graph to run."""
    scheme = FedMPQConfig().compose()
    float_model = _MODELS[model_name](seed=0)
    model = scheme.build_global_model(float_model)
    spec = ModelSpec.from_model(scheme.build_client_model(float_model))
    budgets = np.array(tiered_budgets(_NUM_CLIENTS))
    server = Server(scheme, spec, budgets, seed=0)
    state = server.initial_state(
        [v.numpy() for v in model.trainable_variables],
        [v.numpy() for v in float_non_trainable_variables(model)],
    )
    key = tf.constant(_CLIENT)
    select = tf.function(server.message_for)
    received = select(state, key)
    result = client_result(scheme, spec, received, key, budgets[_CLIENT])
    sums = server.zero()
    accumulate = tf.function(server.accumulate)

    @tf.function
    def allocate(means, reductions, budget):
        return scheme.allocation(means, reductions, spec.layer_sizes, budget)

    means, reductions = allocation_inputs(1, len(spec.layer_sizes))
    budget = tf.constant(budgets[_CLIENT : _CLIENT + 1])
    return {
        "select": lambda: select(state, key),
        "accumulate": lambda: accumulate(sums, result, received["ticket"]),
        "prune_and_grow": lambda: allocate(means, reductions, budget),
    }


def client_result(
    scheme: Scheme,
    spec: ModelSpec,
    received: messages.Message,
    key: tf.Tensor,
    budget: float,
) -> ClientResult:
    """Returns the result of a client that sends back what it received."""
    weights = messages.unpack_model(received, spec)
    budget = tf.constant(budget, tf.float32)
    num_examples = tf.constant(1.0)  # Of weight 1.
    message = scheme.uplink.encode(weights, weights, budget, received["seed"])
    weight = scheme.aggregation_weight(budget, num_examples)
    result = ClientResult(
        key,
        weight,
        message,
        weights.bit_widths,
        TrainingSums.zero(),
        tf.zeros(weights.scales.shape),
        num_examples=num_examples,
        fault=tf.constant(0),
        checksum=(),
    )
    checksum = acceptance.checksum(result, received["seed"])
    return result._replace(checksum=checksum)


def allocation_inputs(num_clients: int, num_layers: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns mean bit-widths float32[N, L], equal rows, and reductions int32[N, L]."""
    rng = np.random.default_rng(0)
    means = np.tile(rng.uniform(1, 8, num_layers), [num_clients, 1])
    reductions = rng.choice(3, [num_clients, num_layers], p=[0.7, 0.2, 0.1])
    return tf.constant(means, tf.float32), tf.constant(reductions, tf.int32)


def resnet_layer_sizes(num_layers: int) -> np.ndarray:
    """Returns weights per layer of a three-stage residual network, int64[L].

    Args:
      num_layers: L, at least 5; between a first convolution and a classifier, the
        others are spread over stages of 16, 32 and 64 filters.
    """
    stages = np.array_split(np.arange(num_layers - 2), 3)
    sizes = [9 * 3 * 16]
    for filters, stage in zip((16, 32, 64), stages):
        sizes += [9 * filters * filters] * len(stage)
    return np.array([*sizes, 64 * 10], np.int64)


def time_allocation(num_clients: int, num_layers: int, repeats: int) -> dict[str, Any]:
    """Returns a row of part (b)."""
    sizes = resnet_layer_sizes(num_layers)
    budgets = np.array(tiered_budgets(num_clients))
    means, reductions = allocation_inputs(num_clients, num_layers)
    policy = FedMPQConfig().compose().allocation

    @tf.function
    def allocate(means, reductions, budgets):
        return policy(means, reductions, sizes, budgets)

    inputs = (means, reductions, tf.constant(budgets))
    started = time.perf_counter()
    allocated = allocate(*inputs).numpy()
    build = time.perf_counter() - started
    if (allocated @ sizes > budgets * sizes.sum()).any():
        raise RuntimeError("A client was given more bits than its budget.")
    run = {"allocate": lambda: allocate(*inputs).numpy()}
    timings = measure.time_alternately(run, repeats=repeats, warmup=2)
    return row("allocation", num_layers, num_clients, timings, "allocate", 1e3 * build)


def row(
    what: str,
    layers: int | str,
    clients: int,
    timings: measure.Timings,
    candidate: str,
    build_ms: float | None = None,
) -> dict[str, Any]:
    """Returns a row of the table."""
    quartiles = np.quantile(1e3 * timings.seconds[candidate], [0.25, 0.75])
    return {
        "what": what,
        "layers": layers,
        "clients": clients,
        "ms": 1e3 * timings.median(candidate),
        "ms_quartiles": quartiles.tolist(),
        "build_ms": build_ms if build_ms is not None else "",
    }


def growth_exponents(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns, per number of layers, x where time grows as clients to the power x.

    Taken between the two largest numbers of clients; 1 is proportional growth.
    """
    exponents = {}
    for layers in sorted({r["layers"] for r in rows}):
        times = sorted((r["clients"], r["ms"]) for r in rows if r["layers"] == layers)
        if len(times) > 1:
            (n, ms), (more, more_ms) = times[-2:]
            exponents[str(layers)] = float(np.log(more_ms / ms) / np.log(more / n))
    return exponents


def main() -> None:
    """Runs the benchmark."""
    parser = measure.argument_parser(__doc__)
    parser.add_argument(
        "--models", nargs="*", default=["resnet20", "resnet44"], choices=list(_MODELS)
    )
    parser.add_argument(
        "--clients", nargs="+", type=int, default=[10, 100, 1000, 10_000]
    )
    parser.add_argument("--layers", nargs="+", type=int, default=[10, 22, 50, 100])
    parser.add_argument("--repeats", type=int, default=21, help="at least 5")
    args = parser.parse_args()
    before = measure.environment()
    per_client = []
    for model in args.models:
        timings = measure.time_alternately(client_steps(model), repeats=args.repeats)
        per_client += [row(s, model, 1, timings, s) for s in timings.seconds]
    grid = [
        time_allocation(clients, layers, args.repeats)
        for layers in args.layers
        for clients in args.clients
    ]
    bars = [
        measure.bar(
            "Pruning-Growing, 10,000 clients x 50 layers, s", r["ms"] / 1e3, at_most=1.0
        )
        for r in grid
        if (r["clients"], r["layers"]) == _BAR
    ]
    exponents = growth_exponents(grid)
    rows = per_client + grid
    measure.save(
        "server", rows, bars, before, output=args.output, growth_exponents=exponents
    )


if __name__ == "__main__":
    main()
