"""Files of a run in its output directory.

config.json       settings; a directory serves one configuration only
data.json         digest of images and labels
partition.json    training images of each client
rounds/           record of each round
checkpoints/      latest states
metrics.csv, tensorboard/   numbers of each round, by TFF's release managers
clients/          images of each client, until the end (`client_data`)
workers.jsonl    with workers: who did how many clients of a round, seconds, failures
worker.log, progress.log    while it runs, or when it fails
result.json, curves.png     at the end
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tff_fedmpq.files import PathLike, write_atomically
from tff_fedmpq.simulation.config import ExperimentConfig
from tff_fedmpq.simulation.data import ImageDataset
from tff_fedmpq.simulation.data.partitions import Partition

_DISK_ERRORS = re.compile(
    "|".join(
        os.strerror(number)
        for number in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
            errno.EROFS,
            errno.EACCES,
            errno.EIO,
        )
    )
)


class OutputDirectoryError(ValueError):
    """The output directory cannot be used for this run."""


def check_output_dir(
    output_dir: PathLike, config: ExperimentConfig, resume: bool
) -> pathlib.Path:
    """Returns the path of a run's directory, or raises `OutputDirectoryError`.

    It may be new or empty, or with `resume` hold a run of the same configuration.
    """
    output_dir = pathlib.Path(output_dir).expanduser()
    config_path = output_dir / "config.json"
    problem = ""
    if output_dir.exists() and not output_dir.is_dir():
        problem = "is no directory; choose another"
    elif links := _links(output_dir):
        problem = f"has symbolic links, {links}: writing would change other files"
    elif not config_path.exists():
        if output_dir.exists() and any(output_dir.iterdir()):
            problem = "holds files that are not of a run; choose another"
    elif not resume:
        problem = "holds a run already: continue it with --resume, or choose another"
    else:
        present, wanted = read_json(config_path), config.as_dict()
        differing = "; ".join(
            f"{name}: {present.get(name)!r} there, {wanted[name]!r} requested"
            for name in sorted(wanted)
            if present.get(name) != wanted[name]
        )
        if differing:
            problem = f"holds a run of another configuration ({differing})"
    if problem:
        raise OutputDirectoryError(f"{output_dir} {problem}.")
    return output_dir


def _links(directory: pathlib.Path) -> list[str]:
    """Returns the names of the symbolic links in a directory that may not exist."""
    paths = directory.iterdir() if directory.exists() else ()
    return sorted(path.name for path in paths if path.is_symlink())


def make_directory(path: pathlib.Path) -> None:
    """Makes an output directory, or raises `OutputDirectoryError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputDirectoryError(f"Cannot make {path}: {error}.") from None


@contextlib.contextmanager
def lock_directory(path: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out of a directory, or raises `OutputDirectoryError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise OutputDirectoryError(
            f"{path} is in use by another process; wait for its end, or choose another."
        ) from None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explain_disk_errors(path: pathlib.Path) -> Iterator[None]:
    """Makes `OutputDirectoryError` of what a full or read-only disk raises.

    That is Python's, TensorFlow's or the worker's; they share the system's words.
    """
    try:
        yield
    except Exception as error:
        if not (found := _DISK_ERRORS.search(str(error))):
            raise
        raise OutputDirectoryError(
            f"Cannot write to {path}: {found[0]}. Make room, or choose another "
            "directory; then continue the run with --resume."
        ) from error


def save_partition(partition: Partition, path: pathlib.Path) -> None:
    """Saves a run's partition; another one there is an `OutputDirectoryError`."""
    if path.exists() and Partition.load(path) != partition:
        raise OutputDirectoryError(
            f"{path} is another partition, perhaps of another data set than "
            f"{partition.dataset}; continue the run with the data that it began with."
        )
    partition.save(path)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a file of `write_json`; a damaged one is an `OutputDirectoryError`."""
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise OutputDirectoryError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise OutputDirectoryError(f"{path} is damaged: it holds {content!r}.")
    return content


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all; ValueError for NaN and infinity."""
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def append_workers(output_dir: pathlib.Path, number: int, report: Any) -> None:
    """Appends what workers did in a round to `workers.jsonl`."""
    with open(output_dir / "workers.jsonl", "a") as file:
        file.write(json.dumps({"round": number, **report}) + "\n")


def read_result(path: pathlib.Path) -> dict[str, Any]:
    """Reads `result.json`; one that was changed is an `OutputDirectoryError`."""
    result = read_json(path)
    if result.pop("checksum", None) != _checksum(result):
        raise OutputDirectoryError(f"{path} is damaged: its checksum does not fit.")
    return result


def write_result(path: pathlib.Path, result: Mapping[str, Any]) -> None:
    """Writes `result.json` with a checksum of its content."""
    write_json(path, {**result, "checksum": _checksum(result)})


def check_data(path: pathlib.Path, dataset: ImageDataset) -> None:
    """Saves a digest of a run's images and labels; `OutputDirectoryError` for others.

    Without it, a run that continues with other data would not notice.
    """
    digest = hashlib.sha256()
    for part in ("train_images", "train_labels", "test_images", "test_labels"):
        digest.update(np.ascontiguousarray(getattr(dataset, part)).data)
    if not path.exists():
        write_json(path, {"sha256": digest.hexdigest()})
    elif read_json(path).get("sha256") != digest.hexdigest():
        raise OutputDirectoryError(
            f"{path} is of other data than {dataset.source} now has; continue the run "
            "with the data that it began with."
        )


def _checksum(result: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()
