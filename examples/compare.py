"""Compares schemes on the same partition, participants, initial weights and batches.

    python examples/compare.py --schemes=fedavg,aqfl,fedmpq --alpha=0.5 --seeds=0,1

Runs one after the other; started again, it continues where it was interrupted. Writes a
run per scheme and seed, table.txt, table.csv, table.json and comparison.png.
"""

from __future__ import annotations

import sys

import run_flags
from absl import flags
from setting_flags import read_flags

from tff_fedmpq.baselines.registry import SCHEMES
from tff_fedmpq.simulation.config import ExperimentConfig, field_names, make_config

_SCHEMES = flags.DEFINE_list(
    "schemes",
    [name for name in SCHEMES if not name.endswith("_literal")],
    f"Schemes to compare, of {', '.join(SCHEMES)}.",
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds: a run of every scheme for each.")
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "runs/compare", "Directory of runs and tables."
)


def main() -> None:
    """Runs the comparison that the flags describe."""
    configs = make_configs(_SCHEMES.value, parse_seeds(_SEEDS.value))
    dataset = run_flags.load_dataset()
    run_flags.announce(next(iter(configs.values()))[0], dataset)

    import comparison

    rows = comparison.run_comparison(
        configs,
        _OUTPUT_DIR.value,
        data_dir=run_flags.DATA_DIR.value,
        workers=run_flags.workers(),
        announce=lambda line: print(line, flush=True),
    )
    print(comparison.format_table(rows))
    print(f"Results: {_OUTPUT_DIR.value}")


def parse_seeds(texts: list[str]) -> list[int]:
    """Returns the seeds that `--seeds` lists, or raises ValueError."""
    seeds = [text.strip() for text in texts]
    if not seeds or not all(map(str.isdecimal, seeds)):
        raise ValueError(f"seeds: expected whole numbers, 0 or more, found {texts}.")
    return [int(seed) for seed in seeds]


def make_configs(
    schemes: list[str], seeds: list[int]
) -> dict[str, list[ExperimentConfig]]:
    """Returns the configurations of all runs, by scheme.

    A flag that only some schemes have a use for acts on these.

    Raises:
      ValueError: for an unknown scheme, or a flag that none of them has a use for.
    """
    unknown = [scheme for scheme in schemes if scheme not in SCHEMES]
    if unknown or not schemes or len(set(schemes)) < len(schemes):
        raise ValueError(f"schemes: expected some of {list(SCHEMES)}, found {schemes}.")
    given = read_flags()
    settings = {
        scheme: field_names(SCHEMES[scheme]()) | field_names(ExperimentConfig)
        for scheme in schemes
    }
    unused = set(given) - set().union(*settings.values())
    if unused:
        raise ValueError(f"None of {schemes} has the settings {sorted(unused)}.")
    dataset = run_flags.load_dataset().name
    return {
        scheme: [
            make_config(
                run_flags.PRESET.value,
                scheme,
                dataset=dataset,
                **{**{k: v for k, v in given.items() if k in names}, "seed": seed},
            )
            for seed in seeds
        ]
        for scheme, names in settings.items()
    }


if __name__ == "__main__":
    sys.exit(run_flags.run(main))
