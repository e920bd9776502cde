"""Image data sets: CIFAR-10, CIFAR-100, Tiny-ImageNet and embedded digits.

Every loader returns an `ImageDataset` in one format (uint8 RGB images, int32
labels) and knows where it came from.  The files of the first three are looked for
in, one after the other,

1. `data_dir`, where it is given: either the directory that contains the official
   folder (`cifar-10-batches-py`, ...) or that folder itself.  What is not there is
   an error, nothing else is tried;
2. the directory named by the environment variable `TFF_FEDMPQ_DATA_DIR`;
3. `~/.keras/datasets`;
4. for the CIFARs, Keras' own download.

A folder that is found but damaged is always an error: no loader falls back from it
to other data.  The CIFARs' files are pickles, which can run any code when read;
they are read with an unpickler that knows NumPy arrays and nothing else.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pathlib
import pickle
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, Union

import numpy as np
import tensorflow as tf
from absl import logging

DATA_DIR_VARIABLE = "TFF_FEDMPQ_DATA_DIR"

PathLike = Union[str, "os.PathLike[str]"]

# Images that are converted to wide integers at a time by `channel_statistics`.
_CHUNK = 1024
# How long to wait for a sign of life from a download server.
_CONNECT_SECONDS = 10.0


class DatasetError(ValueError):
    """A data set is damaged, or is not what it is said to be."""


class DatasetNotFoundError(DatasetError):
    """A data set is in none of the places where it was looked for."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled images, split into a training and a test set.

    Attributes:
      name: What `load` calls it, such as `"cifar10"`.
      source: Where it came from, for people: an absolute directory, "keras
        download" or "scikit-learn digits (embedded)".
      train_images: uint8[n, h, w, 3], 0..255.
      train_labels: int32[n], 0..num_classes-1.
      test_images: uint8[m, h, w, 3], 0..255.
      test_labels: int32[m], 0..num_classes-1.
      num_classes: The number of classes.
    """

    name: str
    source: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int

    def __post_init__(self) -> None:
        where = f"{self.name} ({self.source})"
        _check_split(
            f"{where}, train", self.train_images, self.train_labels, self.num_classes
        )
        _check_split(
            f"{where}, test", self.test_images, self.test_labels, self.num_classes
        )
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise DatasetError(
                f"{where}: expected training and test images of one shape, found "
                f"{self.train_images.shape[1:]} and {self.test_images.shape[1:]}; "
                "resize one of them."
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        height, width, channels = self.train_images.shape[1:]
        return height, width, channels

    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each channel of the training images.

        The sums are exact integers, taken over a chunk of images at a time: no
        wider copy of all images is ever in memory.

        Returns:
          Mean and standard deviation, both float32[3], in 0..255 units.  The
          deviation of a channel that never changes is given as 1, so that images
          can be divided by it.
        """
        total = np.zeros(self.train_images.shape[-1], np.int64)
        squares = np.zeros_like(total)
        for start in range(0, len(self.train_images), _CHUNK):
            chunk = self.train_images[start : start + _CHUNK].astype(np.int32)
            total += chunk.sum(axis=(0, 1, 2), dtype=np.int64)
            squares += np.square(chunk).sum(axis=(0, 1, 2), dtype=np.int64)
        count = self.train_images.size // self.train_images.shape[-1]
        mean = total / count
        variance = np.maximum(squares / count - np.square(mean), 0.0)
        deviation = np.where(variance > 0.0, np.sqrt(variance), 1.0)
        return mean.astype(np.float32), deviation.astype(np.float32)


def _check_split(
    where: str, images: np.ndarray, labels: np.ndarray, num_classes: int
) -> None:
    """Raises unless images are uint8[n, h, w, 3], labels int32[n], and n > 0."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise DatasetError(
            f"{where}: expected images uint8[n, h, w, 3], found "
            f"{images.dtype}{list(images.shape)}; convert them first."
        )
    if labels.dtype != np.int32 or labels.shape != images.shape[:1]:
        raise DatasetError(
            f"{where}: expected labels int32[{len(images)}], one per image, found "
            f"{labels.dtype}{list(labels.shape)}; convert them first."
        )
    if not images.size:
        raise DatasetError(f"{where}: expected at least one image, found none.")
    _check_label_range(where, labels, num_classes, "correct the labels")


def _check_label_range(
    where: object, labels: np.ndarray, num_classes: int, mend: str
) -> None:
    lowest, highest = labels.min(), labels.max()
    if lowest < 0 or highest >= num_classes:
        raise DatasetError(
            f"{where}: expected labels 0..{num_classes - 1}, found "
            f"{lowest}..{highest}; {mend}."
        )


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


# --- Finding the files --------------------------------------------------------------


def _keras_directory() -> pathlib.Path:
    return pathlib.Path("~/.keras/datasets").expanduser()


def _folder_in(place: pathlib.Path, folder: str, marker: str) -> pathlib.Path | None:
    """The official folder in `place`, or `place` where it is that folder itself."""
    if (place / folder).is_dir():
        return (place / folder).absolute()
    if place.is_dir() and (place.name == folder or (place / marker).is_file()):
        return place.absolute()
    return None


def _find(folder: str, marker: str, data_dir: PathLike | None) -> pathlib.Path | None:
    """The directory of a data set, in the order of the module's docstring.

    Args:
      folder: Name of the data set's official folder.
      marker: A file that tells this folder, whatever it may be called.
      data_dir: The caller's directory; None or "" where there is none.

    Returns:
      The absolute directory, or None where nothing was found and none was given.

    Raises:
      DatasetNotFoundError: `data_dir` has no such folder.
      DatasetError: The environment variable names a directory that does not exist.
    """
    if data_dir:
        found = _folder_in(pathlib.Path(data_dir).expanduser(), folder, marker)
        if found is None:
            raise DatasetNotFoundError(
                f"{os.fspath(data_dir)}: expected the folder {folder} in it, found "
                "none; give the directory that contains it, or leave data_dir out."
            )
        return found
    places = [_keras_directory()]
    if os.environ.get(DATA_DIR_VARIABLE):
        named = pathlib.Path(os.environ[DATA_DIR_VARIABLE]).expanduser()
        if not named.is_dir():
            raise DatasetError(
                f"{DATA_DIR_VARIABLE}={named}: expected a directory, found none; "
                "correct the environment variable or unset it."
            )
        places.insert(0, named)
    candidates = (_folder_in(place, folder, marker) for place in places)
    return next((found for found in candidates if found is not None), None)


# --- CIFAR --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Cifar:
    """The official "python version" of a CIFAR: pairs of file name and image count."""

    name: str
    title: str
    folder: str
    train_files: tuple[tuple[str, int], ...]
    test_file: tuple[str, int]
    label_key: str
    num_classes: int
    url: str


_CIFAR10 = _Cifar(
    name="cifar10",
    title="CIFAR-10",
    folder="cifar-10-batches-py",
    train_files=tuple((f"data_batch_{i}", 10_000) for i in range(1, 6)),
    test_file=("test_batch", 10_000),
    label_key="labels",
    num_classes=10,
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
_CIFAR100 = _Cifar(
    name="cifar100",
    title="CIFAR-100",
    folder="cifar-100-python",
    train_files=(("train", 50_000),),
    test_file=("test", 10_000),
    label_key="fine_labels",
    num_classes=100,
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
)

# NumPy's array constructor is private and has moved between NumPy's versions; an
# array's own reduction names the one of the version that is installed.
_RECONSTRUCT: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
_PICKLE_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads Python's plain values and NumPy arrays; refuses every other object."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _PICKLE_GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no official file does, refused"
            ) from None


def load_cifar10(data_dir: PathLike | None = None) -> ImageDataset:
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32, 10 classes.

    Args:
      data_dir: See the module's docstring.

    Raises:
      DatasetNotFoundError: It was not found and could not be downloaded.
      DatasetError: It was found and is damaged.
    """
    return _load_cifar(_CIFAR10, data_dir)


def load_cifar100(data_dir: PathLike | None = None) -> ImageDataset:
    """CIFAR-100 with its 100 fine labels; otherwise as `load_cifar10`."""
    return _load_cifar(_CIFAR100, data_dir)


def _load_cifar(cifar: _Cifar, data_dir: PathLike | None) -> ImageDataset:
    folder = _find(cifar.folder, cifar.test_file[0], data_dir)
    if folder is None:
        return _download_cifar(cifar)
    parts = [_read_cifar(folder / name, n, cifar) for name, n in cifar.train_files]
    test_images, test_labels = _read_cifar(
        folder / cifar.test_file[0], cifar.test_file[1], cifar
    )
    return ImageDataset(
        name=cifar.name,
        source=str(folder),
        train_images=np.concatenate([images for images, _ in parts]),
        train_labels=np.concatenate([labels for _, labels in parts]),
        test_images=test_images,
        test_labels=test_labels,
        num_classes=cifar.num_classes,
    )


def _read_cifar(
    path: pathlib.Path, count: int, cifar: _Cifar
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8[count, 32, 32, 3] and labels int32[count] of one official file."""
    mend = f"unpack {cifar.url} again, or give another data_dir"
    data, labels = _unpickle_cifar(path, cifar, mend)
    if data.dtype != np.uint8 or data.shape != (count, 3 * 32 * 32):
        raise DatasetError(
            f"{path}: expected images uint8[{count}, 3072], found "
            f"{data.dtype}{list(data.shape)}; {mend}."
        )
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise DatasetError(
            f"{path}: expected {count} integer labels, found "
            f"{labels.dtype}{list(labels.shape)}; {mend}."
        )
    _check_label_range(path, labels, cifar.num_classes, mend)
    images = data.reshape(count, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.int32)


def _unpickle_cifar(
    path: pathlib.Path, cifar: _Cifar, mend: str
) -> tuple[np.ndarray, np.ndarray]:
    """The pixels and labels of a file as they stand in it, unchecked."""
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
        # Keys are bytes in the official files, which Python 2 wrote, and strings in
        # files of the same layout written since.
        fields = {os.fsdecode(key): value for key, value in content.items()}
        return np.asarray(fields["data"]), np.asarray(fields[cifar.label_key])
    except FileNotFoundError:
        raise DatasetError(
            f"{path}: expected a file of {cifar.title}, found none; {mend}."
        ) from None
    except Exception as error:
        # A damaged pickle can raise nearly anything, a MemoryError included.
        raise DatasetError(
            f"{path}: not a readable file of {cifar.title} ({_one_line(error)}); "
            f"{mend}."
        ) from error


def _download_cifar(cifar: _Cifar) -> ImageDataset:
    """Downloads with Keras, after a short look whether the server answers at all."""
    archive = _keras_directory() / f"{cifar.folder}.tar.gz"
    # With the archive at hand Keras needs no network.
    obstacle = None if archive.is_file() else _connection_obstacle(cifar.url)
    if obstacle is None:
        logging.info("Downloading %s with Keras.", cifar.title)
        try:
            train, test = getattr(tf.keras.datasets, cifar.name).load_data()
        except Exception as error:  # Keras raises a bare Exception.
            obstacle = _one_line(error)
    if obstacle is not None:
        raise DatasetNotFoundError(
            f"{cifar.title} was found neither in ${DATA_DIR_VARIABLE} nor in "
            f"{_keras_directory()}, and its download failed ({obstacle}); unpack "
            f"{cifar.url} into a directory and give that as data_dir."
        )
    return ImageDataset(
        name=cifar.name,
        source="keras download",
        train_images=train[0],
        train_labels=train[1].reshape(-1).astype(np.int32),
        test_images=test[0],
        test_labels=test[1].reshape(-1).astype(np.int32),
        num_classes=cifar.num_classes,
    )


def _connection_obstacle(url: str) -> str | None:
    """Why `url` cannot be reached, or None where its server answers.

    Keras downloads without any time limit.  The look happens in a thread of its own
    because looking up a name has no time limit either.
    """
    answers: list[str | None] = []

    def knock() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=_CONNECT_SECONDS).close()
        except urllib.error.HTTPError:
            answers.append(None)  # Somebody answers; Keras will say what is wrong.
        except (OSError, ValueError) as error:
            answers.append(f"cannot reach {url}: {error}")
        else:
            answers.append(None)

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    return answers[0] if answers else f"no answer from {url}"


# --- Tiny-ImageNet ------------------------------------------------------------------

_TINY_FOLDER = "tiny-imagenet-200"
_TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_TINY_SIZE = 64
_TINY_MEND = f"unpack {_TINY_URL} again, or give another data_dir"


def load_tiny_imagenet(data_dir: PathLike | None = None) -> ImageDataset:
    """Tiny-ImageNet in its official layout, whole or any subset of its images.

    The labels count the lines of `wnids.txt`.  The test set is the official
    validation set, whose labels are public; the official test set has none.

    Args:
      data_dir: See the module's docstring.

    Raises:
      DatasetNotFoundError: It was not found; there is no automatic download.
      DatasetError: It was found and is damaged.
    """
    folder = _find(_TINY_FOLDER, "wnids.txt", data_dir)
    if folder is None:
        raise DatasetNotFoundError(
            f"Tiny-ImageNet was found neither in ${DATA_DIR_VARIABLE} nor in "
            f"{_keras_directory()}; unpack {_TINY_URL} into a directory and give that "
            "as data_dir."
        )
    wnids = _read_lines(folder / "wnids.txt")
    train_paths, train_labels = _tiny_train_files(folder / "train", wnids)
    test_paths, test_labels = _tiny_test_files(folder / "val", wnids)
    return ImageDataset(
        name="tiny_imagenet",
        source=str(folder),
        train_images=_decode_images(train_paths),
        train_labels=np.asarray(train_labels, np.int32),
        test_images=_decode_images(test_paths),
        test_labels=np.asarray(test_labels, np.int32),
        num_classes=len(wnids),
    )


def _read_lines(path: pathlib.Path) -> list[str]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); {_TINY_MEND}.") from None
    return [line for line in lines if line.strip()]


def _tiny_train_files(
    folder: pathlib.Path, wnids: Sequence[str]
) -> tuple[list[pathlib.Path], list[int]]:
    """Files `train/<wnid>/images/*.JPEG` in the order of classes, then of names."""
    present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if present != set(wnids) or len(wnids) != len(present):
        raise DatasetError(
            f"{folder}: expected one folder for each of the {len(wnids)} lines of "
            f"wnids.txt, found {len(present & set(wnids))} of them and "
            f"{len(present - set(wnids))} others; {_TINY_MEND}."
        )
    classes = [sorted((folder / wnid / "images").glob("*.JPEG")) for wnid in wnids]
    # All classes are of one size, in the official data and in its subsets alike, so
    # that a smaller one was lost on the way.
    expected = max(len(paths) for paths in classes)
    for wnid, paths in zip(wnids, classes):
        if len(paths) != expected or not paths:
            raise DatasetError(
                f"{folder / wnid / 'images'}: expected {expected or 'some'} images as "
                f"in the other classes, found {len(paths)}; {_TINY_MEND}."
            )
    labels = [label for label, paths in enumerate(classes) for _ in paths]
    return [path for paths in classes for path in paths], labels


def _tiny_test_files(
    folder: pathlib.Path, wnids: Sequence[str]
) -> tuple[list[pathlib.Path], list[int]]:
    """Files and labels listed in `val/val_annotations.txt`, in its order."""
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    annotations = folder / "val_annotations.txt"
    paths, labels = [], []
    for number, line in enumerate(_read_lines(annotations), start=1):
        name, *rest = line.split("\t")
        if not rest or rest[0] not in label_of:
            raise DatasetError(
                f"{annotations}, line {number}: expected an image and a class of "
                f"wnids.txt, found {line[:60]!r}; {_TINY_MEND}."
            )
        paths.append(folder / "images" / name)
        labels.append(label_of[rest[0]])
    return paths, labels


def _decode_images(paths: Sequence[pathlib.Path]) -> np.ndarray:
    """Decodes files to uint8[n, 64, 64, 3]; greyscale images get three channels."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "Tiny-ImageNet's JPEG files need Pillow; install it: pip install pillow."
        ) from error
    images = np.empty((len(paths), _TINY_SIZE, _TINY_SIZE, 3), np.uint8)

    def decode(index: int) -> None:
        try:
            with Image.open(paths[index]) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise DatasetError(
                f"{paths[index]}: not a readable image ({_one_line(error)}); "
                f"{_TINY_MEND}."
            ) from error
        if pixels.shape != images.shape[1:]:
            raise DatasetError(
                f"{paths[index]}: expected {_TINY_SIZE}x{_TINY_SIZE} pixels, found "
                f"{pixels.shape[1]}x{pixels.shape[0]}; {_TINY_MEND}."
            )
        images[index] = pixels

    with concurrent.futures.ThreadPoolExecutor() as pool:
        for _ in pool.map(decode, range(len(paths))):
            pass
    return images


# --- Digits -------------------------------------------------------------------------


def load_digits(image_size: int = 32) -> ImageDataset:
    """scikit-learn's 1,797 handwritten digits of 8x8, brought to a model's input.

    Grey values 0..16 become 0..255, every pixel is repeated in both directions, and
    all three channels are the same.  Every fifth image, counted within each class in
    scikit-learn's order, is a test image: 1,437 and 360, the same on every machine.

    Args:
      image_size: Height and width in pixels, a multiple of 8.

    Raises:
      ValueError: `image_size` is not a positive multiple of 8.
    """
    if image_size < 8 or image_size % 8:
        raise ValueError(
            f"image_size: expected a positive multiple of 8, found {image_size}; the "
            "digits are 8x8 and their pixels are repeated whole."
        )
    from sklearn import datasets as sklearn_datasets

    digits = sklearn_datasets.load_digits()
    grey = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    repeats = image_size // 8
    large = grey.repeat(repeats, axis=1).repeat(repeats, axis=2)
    images = np.repeat(large[..., np.newaxis], 3, axis=-1)
    labels = digits.target.astype(np.int32)
    is_test = np.zeros(len(labels), bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    return ImageDataset(
        name="digits",
        source="scikit-learn digits (embedded)",
        train_images=images[~is_test],
        train_labels=labels[~is_test],
        test_images=images[is_test],
        test_labels=labels[is_test],
        num_classes=10,
    )


# --- By name ------------------------------------------------------------------------


def _load_embedded(data_dir: PathLike | None) -> ImageDataset:
    del data_dir  # The digits come with scikit-learn.
    return load_digits()


def _load_auto(data_dir: PathLike | None) -> ImageDataset:
    """CIFAR-10, or the digits where it is nowhere and none was asked for."""
    try:
        return load_cifar10(data_dir)
    except DatasetNotFoundError as error:
        if data_dir:
            raise
        logging.warning(
            "USING DIGITS INSTEAD OF CIFAR-10, results are not comparable: %s", error
        )
        return load_digits()


LOADERS: dict[str, Callable[[PathLike | None], ImageDataset]] = {
    "auto": _load_auto,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "digits": _load_embedded,
    "tiny_imagenet": load_tiny_imagenet,
}


def load(name: str, data_dir: PathLike | None = None) -> ImageDataset:
    """Loads a data set by its name.

    Args:
      name: A key of `LOADERS`.  "auto" is CIFAR-10 where it is found or can be
        downloaded, else the digits with a loud warning.
      data_dir: See the module's docstring; the digits need none.

    Raises:
      ValueError: There is no data set of this name.
      DatasetError: It was not found, or is damaged.
    """
    if name not in LOADERS:
        raise ValueError(
            f"dataset: expected one of {', '.join(sorted(LOADERS))}, found {name!r}."
        )
    return LOADERS[name](data_dir)
