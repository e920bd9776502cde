"""Number format in which layers compute: float32, or bfloat16 where it is faster.

Codes and 4-bit activations have few significant bits, and bfloat16's eight hold them;
sums are float32 in either case. Without instructions for it, bfloat16 is emulated and
slower than float32. A float model is trained in float32 unless bfloat16 is requested.
"""

from __future__ import annotations

from collections.abc import Mapping

from tff_fedmpq.lookup import check_name
from tff_fedmpq.processor import has_fast_bfloat16

AUTO = "auto"
# Name -> Keras policy of the layers.
DTYPE_POLICIES: Mapping[str, str | None] = {
    "float32": None,
    "bfloat16": "mixed_bfloat16",
}


def resolve_compute(compute: str, is_quantized: bool) -> str:
    """Returns a name in `DTYPE_POLICIES`: for "auto", the faster on this machine.

    `is_quantized` says whether clients train codes. Other names raise ValueError.
    """
    check_name(compute, {AUTO: None, **DTYPE_POLICIES}, "compute")
    if compute != AUTO:
        return compute
    return "bfloat16" if is_quantized and has_fast_bfloat16() else "float32"
