"""The examples that are read from top to bottom, run as a user runs them."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

_EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def _run(name: str, folder: pathlib.Path) -> str:
    """Runs an example in a folder, and returns what it prints.

    The output goes to a file: a pipe would stay open as long as a worker process does.
    """
    printed, errors = folder / "printed", folder / "errors"
    environment = dict(os.environ)
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # JAX, once imported here, sets it.
    with printed.open("w") as out, errors.open("w") as err:
        finished = subprocess.run(
            [sys.executable, str(_EXAMPLES / name)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=folder,
            env=environment,
            timeout=300,
        )
    assert finished.returncode == 0, errors.read_text()
    assert errors.read_text() == ""
    return printed.read_text()


@pytest.mark.slow
def test_quantize_keras_model(tmp_path):
    printed = _run("quantize_keras_model.py", tmp_path)
    accuracies = [float(a) for a in re.findall(r"accuracy (\S+)", printed)]
    assert len(accuracies) == 3 and min(accuracies) > 0.95
    (total,) = re.findall(r"^total .*", printed, re.MULTILINE)
    assert total.split()[2] == "4.00"


@pytest.mark.slow
def test_federated_own_data(tmp_path):
    printed = _run("federated_own_data.py", tmp_path)
    assert len(re.findall(r"^round \d: ", printed, re.MULTILINE)) == 5
    watch, server = re.findall(r"^(?:watch|global model): .*", printed, re.MULTILINE)
    for line in (watch, server):
        assert float(re.findall(r"accuracy (\d\.\d+)", line)[0]) > 0.9
    sizes = [int(line.split()[-2].replace(",", "")) for line in (watch, server)]
    assert 10 * sizes[0] < sizes[1]


@pytest.mark.slow
def test_device_model(tmp_path):
    printed = _run("device_model.py", tmp_path)
    rows = [line.split() for line in printed.splitlines()[1:]]
    assert [row[0] for row in rows] == ["watch", "phone", "laptop"]
    for client, budget, bits, _, accuracy, accuracy_when_loaded in rows:
        assert float(bits) <= float(budget)
        assert float(accuracy) > 0.9 and accuracy == accuracy_when_loaded
        assert (tmp_path / "device_models" / f"{client}.keras").exists()
    sizes = [int(row[3].replace(",", "")) for row in rows]
    assert sizes == sorted(sizes)
