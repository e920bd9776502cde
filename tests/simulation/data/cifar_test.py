"""Tests of the CIFAR loaders, on small files in the official layout.

Those on real data run where it is installed, in `~/.keras/datasets`.
"""

import http.server
import os
import pathlib
import shutil
import socket
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from tff_fedmpq.simulation import data as datasets
from tff_fedmpq.simulation.data import (
    DatasetError,
    DatasetNotFoundError,
    cifar,
)
from tff_fedmpq.simulation.data.augmentation import random_crop_and_flip

# Looked up before any test moves the home directory.
REAL_CIFARS = pathlib.Path("~/.keras/datasets").expanduser()


def check_official_images(images, data):
    """Compares [n, h, w, c] with the official rows: all red, all green, all blue."""
    assert images.shape == (len(data), 32, 32, 3)
    for n, y, x, c in np.random.default_rng(0).integers(
        0, [len(data), 32, 32, 3], (500, 4)
    ):
        assert images[n, y, x, c] == data[n, 1024 * c + 32 * y + x]


@pytest.mark.faults
def test_a_flipped_bit_of_a_published_file_is_said(home, tmp_path, caplog):
    """Its image is as good as any, so that the file is read all the same."""
    real = REAL_CIFARS / "cifar-10-batches-py"
    if not (real / "data_batch_1").is_file():
        pytest.skip("CIFAR-10 is not installed")
    folder = tmp_path / "cifar-10-batches-py"
    shutil.copytree(real, folder)
    assert datasets.load_cifar10(tmp_path).differing_files == ()
    content = bytearray((folder / "data_batch_3").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "data_batch_3").write_bytes(content)
    with caplog.at_level("WARNING"):
        dataset = datasets.load_cifar10(tmp_path)
    assert dataset.differing_files == ("data_batch_3",)
    assert "not as CIFAR-10 was published, by their MD5: data_batch_3." in caplog.text


def test_cifar10_files_become_images_and_labels(
    home, tmp_path, write_cifar10, cifar_batch
):
    folder = write_cifar10(tmp_path / "data")
    dataset = datasets.load_cifar10(tmp_path / "data")

    assert dataset.name == "cifar10"
    assert dataset.source == str(folder)
    assert dataset.num_classes == 10
    assert dataset.image_shape == (32, 32, 3)
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    assert dataset.model == "resnet20"
    assert dataset.augment is random_crop_and_flip
    batches = [cifar_batch(seed) for seed in range(6)]
    check_official_images(
        dataset.train_images, np.concatenate([b[b"data"] for b in batches[:5]])
    )
    check_official_images(dataset.test_images, batches[5][b"data"])
    labels = np.concatenate([b[b"labels"] for b in batches[:5]])
    np.testing.assert_array_equal(dataset.train_labels, labels)
    np.testing.assert_array_equal(dataset.test_labels, batches[5][b"labels"])


def test_cifar100_has_the_fine_labels(home, tmp_path, cifar_batch, write_cifar_file):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for seed, name in enumerate(("train", "test")):
        content = cifar_batch(seed, num_classes=100, label_key=b"fine_labels")
        write_cifar_file(folder / name, {**content, b"coarse_labels": [0] * 20})
    dataset = datasets.load_cifar100(tmp_path)

    assert (dataset.name, dataset.num_classes) == ("cifar100", 100)
    assert (dataset.model, dataset.augment) == ("resnet20", random_crop_and_flip)
    expected = cifar_batch(1, 100, b"fine_labels")[b"fine_labels"]
    np.testing.assert_array_equal(dataset.test_labels, expected)


def test_keys_may_be_strings(
    home, tmp_path, write_cifar10, cifar_batch, write_cifar_file
):
    folder = write_cifar10(tmp_path)
    expected = datasets.load_cifar10(tmp_path).test_images
    content = {key.decode(): value for key, value in cifar_batch(5).items()}
    write_cifar_file(folder / "test_batch", content)
    found = datasets.load_cifar10(tmp_path).test_images
    np.testing.assert_array_equal(found, expected)


# --- What is wrong with a file is said, never passed over ---------------------------


def with_data(change):
    return lambda content: {**content, b"data": change(content[b"data"])}


def with_labels(labels):
    return lambda content: {**content, b"labels": labels}


def doubled(times):
    """Few bytes, and as an array 2**times numbers."""
    numbers = [1]
    for _ in range(times):
        numbers = [numbers, numbers]
    return numbers


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda _: [1, 2], "not a readable file of CIFAR-10"),
        (lambda content: {b"data": content[b"data"]}, "KeyError: 'labels'"),
        (with_data(lambda data: data[:-1]), r"labels int32\[19\], found int32\[20\]"),
        (with_data(lambda data: data[:, :-1]), r"found uint8\[20, 3071\]"),
        (with_data(lambda data: data / 1.0), r"found float64\[20, 32, 32, 3\]"),
        (with_data(lambda _: None), "has no array or list of numbers"),
        (with_labels([0] * 19), r"expected labels int32\[20\], found int32\[19\]"),
        (with_labels([0.5] * 20), r"expected labels int32\[20\], found float64"),
        (with_labels([[0], [0, 1]]), "not a readable file of CIFAR-10"),
        (with_labels(doubled(30)), "not a readable file of CIFAR-10"),
        (with_labels([0] * 19 + [10]), r"expected labels 0\.\.9, found 0\.\.10"),
        (with_labels([-1] + [0] * 19), r"expected labels 0\.\.9, found -1\.\.0"),
    ],
)
@pytest.mark.parametrize("name", ["auto", "cifar10"])
def test_wrong_content_is_one_line_with_the_file(
    home,
    name,
    damage,
    message,
    write_cifar10,
    check_one_line,
    cifar_batch,
    write_cifar_file,
):
    folder = write_cifar10(home / ".keras/datasets")
    write_cifar_file(folder / "data_batch_2", damage(cifar_batch(1)))
    with pytest.raises(DatasetError, match=message) as error:
        datasets.load(name)
    assert not isinstance(error.value, DatasetNotFoundError)
    check_one_line(error, folder / "data_batch_2")


@pytest.mark.parametrize("kept", [0, 1, 60, 10_000, -1])
def test_a_truncated_file(home, tmp_path, kept, write_cifar10, check_one_line):
    path = write_cifar10(tmp_path) / "test_batch"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DatasetError, match="not a readable file") as error:
        datasets.load("auto", tmp_path)
    check_one_line(error, path)


def test_a_missing_file(home, tmp_path, write_cifar10, check_one_line):
    path = write_cifar10(tmp_path) / "data_batch_4"
    path.unlink()
    with pytest.raises(DatasetError, match="expected a file of CIFAR-10") as error:
        datasets.load("auto", tmp_path)
    check_one_line(error, path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused(
    home, tmp_path, write_cifar10, check_one_line, cifar_batch, write_cifar_file
):
    path = write_cifar10(tmp_path) / "test_batch"
    write_cifar_file(
        path, {**cifar_batch(5), b"extra": Malicious(tmp_path / "broken_in")}
    )
    with pytest.raises(DatasetError, match=r"it asks for posix\.mkdir") as error:
        datasets.load_cifar10(tmp_path)
    check_one_line(error, path)
    assert not (tmp_path / "broken_in").exists()


@pytest.mark.faults
@pytest.mark.parametrize(
    "attack", [b"cbuiltins\neval\n.", b"cnumpy.core.multiarray\nfromfile\n."]
)
def test_only_array_constructors_are_known(home, tmp_path, attack, write_cifar10):
    path = write_cifar10(tmp_path) / "test_batch"
    path.write_bytes(attack)
    with pytest.raises(DatasetError, match="which no official file does, refused"):
        datasets.load_cifar10(tmp_path)


_DTYPE = b"cnumpy\ndtype\nU\x02%sK\x00K\x01\x87R"


@pytest.mark.faults
@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(b"}r\xff\xff\xff\x7f.", id="a memo of 16 GB"),
        pytest.param(b"\x80\x05\x96\xff\xff\xff\xff\x01\0\0\0.", id="8 GB of bytes"),
        pytest.param(b"})" + 10**6 * b"\x85" + b"Ns.", id="deep keys"),
        pytest.param(_DTYPE % b"O8" + b".", id="an array of objects"),
        pytest.param(_DTYPE % b"u1" + b"(K\x03NNNNNNNtb.", id="no byte order"),
        pytest.param(b"cnumpy\nndarray\nN}U\x05valueK\0s\x86b.", id="our own class"),
        pytest.param(b"N" * 99 + b"0.", id="another opcode"),
    ],
)
def test_a_pickle_that_breaks_unpicklers_is_refused(
    home, tmp_path, attack, write_cifar10, check_one_line
):
    path = write_cifar10(tmp_path) / "test_batch"
    path.write_bytes(attack)
    with pytest.raises(DatasetError, match="not a readable file") as error:
        datasets.load_cifar10(tmp_path)
    check_one_line(error, path)


# --- The download -------------------------------------------------------------------


@pytest.fixture
def server():
    """A web server on this machine that has nothing, but answers."""
    handler = http.server.BaseHTTPRequestHandler
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_address[1]}/cifar.tar.gz"
        web.shutdown()
        thread.join()


def use_url(monkeypatch, url):
    monkeypatch.setattr(cifar, "_URL", url)


def test_no_network_is_one_clear_error(home, check_one_line):
    with pytest.raises(DatasetNotFoundError, match="its download failed") as error:
        datasets.load_cifar10()
    check_one_line(error, "CIFAR-10 was found neither in")
    assert "give that as data_dir" in str(error.value)


def test_a_server_that_never_answers_does_not_hold_us_up(home, monkeypatch):
    monkeypatch.setattr(cifar, "_CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_url(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        started = time.monotonic()
        with pytest.raises(DatasetNotFoundError, match="its download failed"):
            datasets.load_cifar10()
        # A hang would last for ever; this only has to tell it from a slow machine.
        assert time.monotonic() - started < 30.0


def fake_keras(monkeypatch, load_data):
    monkeypatch.setattr(tf.keras.datasets.cifar10, "load_data", load_data)


def test_keras_download_is_used_where_the_server_answers(home, monkeypatch, server):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    labels = np.array([[1], [2], [9]], np.uint8)
    fake_keras(monkeypatch, lambda: ((images, labels), (images[:1], labels[:1])))
    use_url(monkeypatch, server)
    dataset = datasets.load("auto")

    assert (dataset.name, dataset.source) == ("cifar10", "keras download")
    np.testing.assert_array_equal(dataset.train_images, images)
    np.testing.assert_array_equal(dataset.train_labels, [1, 2, 9])
    assert dataset.test_labels.dtype == np.int32


def test_a_download_that_breaks_off(home, monkeypatch, server):
    def load_data():
        raise Exception("URL fetch failure\nhalf way")  # As Keras does.

    fake_keras(monkeypatch, load_data)
    use_url(monkeypatch, server)
    with pytest.raises(DatasetNotFoundError, match="URL fetch failure half way"):
        datasets.load_cifar10()


# --- Real data ----------------------------------------------------------------------


def real_cifar(folder):
    return pytest.mark.skipif(
        not (REAL_CIFARS / folder).is_dir(), reason=f"no {folder} in {REAL_CIFARS}"
    )


@real_cifar("cifar-10-batches-py")
def test_real_cifar10():
    dataset = datasets.load("auto", REAL_CIFARS)
    assert dataset.train_images.shape == (50_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), [5_000] * 10)
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), [1_000] * 10)
    # The published statistics, 0..1: what everybody normalises CIFAR-10 with.
    mean, deviation = dataset.channel_statistics()
    np.testing.assert_allclose(mean / 255, [0.4914, 0.4822, 0.4465], atol=1e-4)
    np.testing.assert_allclose(deviation / 255, [0.2470, 0.2435, 0.2616], atol=1e-4)


@real_cifar("cifar-100-python")
def test_real_cifar100():
    dataset = datasets.load_cifar100(REAL_CIFARS)
    assert dataset.train_images.shape == (50_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), [500] * 100)
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), [100] * 100)


@pytest.mark.faults
def test_a_named_pipe_in_the_place_of_a_file_is_refused(tmp_path, write_cifar10):
    path = write_cifar10(tmp_path) / "data_batch_3"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DatasetError, match="data_batch_3.*no regular file"):
        datasets.load("cifar10", tmp_path)
