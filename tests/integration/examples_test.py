"""The examples that are read from top to bottom, run as a user runs them."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tff_fedmpq import export

_EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def _run(
    name: str, folder: pathlib.Path, *arguments: str, is_silent: bool = True
) -> str:
    """Runs an example in a folder, and returns what it prints.

    The output goes to a file: a pipe would stay open as long as a worker process does.
    """
    printed, errors = folder / "printed", folder / "errors"
    environment = dict(os.environ)
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # JAX, once imported here, sets it.
    with printed.open("w") as out, errors.open("w") as err:
        finished = subprocess.run(
            [sys.executable, str(_EXAMPLES / name), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=folder,
            env=environment,
            timeout=300,
        )
    assert finished.returncode == 0, errors.read_text()
    assert not is_silent or errors.read_text() == ""
    return printed.read_text()


def _has_runtimes() -> bool:
    try:
        return bool(export.find_python())
    except export.ExportError:
        return False


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
    run = ["--dataset=digits", "--preset=quick", "--rounds=2", "--output_dir=run"]
    _run("cifar10_fedmpq.py", tmp_path, *run, is_silent=False)  # Shows progress.
    printed = _run("device_model.py", tmp_path, "run")
    found = re.findall(r"^ +(\S+bits)\.fedmpq: ([0-9,]+) bytes", printed, re.MULTILINE)
    assert [path for path, _ in found] == [
        f"run/devices/{bits}bits" for bits in (2, 4, 8)
    ]
    sizes = [int(size.replace(",", "")) for _, size in found]
    assert sizes == sorted(sizes) and sizes[2] > 2 * sizes[0]
    files = [f"{path}.fedmpq" for path, _ in found]
    if _has_runtimes():  # As in .ci/export.
        ends = ("litert.tflite", "micro.tflite")
        files += [f"{path}.{end}" for path, _ in found for end in ends]
    for file in files:
        size = (tmp_path / file).stat().st_size
        assert f" {file}: {size:,} bytes" in printed
    accuracies = re.findall(r"bits: accuracy (\S+)", printed)
    assert len(accuracies) == 3 and float(accuracies[2]) > 0.2
