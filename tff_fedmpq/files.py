"""Files that are written atomically."""

import os
import pathlib
from typing import Union

PathLike = Union[str, "os.PathLike[str]"]


def write_atomically(path: PathLike, content: bytes) -> None:
    """Writes a file so that readers see the old or the new content, never a part."""
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
