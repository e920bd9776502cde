"""What layers compute in: float32, or bfloat16 where the processor has it.

Codes and 4-bit activations have few significant bits, and bfloat16's eight hold them;
sums are float32 in either case. Without instructions for it, bfloat16 is emulated and
slower than float32. A model of float weights is trained in float32 unless one asks for
less: that precision is what the others are compared with.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import tensorflow as tf

AUTO = "auto"

# Name -> Keras policy of the layers.
DTYPE_POLICIES: Mapping[str, str | None] = {
    "float32": None,
    "bfloat16": "mixed_bfloat16",
}
_CPU_INFO = pathlib.Path("/proc/cpuinfo")
_BFLOAT16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}


def resolve_compute(compute: str, is_quantized: bool) -> str:
    """Returns `compute` itself, or for "auto" what serves best on this machine.

    Args:
      compute: a name in `DTYPE_POLICIES`, or "auto".
      is_quantized: whether clients train codes and not float weights.

    Raises:
      ValueError: for any other name.
    """
    if compute == AUTO:
        return "bfloat16" if is_quantized and has_fast_bfloat16() else "float32"
    if compute not in DTYPE_POLICIES:
        names = ", ".join(sorted([AUTO, *DTYPE_POLICIES]))
        raise ValueError(f"compute has to be one of {names}; found {compute!r}.")
    return compute


def has_fast_bfloat16(cpu_info: pathlib.Path = _CPU_INFO) -> bool:
    """Returns whether the processor multiplies bfloat16 by instructions of its own.

    With a GPU in the machine it returns False: what that one does is not known here.

    Args:
      cpu_info: the kernel's list of processors; False where there is none.
    """
    if tf.config.list_physical_devices("GPU"):
        return False
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:
        return False
    flags = [
        line.split(":", 1)[1].split() for line in lines if line.startswith("flags")
    ]
    return bool(flags) and bool(_BFLOAT16_INSTRUCTIONS.intersection(flags[0]))
