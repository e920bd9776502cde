"""The README's Python snippets run as they stand; its table is of a result file."""

import json
import pathlib
import re

import pytest
import tensorflow as tf

from tff_fedmpq.simulation.report import format_devices

_ROOT = pathlib.Path(__file__).parents[2]
_README = (_ROOT / "README.md").read_text()
_SNIPPETS = re.findall(r"```python\n(.*?)```", _README, re.DOTALL)
_FIRST_RUN = _ROOT / "studies/results/first_run/alpha0.5-fedmpq/seed0.json"


def test_the_quantization_snippet_prints_a_summary(capsys):
    names = {}
    exec(_SNIPPETS[0], names)
    variables = names["quantized"].trainable_variables
    assert [v.dtype for v in variables] == [tf.uint8, tf.float32] * 3
    printed = capsys.readouterr().out
    assert "conv2d" in printed and "total" in printed


@pytest.mark.slow
def test_the_federated_snippet_ends_with_the_model_of_a_two_bit_device(capsys):
    names = {}
    exec(_SNIPPETS[0], names)
    capsys.readouterr()
    exec(_SNIPPETS[1], names)
    lines = capsys.readouterr().out.splitlines()
    assert sum("num_examples" in line for line in lines) == 2
    (total,) = [line for line in lines if line.startswith("total")]
    assert 1.5 < float(total.split()[2]) <= 2.0


def test_the_table_of_devices_is_that_of_the_first_run():
    record = json.loads(_FIRST_RUN.read_text())
    (table,) = re.findall(
        r"<!-- first run: begin -->\n(.*?)<!-- first run: end -->", _README, re.DOTALL
    )
    assert table.strip() == format_devices(record["final"], "github")
