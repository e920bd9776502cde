"""Makes the modules of `examples/`, which is no package, importable."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))
