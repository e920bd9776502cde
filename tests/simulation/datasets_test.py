"""Tests of the data set loaders, on small files in the official layouts.

Those on real data run where it is installed: the CIFARs in `~/.keras/datasets`, and
Tiny-ImageNet in the directory that `TFF_FEDMPQ_DATA_DIR` names.
"""

import dataclasses
import http.server
import logging
import os
import pathlib
import pickle
import shutil
import socket
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tff_fedmpq.simulation import datasets
from tff_fedmpq.simulation.datasets import (
    DATA_DIR_VARIABLE,
    DatasetError,
    DatasetNotFoundError,
    ImageDataset,
)

# Looked up before any test moves the home directory.
REAL_CIFARS = pathlib.Path("~/.keras/datasets").expanduser()
REAL_TINY = pathlib.Path(os.environ.get(DATA_DIR_VARIABLE) or "nowhere")
ROWS = 20


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home directory, no network and small official files."""
    directory = tmp_path / "home"
    directory.mkdir()
    monkeypatch.setenv("HOME", str(directory))
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/cifar.tar.gz"
    for constant in ("_CIFAR10", "_CIFAR100"):
        official = getattr(datasets, constant)
        small = dataclasses.replace(
            official,
            train_files=tuple((name, ROWS) for name, _ in official.train_files),
            test_file=(official.test_file[0], ROWS),
            url=url,
        )
        monkeypatch.setattr(datasets, constant, small)
    return directory


def batch(seed, num_classes=10, label_key=b"labels"):
    rng = np.random.default_rng(seed)
    return {
        b"data": rng.integers(0, 256, (ROWS, 3072), np.uint8),
        label_key: rng.integers(0, num_classes, ROWS).tolist(),
    }


def write(path, content):
    # Protocol 3 keeps bytes as they are; official files are Python 2's protocol 2.
    path.write_bytes(pickle.dumps(content, protocol=3))


def write_cifar10(parent):
    folder = parent / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names):
        write(folder / name, batch(seed))
    return folder


def check_official_images(images, data):
    """Compares [n, h, w, c] with the official rows: all red, all green, all blue."""
    assert images.shape == (len(data), 32, 32, 3)
    for n, y, x, c in np.random.default_rng(0).integers(
        0, [len(data), 32, 32, 3], (500, 4)
    ):
        assert images[n, y, x, c] == data[n, 1024 * c + 32 * y + x]


def check_one_line(error, path):
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(path))


# --- CIFAR layouts and where they are looked for -------------------------------------


def test_cifar10_files_become_images_and_labels(home, tmp_path):
    folder = write_cifar10(tmp_path / "data")
    dataset = datasets.load_cifar10(tmp_path / "data")

    assert dataset.name == "cifar10"
    assert dataset.source == str(folder)
    assert dataset.num_classes == 10
    assert dataset.image_shape == (32, 32, 3)
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    batches = [batch(seed) for seed in range(6)]
    check_official_images(
        dataset.train_images, np.concatenate([b[b"data"] for b in batches[:5]])
    )
    check_official_images(dataset.test_images, batches[5][b"data"])
    labels = np.concatenate([b[b"labels"] for b in batches[:5]])
    np.testing.assert_array_equal(dataset.train_labels, labels)
    np.testing.assert_array_equal(dataset.test_labels, batches[5][b"labels"])


def test_cifar100_has_the_fine_labels(home, tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for seed, name in enumerate(("train", "test")):
        content = batch(seed, num_classes=100, label_key=b"fine_labels")
        write(folder / name, {**content, b"coarse_labels": [0] * ROWS})
    dataset = datasets.load_cifar100(tmp_path)

    assert (dataset.name, dataset.num_classes) == ("cifar100", 100)
    expected = batch(1, 100, b"fine_labels")[b"fine_labels"]
    np.testing.assert_array_equal(dataset.test_labels, expected)


def test_keys_may_be_strings(home, tmp_path):
    folder = write_cifar10(tmp_path)
    expected = datasets.load_cifar10(tmp_path).test_images
    content = {key.decode(): value for key, value in batch(5).items()}
    write(folder / "test_batch", content)
    found = datasets.load_cifar10(tmp_path).test_images
    np.testing.assert_array_equal(found, expected)


def test_search_order(home, tmp_path, monkeypatch):
    def source(data_dir=None):
        return datasets.load("auto", data_dir).source

    places = [tmp_path / "given", tmp_path / "environment", home / ".keras/datasets"]
    given, environment, keras = [str(write_cifar10(place)) for place in places]
    assert source() == keras
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path / "environment"))
    assert source() == environment
    assert source("") == environment
    assert source(str(tmp_path / "given")) == given
    assert source(given) == given
    renamed = shutil.move(given, tmp_path / "renamed")
    assert source(renamed) == str(renamed)
    monkeypatch.chdir(tmp_path)
    assert source("environment") == environment


def test_environment_directory_without_this_data_is_passed_over(
    home, tmp_path, monkeypatch
):
    (tmp_path / "others").mkdir()
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path / "others"))
    folder = write_cifar10(home / ".keras/datasets")
    assert datasets.load_cifar10().source == str(folder)


# --- What is wrong with a data directory is said, never passed over ------------------


@pytest.mark.parametrize("name", ["auto", "cifar10", "cifar100", "tiny_imagenet"])
def test_an_explicit_directory_without_the_data(home, tmp_path, name):
    write_cifar10(home / ".keras/datasets")
    for data_dir in (tmp_path / "missing", tmp_path):
        with pytest.raises(DatasetNotFoundError, match="expected the folder") as error:
            datasets.load(name, data_dir)
        check_one_line(error, data_dir)


@pytest.mark.parametrize("name", ["auto", "cifar10", "tiny_imagenet"])
def test_an_environment_variable_that_names_nothing(home, name, monkeypatch):
    write_cifar10(home / ".keras/datasets")
    monkeypatch.setenv(DATA_DIR_VARIABLE, "/nowhere/at/all")
    with pytest.raises(DatasetError, match="/nowhere/at/all: expected a directory"):
        datasets.load(name)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def changed(**changes):
    return {**batch(1), **{key.encode(): value for key, value in changes.items()}}


@pytest.mark.parametrize(
    "content, message",
    [
        ([1, 2], "not a readable file of CIFAR-10"),
        ({b"data": batch(1)[b"data"]}, "KeyError: 'labels'"),
        (changed(data=batch(1)[b"data"][:-1]), r"found uint8\[19, 3072\]"),
        (changed(data=batch(1)[b"data"][:, :-1]), r"found uint8\[20, 3071\]"),
        (changed(data=batch(1)[b"data"] / 1.0), r"found float64\[20, 3072\]"),
        (changed(data=None), r"found object\[\]"),
        (changed(labels=[0] * 19), "expected 20 integer labels"),
        (changed(labels=[0.5] * 20), "expected 20 integer labels"),
        (changed(labels=[[0], [0, 1]]), "not a readable file of CIFAR-10"),
        (changed(labels=[0] * 19 + [10]), r"expected labels 0\.\.9, found 0\.\.10"),
        (changed(labels=[-1] + [0] * 19), r"expected labels 0\.\.9, found -1\.\.0"),
    ],
)
@pytest.mark.parametrize("name", ["auto", "cifar10"])
def test_wrong_content_is_one_line_with_the_file(
    home, tmp_path, name, content, message
):
    folder = write_cifar10(home / ".keras/datasets")
    write(folder / "data_batch_2", content)
    with pytest.raises(DatasetError, match=message) as error:
        datasets.load(name)
    assert not isinstance(error.value, DatasetNotFoundError)
    check_one_line(error, folder / "data_batch_2")


@pytest.mark.parametrize("kept", [0, 1, 60, 10_000, -1])
def test_a_truncated_file(home, tmp_path, kept):
    path = write_cifar10(tmp_path) / "test_batch"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DatasetError, match="not a readable file") as error:
        datasets.load("auto", tmp_path)
    check_one_line(error, path)


def test_a_missing_file(home, tmp_path):
    path = write_cifar10(tmp_path) / "data_batch_4"
    path.unlink()
    with pytest.raises(DatasetError, match="expected a file of CIFAR-10") as error:
        datasets.load("auto", tmp_path)
    check_one_line(error, path)


def test_a_pickle_that_would_run_code_is_refused(home, tmp_path):
    path = write_cifar10(tmp_path) / "test_batch"
    write(path, {**batch(5), b"extra": Malicious(tmp_path / "broken_in")})
    with pytest.raises(DatasetError, match=r"it asks for posix\.mkdir") as error:
        datasets.load_cifar10(tmp_path)
    check_one_line(error, path)
    assert not (tmp_path / "broken_in").exists()


@pytest.mark.parametrize(
    "attack", [b"cbuiltins\neval\n.", b"cnumpy.core.multiarray\nfromfile\n."]
)
def test_only_array_constructors_are_known(home, tmp_path, attack):
    path = write_cifar10(tmp_path) / "test_batch"
    path.write_bytes(attack)
    with pytest.raises(DatasetError, match="which no official file does, refused"):
        datasets.load_cifar10(tmp_path)


# --- The download --------------------------------------------------------------------


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
    monkeypatch.setattr(
        datasets, "_CIFAR10", dataclasses.replace(datasets._CIFAR10, url=url)
    )


def test_no_network_is_one_clear_error(home):
    with pytest.raises(DatasetNotFoundError, match="its download failed") as error:
        datasets.load_cifar10()
    check_one_line(error, "CIFAR-10 was found neither in")
    assert "give that as data_dir" in str(error.value)


def test_a_server_that_never_answers_does_not_hold_us_up(home, monkeypatch):
    monkeypatch.setattr(datasets, "_CONNECT_SECONDS", 0.2)
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


def test_auto_falls_back_to_digits_loudly(home, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = datasets.load("auto")
    assert dataset.name == "digits"
    assert "USING DIGITS INSTEAD OF CIFAR-10" in caplog.text
    assert "its download failed" in caplog.text


# --- Tiny-ImageNet -------------------------------------------------------------------

WNIDS = ["n03", "n01", "n02"]


def write_tiny(parent):
    """Three classes, two training images each and three for validation."""
    folder = parent / "tiny-imagenet-200"
    rng = np.random.default_rng(0)

    def save(path, mode="RGB", size=64):
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size, size, 3) if mode == "RGB" else (size, size)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path, "JPEG")

    for wnid in WNIDS:
        save(folder / "train" / wnid / "images" / f"{wnid}_0.JPEG")
        save(folder / "train" / wnid / "images" / f"{wnid}_1.JPEG", mode="L")
    lines = []
    for number, wnid in enumerate(["n02", "n03", "n02"]):
        save(folder / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    return folder


def test_tiny_imagenet_layout(home, tmp_path):
    folder = write_tiny(tmp_path)
    dataset = datasets.load("tiny_imagenet", tmp_path)

    assert (dataset.name, dataset.source) == ("tiny_imagenet", str(folder))
    assert dataset.num_classes == 3
    assert dataset.image_shape == (64, 64, 3)
    np.testing.assert_array_equal(dataset.train_labels, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(dataset.test_labels, [2, 0, 2])
    with Image.open(folder / "train/n01/images/n01_0.JPEG") as image:
        np.testing.assert_array_equal(dataset.train_images[2], image)
    with Image.open(folder / "train/n01/images/n01_1.JPEG") as image:
        grey = np.asarray(image)
    for channel in range(3):
        np.testing.assert_array_equal(dataset.train_images[3, ..., channel], grey)


def shrink(path):
    Image.new("RGB", (32, 48)).save(path, "JPEG")


@pytest.mark.parametrize(
    "file, damage, message",
    [
        ("wnids.txt", pathlib.Path.unlink, "wnids.txt: cannot be read"),
        ("wnids.txt", lambda p: p.write_text("n03\nn01\n"), "2 of them and 1 others"),
        ("wnids.txt", lambda p: p.write_text("n03\n" * 4), "4 lines of wnids.txt"),
        ("train", shutil.rmtree, "found 0 of them"),
        ("train/n01/images/n01_0.JPEG", pathlib.Path.unlink, "expected 2 .* found 1"),
        ("train/n01/images/n01_0.JPEG", shrink, "expected 64x64 .* found 32x48"),
        (
            "train/n01/images/n01_0.JPEG",
            lambda p: p.write_bytes(p.read_bytes()[:700]),
            "n01_0.JPEG: not a readable image",
        ),
        ("val/images/val_1.JPEG", pathlib.Path.unlink, "val_1.JPEG: not a readable"),
        (
            "val/val_annotations.txt",
            lambda p: p.write_text("val_0.JPEG\tn09\t0\n"),
            "line 1: expected an image and a class of wnids.txt",
        ),
        (
            "val/val_annotations.txt",
            lambda p: p.write_text("val_0.JPEG\tn02\t0\nval_1"),
            "line 2: expected an image and a class of wnids.txt",
        ),
    ],
)
def test_damaged_tiny_imagenet(home, tmp_path, file, damage, message):
    folder = write_tiny(tmp_path)
    damage(folder / file)
    # The folder itself is given: without wnids.txt only its name tells it.
    with pytest.raises(DatasetError, match=message) as error:
        datasets.load_tiny_imagenet(folder)
    check_one_line(error, folder)


def test_tiny_imagenet_is_not_downloaded(home):
    with pytest.raises(DatasetNotFoundError, match="unpack http://cs231n"):
        datasets.load_tiny_imagenet()


# --- Digits, names, and the data set itself ------------------------------------------


@pytest.mark.parametrize("image_size", [8, 32])
def test_digits_are_repeated_pixels(image_size):
    from sklearn.datasets import load_digits

    dataset = datasets.load_digits(image_size)
    assert dataset.image_shape == (image_size, image_size, 3)
    assert dataset.train_images.shape[0] == 1437
    assert dataset.test_images.shape[0] == 360
    step = image_size // 8
    images = np.concatenate([dataset.train_images, dataset.test_images])
    small = images[:, ::step, ::step, 0]
    for y in range(image_size):
        for x in range(image_size):
            for channel in range(3):
                repeated = images[:, y, x, channel]
                np.testing.assert_array_equal(repeated, small[:, y // step, x // step])
    # Every original is there once, its greys 0..16 spread over 0..255.
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    greys = np.rint(small / 255 * 16)
    found = sorted((label, *g.ravel()) for label, g in zip(labels, greys))
    original = load_digits()
    expected = sorted(
        (label, *g.ravel()) for label, g in zip(original.target, original.images)
    )
    assert found == expected
    assert (small.min(), small.max()) == (0, 255)


def test_digits_split_is_stratified_and_fixed():
    np.random.seed(1)
    first = datasets.load("digits", "ignored")
    np.random.seed(2)
    second = datasets.load("digits")
    np.testing.assert_array_equal(first.test_images, second.test_images)
    train, test = np.bincount(first.train_labels), np.bincount(first.test_labels)
    np.testing.assert_allclose(test, (train + test) / 5, atol=1.0)


@pytest.mark.parametrize("image_size", [0, 4, 28, -8])
def test_digits_need_a_multiple_of_eight(image_size):
    with pytest.raises(ValueError, match="image_size: expected a positive multiple"):
        datasets.load_digits(image_size)


def test_unknown_name_lists_those_that_exist():
    with pytest.raises(ValueError, match="one of auto, cifar10, .* found 'mnist'"):
        datasets.load("mnist")


def small_dataset(**changes):
    rng = np.random.default_rng(0)
    fields = {
        "name": "random",
        "source": "a test",
        "train_images": rng.integers(0, 256, (2_500, 3, 2, 3), np.uint8),
        "train_labels": np.zeros(2_500, np.int32),
        "test_images": np.zeros((1, 3, 2, 3), np.uint8),
        "test_labels": np.zeros(1, np.int32),
        "num_classes": 1,
    }
    return ImageDataset(**{**fields, **changes})


def test_channel_statistics_are_those_of_all_training_images():
    dataset = small_dataset()
    mean, deviation = dataset.channel_statistics()
    assert mean.dtype == deviation.dtype == np.float32
    wide = dataset.train_images.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(deviation, wide.std(axis=(0, 1, 2)), rtol=1e-6)


def test_a_constant_channel_can_be_divided_by():
    images = np.full((2_500, 3, 2, 3), 7, np.uint8)
    images[0, 0, 0, 2] = 8
    mean, deviation = small_dataset(train_images=images).channel_statistics()
    np.testing.assert_array_equal(mean[:2], 7.0)
    np.testing.assert_array_equal(deviation[:2], 1.0)
    np.testing.assert_allclose(deviation[2], images[..., 2].std(), rtol=1e-3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"test_images": np.zeros((1, 3, 2, 3))}, "test: expected images uint8"),
        ({"test_images": np.zeros((1, 3, 2, 1), np.uint8)}, r"found uint8\[1, 3, 2, 1"),
        ({"test_images": np.zeros((1, 3, 3, 3), np.uint8)}, "images of one shape"),
        ({"test_images": np.zeros((0, 3, 2, 3), np.uint8)}, r"int32\[0\], one per im"),
        ({"train_labels": np.zeros(2_500, np.int64)}, "train: expected labels int32"),
        ({"train_labels": np.ones(2_500, np.int32)}, r"labels 0\.\.0, found 1\.\.1"),
    ],
)
def test_a_dataset_checks_its_arrays(changes, message):
    with pytest.raises(DatasetError, match=message):
        small_dataset(**changes)


def test_an_empty_split_is_refused():
    nothing = np.zeros((0, 3, 2, 3), np.uint8)
    with pytest.raises(DatasetError, match="expected at least one image"):
        small_dataset(test_images=nothing, test_labels=np.zeros(0, np.int32))


# --- Real data -----------------------------------------------------------------------


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


@pytest.mark.skipif(
    not (REAL_TINY / "tiny-imagenet-200").is_dir(),
    reason=f"no tiny-imagenet-200 in ${DATA_DIR_VARIABLE}",
)
def test_real_tiny_imagenet():
    dataset = datasets.load_tiny_imagenet(REAL_TINY)
    assert dataset.num_classes == 200
    for labels in (dataset.train_labels, dataset.test_labels):
        assert len(set(np.bincount(labels, minlength=200))) == 1
