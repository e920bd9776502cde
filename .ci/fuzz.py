"""Fuzzes a parser of `tests/oracles/parsers.py` with libFuzzer, and counts the cases.

    python .ci/fuzz.py PARSER --seconds=300 --seed=1 --output=RESULTS.json

Needs atheris (`pip install atheris`). The bytecode of this package, of NumPy's file
formats and of zipfile is instrumented, so that inputs that reach new code are kept and
edited further. A case fails when its target raises, takes more than 20 seconds or more
than 4 GB, or ends the process. Its input is then in a file crash-... in the working
directory, and the status is 1. Pieces of several calls are rows of the same file;
`--corpus` is a folder that passes inputs from one to the next; seconds include the
start of each. Committed results are in
docs/results/faults/fuzzing.json.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import time

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "tests")]

_INSTRUMENTED = ["tff_fedmpq", "numpy.lib", "zipfile", "json", "pickle"]


def fuzz(parser: str, counts: pathlib.Path, flags: list[str]) -> None:
    """Runs libFuzzer on a target; does not return. Counts are written every second."""
    import atheris

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with atheris.instrument_imports(include=_INSTRUMENTED):
        from oracles import parsers

        parsers.IS_LONG = True
        target = parsers.TARGETS[parser]
        target(b"")  # Imports what it needs.
    logging.disable(logging.WARNING)  # A line for every damaged file.
    found: collections.Counter[str] = collections.Counter()
    written = time.monotonic()

    def case(script: bytes) -> None:
        nonlocal written
        found[target(script)] += 1
        if time.monotonic() > written + 1:
            counts.write_text(json.dumps(found))
            written = time.monotonic()

    atheris.Setup([sys.argv[0], *flags], case)
    atheris.Fuzz()


def main() -> int:
    """Fuzzes in a process of its own, and adds a row to the result file."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("parser")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", default="")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--counts", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    flags = [
        f"-max_total_time={options.seconds}",
        f"-seed={options.seed}",
        "-max_len=600",
        "-timeout=20",
        "-rss_limit_mb=4000",
        *([options.corpus] if options.corpus else []),
    ]
    if options.counts:
        fuzz(options.parser, options.counts, flags)
    with tempfile.TemporaryDirectory() as folder:
        counts, started = pathlib.Path(folder, "counts"), time.monotonic()
        command = [sys.executable, *sys.argv, f"--counts={counts}"]
        status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
        seconds = time.monotonic() - started
        found = json.loads(counts.read_text()) if counts.exists() else {}
    row = {
        "parser": options.parser,
        "seed": options.seed,
        "seconds": round(seconds),
        "cases": sum(found.values()),
        **dict(sorted(found.items())),
        "failed": status != 0,
    }
    print(json.dumps(row), flush=True)
    if options.output:
        rows = json.loads(options.output.read_text()) if options.output.exists() else []
        text = ",\n ".join(json.dumps(line) for line in [*rows, row])
        options.output.write_text(f"[{text}]\n")
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
