"""Files that are written atomically."""

import os
import pathlib
from typing import Union

PathLike = Union[str, "os.PathLike[str]"]


def write_atomically(path: PathLike, content: bytes) -> None:
    """Writes a file so that readers see the old or the new content, never a part.

    A symbolic link at `path` is replaced, not followed.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(directory: pathlib.Path) -> None:
    """Removes what killed processes left of `write_atomically` in a directory."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)
