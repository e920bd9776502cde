"""What the tests of several data sets share: an empty home, small official files."""

import pickle
import socket

import numpy as np
import pytest

from tff_fedmpq.simulation.data import DATA_DIR_VARIABLE, cifar

ROWS = 20


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home directory, and no network."""
    directory = tmp_path / "home"
    directory.mkdir()
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/cifar-{{}}.tar.gz"
    monkeypatch.setattr(cifar, "_URL", url)
    return directory


@pytest.fixture
def cifar_batch():
    """Makes the content of an official file of 20 images from a seed."""

    def make(seed, num_classes=10, label_key=b"labels"):
        rng = np.random.default_rng(seed)
        return {
            b"data": rng.integers(0, 256, (ROWS, 3072), np.uint8),
            label_key: rng.integers(0, num_classes, ROWS).tolist(),
        }

    return make


@pytest.fixture
def write_cifar_file():
    """Writes any content as an official file."""

    def write(path, content):
        # Protocol 3 keeps bytes as they are; official files are Python 2's protocol 2.
        path.write_bytes(pickle.dumps(content, protocol=3))

    return write


@pytest.fixture
def write_cifar10(cifar_batch, write_cifar_file):
    """Writes the official folder, its files from the seeds 0 to 5, and returns it."""

    def write(parent):
        folder = parent / "cifar-10-batches-py"
        folder.mkdir(parents=True)
        names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
        for seed, name in enumerate(names):
            write_cifar_file(folder / name, cifar_batch(seed))
        return folder

    return write


@pytest.fixture
def check_one_line():
    """Checks that an error is one line that begins with a path."""

    def check(error, path):
        message = str(error.value)
        assert "\n" not in message
        assert message.startswith(str(path))

    return check
