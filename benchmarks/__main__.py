"""Runs benchmarks one after the other, each in a fresh process, then the report.

uv run python -m benchmarks                  all of them, about an hour on two cores
uv run python -m benchmarks local_step wire  some
"""

from __future__ import annotations

import argparse
import subprocess
import sys

NAMES = (
    "local_step",
    "round",
    "checks",
    "startup",
    "first_hour",
    "evaluation",
    "server",
    "packing",
    "wire",
    "scale",
    "client_data",
    "populations",
    "training_curves",
)


def main() -> int:
    """Runs what the command line names; returns 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    names = parser.parse_args().names or list(NAMES)
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        parser.error(f"unknown benchmarks {unknown}; choose among {', '.join(NAMES)}")
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode:
            failed.append(name)
    subprocess.run([sys.executable, "-m", "benchmarks.report"], check=True)
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
