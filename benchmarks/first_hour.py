"""The README's commands as a newcomer gives them: a fresh clone, with empty caches.

    uv run python -m benchmarks.first_hour

Each row is a fresh clone of the commit that is checked out, with a home directory and a
package cache of its own. First the README's first command, on digits and, with this
user's data sets in `$TFF_FEDMPQ_DATA_DIR`, on CIFAR-10; seconds are counted from the
start of `pip install uv`, so that downloads of packages are in them. Then the test
command, whose environment is made before.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import measure, startup

_ROOT = pathlib.Path(__file__).parent.parent
_DATA = pathlib.Path.home() / ".keras" / "datasets"
_BARS = {"digits": (60.0, 95.0), "cifar10": (180.0, 45.0)}  # Seconds, accuracy in %.
_TEST_BAR = 300.0


def readme_commands() -> list[str]:
    """Returns the README's shell commands."""
    return re.findall(r"```bash\n(.*?)\n```", (_ROOT / "README.md").read_text())


def newcomer(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, str]]:
    """Returns a fresh clone, and the environment variables of an empty home."""
    clone, home = folder / "clone", folder / "home"
    home.mkdir()
    subprocess.run(["git", "clone", "--quiet", _ROOT, clone], check=True)
    subprocess.run([sys.executable, "-m", "venv", folder / "python"], check=True)
    path = f"{folder / 'python' / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    kept = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "UV_", "SSL"))}
    dropped = {"UV_CACHE_DIR", "UV_PROJECT_ENVIRONMENT"}
    kept = {k: v for k, v in kept.items() if k not in dropped}
    return clone, {**kept, "HOME": str(home), "PATH": path}


def time_first_command(folder: pathlib.Path, dataset: str) -> dict[str, Any]:
    """Runs the first command; returns a row."""
    clone, variables = newcomer(folder)
    if dataset == "cifar10":
        variables["TFF_FEDMPQ_DATA_DIR"] = str(_DATA)
    command = ["bash", "-c", f"{readme_commands()[0]} --dataset={dataset}"]
    run = clone / "runs" / "quick"
    seen = startup.watch(command, run, folder / "log", cwd=clone, env=variables)
    result = json.loads((run / "result.json").read_text())
    devices = {b: 100 * d["accuracy"] for b, d in result["devices"].items()}
    return {
        "command": f"first, {dataset}",
        **{event.replace(" ", "_"): seconds for event, seconds in seen.items()},
        "seconds_from_the_first_step": seen["end of the program"]
        - seen["first training step"],
        "accuracy": 100 * result["rounds"][-1]["test_accuracy"],
        "least_accuracy_of_a_device": min(devices.values()),
    }


def time_tests(folder: pathlib.Path) -> tuple[float, str]:
    """Returns the seconds of the test command, and pytest's last line."""
    clone, variables = newcomer(folder)
    subprocess.run(
        ["bash", "-c", "pip install --quiet uv && uv sync --quiet --frozen"],
        cwd=clone,
        env=variables,
        check=True,
    )
    started = time.perf_counter()
    done = subprocess.run(
        ["bash", "-c", readme_commands()[1]],
        cwd=clone,
        env=variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds = time.perf_counter() - started
    return seconds, done.stdout.strip().splitlines()[-1]


def main() -> None:
    """Runs one after the other."""
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--without_tests", action="store_true")
    options = parser.parse_args()
    before = measure.environment()
    rows, bars = [], []
    for dataset, (seconds, accuracy) in _BARS.items():
        with tempfile.TemporaryDirectory() as folder:
            row = time_first_command(pathlib.Path(folder), dataset)
        rows.append(row)
        what = f"{dataset}, seconds from the first step"
        measured = row["seconds_from_the_first_step"]
        bars.append(measure.bar(what, measured, at_most=seconds))
        what = f"{dataset}, accuracy in %"
        bars.append(measure.bar(what, row["accuracy"], at_least=accuracy))
    last_line = ""
    if not options.without_tests:
        with tempfile.TemporaryDirectory() as folder:
            seconds, last_line = time_tests(pathlib.Path(folder))
        bars.append(measure.bar("test command, s", seconds, at_most=_TEST_BAR))
    measure.save(
        "first_hour", rows, bars, before, output=options.output, tests=last_line
    )


if __name__ == "__main__":
    main()
