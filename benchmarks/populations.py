"""Memory over 300 rounds, as participants and populations change.

Participants change each round, by a sampler whose clients sometimes fail; the
population every 20: clients join and leave, budgets change, a new process is built, and
`carry_over` takes the state there. Compared are medians of ten rounds, the first after
two changes of the population. Resident memory is as in the benchmark `scale`.
"""

from __future__ import annotations

import gc
import tempfile

import numpy as np

from benchmarks import measure, scale
from tff_fedmpq import carry_over, client_data_from_arrays
from tff_fedmpq.federated.fedmpq import FedMPQConfig, build_fedmpq
from tff_fedmpq.federated.runtime import local_runtime
from tff_fedmpq.simulation.samplers import ClientSampler

_SETTLED = 60
_WINDOW = 10
_ROUNDS_PER_POPULATION = 20


def run_changes(rounds: int) -> dict[str, list[float]]:
    """Returns MB of each process after each round."""
    rng = np.random.default_rng(0)
    arrays = {
        f"client{i}": (
            rng.normal(size=(16, 32, 32, 3)).astype(np.float32),
            rng.integers(0, 10, 16).astype(np.int32),
        )
        for i in range(12)
    }
    used: dict[str, list[float]] = {"python": [], "worker": []}
    with local_runtime(), tempfile.TemporaryDirectory() as directory:
        client_data = client_data_from_arrays(arrays, directory)
        ids, process, state = scale._process_ids(), None, None
        for number in range(rounds):
            if number % _ROUNDS_PER_POPULATION == 0:
                clients = rng.choice(list(arrays), 8, replace=False).tolist()
                budgets = {c: float(rng.integers(2, 9)) for c in clients}
                config = FedMPQConfig(epochs=1, batch_size=16)
                new = build_fedmpq(scale.tiny_model, budgets, client_data, config)
                state = carry_over(state, process, new) if process else new.initialize()
                process = new
                del new
                gc.collect()
            sampler = ClientSampler(list(budgets), seed=0, dropout=0.2)
            state = process.next(state, sampler.draw(number + 1, 4)).state
            for name, pid in ids.items():
                used[name].append(scale._memory(pid, "VmRSS"))
    return used


def main() -> None:
    """Runs the rounds."""
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    args = parser.parse_args()
    before = measure.environment()
    rows, bars, used = [], [], run_changes(args.rounds)
    for name, series in used.items():
        settled = float(np.median(series[:_SETTLED][-_WINDOW:]))
        last = float(np.median(series[-_WINDOW:]))
        rows.append({"process": name, "settled_mb": settled, "last_mb": last})
        what = f"growth of {name}'s memory, round {_SETTLED} to {len(series)}"
        bars.append(measure.bar(what, last / settled - 1, at_most=0.05))
    measure.save(
        "populations", rows, bars, before, output=args.output, memory_mb_by_round=used
    )


if __name__ == "__main__":
    main()
