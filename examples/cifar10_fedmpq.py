"""Trains FedMPQ, or a scheme it is compared with, on CIFAR-10.

    python examples/cifar10_fedmpq.py --alpha=0.1 --preset=quick --output_dir=/tmp/run

The preset says everything about the run; every other flag replaces one of its settings.
Results are in the output directory: result.json, curves.png, metrics.csv, tensorboard/.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import experiment_flags
from absl import app, flags, logging

from tff_fedmpq.federated.schemes import ALL_SCHEMES, explicit_options
from tff_fedmpq.simulation import report
from tff_fedmpq.simulation.experiment import run_experiment

_SCHEME = flags.DEFINE_enum("scheme", "fedmpq", list(ALL_SCHEMES), "What to train.")
_FEDMPQ_DEFAULTS = ", ".join(
    f"{name}={value}" for name, value in explicit_options("fedmpq", {}).items()
)
_SCHEME_OPTIONS = flags.DEFINE_list(
    "scheme_options",
    [],
    "Any other settings of the scheme, as name=value: allocation=pruning_growing,"
    f"error_feedback=false. FedMPQ's, by default: {_FEDMPQ_DEFAULTS}. A wrong name or "
    "value is answered with those there are.",
)
_CONSTANTS = {"true": True, "false": False, "none": None, "null": None}
_SEED = flags.DEFINE_integer("seed", None, "Fixes everything random. By default 0.")
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Where results and checkpoints go; by default runs/<scheme>."
)
_RESUME = flags.DEFINE_bool(
    "resume", False, "Go on with the run in --output_dir; a finished one is not redone."
)


flags.adopt_module_key_flags(experiment_flags)  # So that --help shows them.


def main(argv: list[str]) -> int:
    """Runs what the flags say; user errors end in one line."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
    logging.set_verbosity(logging.WARNING)
    output_dir = _OUTPUT_DIR.value or os.path.join("runs", _SCHEME.value)
    try:
        experiment_flags.check_flags_act_on([_SCHEME.value])
        config = experiment_flags.read_config(
            scheme=_SCHEME.value,
            scheme_options={
                **experiment_flags.read_fedmpq_options(),
                **_parse_options(_SCHEME_OPTIONS.value),
            },
            seed=_SEED.value,
        )
        result = run_experiment(
            config,
            output_dir,
            data_dir=experiment_flags.DATA_DIR.value,
            resume=_RESUME.value,
        )
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(report.describe_result(result))
    print(f"Results: {os.path.abspath(os.path.expanduser(output_dir))}")
    return 0


def _parse_options(options: list[str]) -> dict[str, Any]:
    """Returns name -> value of "name=value": a truth value, None, number or text."""
    parsed: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"--scheme_options takes name=value; found {option!r}.")
        if value.lower() in _CONSTANTS:
            parsed[name] = _CONSTANTS[value.lower()]
            continue
        parsed[name] = _parse_number(value)
    return parsed


def _parse_number(text: str) -> int | float | str:
    """Returns the number that a text says, or the text."""
    for parse in (int, float):
        try:
            return parse(text)
        except ValueError:
            continue
    return text


if __name__ == "__main__":
    app.run(main)
