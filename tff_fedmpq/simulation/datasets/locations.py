"""Where the files of a data set are looked for.

The places, one after the other:

1. `data_dir`, where it is given: either the directory that contains the official
   folder (`cifar-10-batches-py`, ...) or that folder itself. What is not there is
   an error, nothing else is tried;
2. the directory named by the environment variable `TFF_FEDMPQ_DATA_DIR`;
3. `~/.keras/datasets`;
4. for the CIFARs, Keras' own download.

A folder that is found but damaged is always an error: no loader falls back from it
to other data.
"""

from __future__ import annotations

import os
import pathlib

from tff_fedmpq.simulation.datasets.image_dataset import (
    DatasetError,
    DatasetNotFoundError,
)
from tff_fedmpq.simulation.files import PathLike

DATA_DIR_VARIABLE = "TFF_FEDMPQ_DATA_DIR"


def keras_directory() -> pathlib.Path:
    """Returns the directory that Keras downloads data sets to."""
    return pathlib.Path("~/.keras/datasets").expanduser()


def _folder_in(place: pathlib.Path, folder: str, marker: str) -> pathlib.Path | None:
    """Returns the official folder in `place`, or `place` where it is that folder."""
    if (place / folder).is_dir():
        return (place / folder).absolute()
    if place.is_dir() and (place.name == folder or (place / marker).is_file()):
        return place.absolute()
    return None


def find_folder(
    folder: str, marker: str, data_dir: PathLike | None
) -> pathlib.Path | None:
    """Finds the directory of a data set, in the order of the module's docstring.

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
    places = [keras_directory()]
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
