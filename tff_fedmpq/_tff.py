"""TensorFlow Federated, an optional dependency, checked before it is imported.

All modules of this package import it by `from tff_fedmpq._tff import tff`.
"""

import atexit
import importlib.util
from importlib import metadata

_MODULE = "tensorflow_federated"
_RELEASE = "0.87"

_FIX = (
    "`python -m tff_fedmpq.doctor` prints the line that installs what is missing. In a "
    "clone of tff_fedmpq, on Linux x86_64, `uv sync --extra federated` or `pip install "
    "--no-deps --ignore-requires-python -r requirements.txt` installs everything. "
    "Plain `pip install tensorflow-federated` cannot work, because it pins a jaxlib "
    "that the package index no longer has.\n"
    "The subpackages quantization, keras and allocation work without it."
)


def require_tff() -> None:
    """Raises ImportError unless TensorFlow Federated 0.87 is installed.

    Reads metadata only: importing TFF takes seconds and can fail obscurely.
    """
    try:
        found = metadata.version("tensorflow-federated")
    except metadata.PackageNotFoundError:
        found = None
    # The metadata may outlive the module, and a test may block the module alone.
    if found is None or importlib.util.find_spec(_MODULE) is None:
        problem = "it is not installed"
    elif found.split(".")[:2] != _RELEASE.split("."):
        problem = f"found {found}"
    else:
        return
    raise ImportError(
        f"tff_fedmpq expects TensorFlow Federated {_RELEASE}.x, but {problem}. {_FIX}",
        name=_MODULE,
    )


require_tff()

import tensorflow_federated as tff  # noqa: E402


class _EndingContext(tff.framework.SyncContext):
    """Takes the default's place; starts no thread, which Python 3.12 would refuse."""

    def invoke(self, comp: object, arg: object) -> None:
        raise RuntimeError("Python is ending: no computation can run.")


def _release_default_context() -> None:
    """Frees TFF's own default context while its modules are still there.

    Left to the end of the interpreter, its destructor fails and prints a traceback.
    """
    tff.framework.set_default_context(_EndingContext())


atexit.register(_release_default_context)
