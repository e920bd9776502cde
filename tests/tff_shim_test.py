"""TFF on Pythons that it does not know: what its modules look up is there."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tff_fedmpq import _tff_shim
from tff_fedmpq._tff import tff

needs_repairs = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="TFF needs no repairs there"
)


def test_every_name_that_tff_looks_up_in_tensorflow_privacy_exists():
    names = set()
    for path in pathlib.Path(tff.__file__).parent.rglob("*.py"):
        text = path.read_text()
        if "import tensorflow_privacy as tfp" in text:
            names |= set(re.findall(r"\btfp\.([A-Za-z_]+)", text))
    assert len(names) > 10
    privacy = sys.modules["tensorflow_privacy"]  # TFF has imported it.
    assert [n for n in sorted(names) if not hasattr(privacy, n)] == []


def test_a_differentially_private_aggregator_adds_noise_to_clipped_values(runtime):
    factory = tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(
        noise_multiplier=0.0, clients_per_round=2, clip=1.0
    )
    process = factory.create(tff.TensorType(np.float32, [2]))
    output = process.next(process.initialize(), [[3.0, 4.0], [0.0, 0.5]])
    assert output.result == pytest.approx([0.3, 0.65])


def test_the_worker_reads_record_files(runtime, tmp_path):
    """Those of a client's dataset, where no size of a buffer is given."""
    path = str(tmp_path / "records")
    with tf.io.TFRecordWriter(path) as writer:
        for number in (b"1", b"2"):
            writer.write(number)

    @tff.tensorflow.computation
    def total():
        records = tf.data.TFRecordDataset(path).map(tf.strings.to_number)
        return records.reduce(0.0, lambda total, number: total + number)

    assert total() == 3.0


@needs_repairs
def test_tff_can_be_imported_after_this_package():
    code = (
        "import sys, tff_fedmpq\n"
        "assert 'jax' not in sys.modules and 'tensorflow' not in sys.modules\n"
        "import tensorflow_federated as tff\n"
        "assert not hasattr(sys, 'skip_tf_privacy_import')\n"
        "print(tff.__version__)\n"
        "from tff_fedmpq import _tff  # Frees TFF's context before Python ends.\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.stdout.split() == ["0.87.0"], finished.stderr
    assert "Traceback" not in finished.stderr


def test_nothing_is_left_behind_and_nothing_is_changed_where_it_is_not_needed(
    monkeypatch,
):
    finders = [f for f in sys.meta_path if isinstance(f, _tff_shim._Finder)]
    assert finders == []
    monkeypatch.setattr(sys, "meta_path", [])
    _tff_shim.install()
    assert len(sys.meta_path) == (1 if sys.version_info >= (3, 12) else 0)
