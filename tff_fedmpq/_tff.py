"""TensorFlow Federated, checked before it is imported.

    from tff_fedmpq._tff import tff

is how all modules of this package import it. TFF is an optional dependency:
quantization, Keras layers and allocation work without it. TFF 0.87.0 pins
`jaxlib==0.4.14`, which the package index no longer has, so `pip install
tensorflow-federated` fails with a message about jaxlib. The error raised here names the
routes that work.
"""

from __future__ import annotations

import atexit
import importlib.util
from importlib import metadata

_DISTRIBUTION = "tensorflow-federated"
_MODULE = "tensorflow_federated"
_RELEASE = "0.87"

_FIX = (
    "On Linux x86_64 with Python 3.9 to 3.11, in a clone of tff_fedmpq, run "
    "`uv sync --extra federated` or `pip install --no-deps -r requirements.txt`; "
    "plain `pip install tensorflow-federated` cannot work, because it pins a jaxlib "
    "that the package index no longer has.\n"
    "tff_fedmpq.quantization, tff_fedmpq.keras and tff_fedmpq.allocation work "
    "without it."
)


def require_tff() -> None:
    """Checks that the release of TensorFlow Federated in use is installed.

    Only installed metadata are read: importing TFF takes seconds and can fail with an
    obscure message.

    Raises:
      ImportError: TFF is missing or is not of the 0.87 series.
    """
    try:
        found = metadata.version(_DISTRIBUTION)
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


def _release_default_context() -> None:
    """Frees TFF's own default context while its modules are still there.

    Left to the end of the interpreter, its destructor fails and prints a traceback,
    below whatever was the program's last word.
    """
    factory = tff.framework.ResourceManagingExecutorFactory(lambda _: None)
    tff.framework.set_default_context(tff.framework.SyncExecutionContext(factory))


atexit.register(_release_default_context)


__all__ = ["tff"]
