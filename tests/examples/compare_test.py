"""What the command line of `compare.py` refuses."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

_PROGRAM = pathlib.Path(__file__).parents[2] / "examples" / "compare.py"


@pytest.mark.parametrize("seeds", ["0,-1", "1.5", ""])
def test_seeds_are_whole_numbers(seeds, tmp_path):
    completed = subprocess.run(
        [sys.executable, str(_PROGRAM), "--dataset=digits", f"--seeds={seeds}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert completed.returncode == 2
    message = "Error: seeds: expected whole numbers, 0 or more, found"
    assert message in completed.stderr and "Traceback" not in completed.stderr
    assert not list(tmp_path.iterdir())
