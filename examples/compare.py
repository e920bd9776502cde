"""Compares schemes on the same partition, participants, initial weights and batches.

    python examples/compare.py --schemes=fedavg,aqfl,fedmpq --alpha=0.5 --seeds=0,1

Runs one after the other; started again, it goes on where it was interrupted. Writes a
run per scheme and seed, table.txt, table.csv, table.json and comparison.png.
"""

from __future__ import annotations

import os
import sys

import experiment_flags
from absl import app, flags, logging

from tff_fedmpq.federated.schemes import ALL_SCHEMES, SCHEMES
from tff_fedmpq.simulation import comparison
from tff_fedmpq.simulation.config import parse_seeds

_SCHEMES = flags.DEFINE_list(
    "schemes", list(SCHEMES), f"Which of {', '.join(ALL_SCHEMES)} to compare."
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "A run of every scheme for each seed.")
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "runs/compare", "Where runs and tables go."
)


flags.adopt_module_key_flags(experiment_flags)  # So that --help shows them.


def main(argv: list[str]) -> int:
    """Runs what the flags say; user errors end in one line."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
    logging.set_verbosity(logging.WARNING)
    try:
        comparison.check_schemes(_SCHEMES.value)  # Before what depends on them.
        experiment_flags.check_flags_act_on(_SCHEMES.value)
        rows = comparison.run_comparison(
            experiment_flags.read_config,
            _SCHEMES.value,
            parse_seeds(_SEEDS.value),
            _OUTPUT_DIR.value,
            scheme_options={
                scheme: experiment_flags.read_fedmpq_options()
                for scheme in experiment_flags.FEDMPQ_SCHEMES
            },
            data_dir=experiment_flags.DATA_DIR.value,
            announce=lambda line: print(line, flush=True),
        )
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(comparison.format_table(rows))
    print(f"Results: {os.path.abspath(os.path.expanduser(_OUTPUT_DIR.value))}")
    return 0


if __name__ == "__main__":
    app.run(main)
