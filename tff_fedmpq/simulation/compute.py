"""Number format in which layers compute: float32, or bfloat16 where it is faster.

Codes and 4-bit activations have few significant bits, and bfloat16's eight hold them;
sums are float32 in either case. Without instructions for it, bfloat16 is emulated and
slower than float32. A float model is trained in float32 unless bfloat16 is requested.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

AUTO = "auto"

# Name -> Keras policy of the layers.
DTYPE_POLICIES: Mapping[str, str | None] = {
    "float32": None,
    "bfloat16": "mixed_bfloat16",
}
_CPU_INFO = pathlib.Path("/proc/cpuinfo")
_GPU_DRIVER = pathlib.Path("/proc/driver/nvidia")
_BFLOAT16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}


def resolve_compute(compute: str, is_quantized: bool) -> str:
    """Returns `compute` itself, or for "auto" the faster format on this machine.

    Args:
      compute: Name in `DTYPE_POLICIES`, or "auto".
      is_quantized: Whether clients train codes and not float weights.

    Raises:
      ValueError: for any other name.
    """
    if compute == AUTO:
        return "bfloat16" if is_quantized and has_fast_bfloat16() else "float32"
    if compute not in DTYPE_POLICIES:
        names = ", ".join(sorted([AUTO, *DTYPE_POLICIES]))
        raise ValueError(f"compute has to be one of {names}; found {compute!r}.")
    return compute


def has_fast_bfloat16(
    cpu_info: pathlib.Path = _CPU_INFO, gpu_driver: pathlib.Path = _GPU_DRIVER
) -> bool:
    """Returns whether the processor has instructions for bfloat16.

    Args:
      cpu_info: Kernel's list of processors; the result is False where it is missing.
      gpu_driver: File that exists where a GPU is used, whose speed is not known here:
        the result is False.
    """
    if gpu_driver.exists():
        return False
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:
        return False
    flags = [
        line.split(":", 1)[1].split() for line in lines if line.startswith("flags")
    ]
    return bool(flags) and bool(_BFLOAT16_INSTRUCTIONS.intersection(flags[0]))
