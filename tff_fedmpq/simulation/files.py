"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import pathlib
from typing import Union

PathLike = Union[str, "os.PathLike[str]"]


def write_atomically(path: PathLike, content: bytes) -> None:
    """Writes a file so that readers see all of it or what was there before.

    Args:
      path: Of the file, in a directory that exists.
      content: All of the file.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
