"""The processor, and the TensorFlow settings that make it fast.

TensorFlow reads `TF_ENABLE_ONEDNN_OPTS` once, when it is imported. By itself it uses
oneDNN only on processors with AVX512-VNNI or newer instructions; with AVX2 alone,
oneDNN makes convolutions faster too. It sums in another order: the same processor gives
the same numbers again, another may not.
"""

from __future__ import annotations

import os
import pathlib
import platform
import sys

from absl import logging

ONEDNN_VARIABLE = "TF_ENABLE_ONEDNN_OPTS"

_CPU_INFO = pathlib.Path("/proc/cpuinfo")
_GPU_DRIVER = pathlib.Path("/proc/driver/nvidia")
_BFLOAT16_FEATURES = {"avx512_bf16", "amx_bf16"}
# With any of these, TensorFlow 2.14 uses oneDNN without being told.
_ONEDNN_BY_ITSELF = {"avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile"}


def processor_name(cpu_info: pathlib.Path = _CPU_INFO) -> str:
    """Returns the processor's name as Linux reports it."""
    return _first("model name", cpu_info) or platform.processor() or "unknown"


def processor_features(cpu_info: pathlib.Path = _CPU_INFO) -> frozenset[str]:
    """Returns the processor's instruction sets; empty where Linux reports none."""
    return frozenset(_first("flags", cpu_info).split())


def has_fast_bfloat16(
    features: frozenset[str] | None = None, gpu_driver: pathlib.Path = _GPU_DRIVER
) -> bool:
    """Returns whether the processor computes fast in bfloat16, and no GPU is used.

    Without oneDNN, bfloat16 takes several times as long as float32.
    """
    features = processor_features() if features is None else features
    has_onednn = os.environ.get(ONEDNN_VARIABLE) != "0"
    is_fast = bool(features & _BFLOAT16_FEATURES) and has_onednn
    return is_fast and not gpu_driver.exists()


def onednn_environment(features: frozenset[str] | None = None) -> dict[str, str]:
    """Returns the variable that turns oneDNN on, {} where it would not be faster."""
    features = processor_features() if features is None else features
    return {ONEDNN_VARIABLE: "1"} if features & {"avx2", "avx512f"} else {}


def enable_onednn() -> None:
    """Lets TensorFlow use oneDNN where that is faster, unless the user set otherwise.

    Where TensorFlow is imported already, the log says what to do.
    """
    if ONEDNN_VARIABLE in os.environ or not onednn_environment():
        return
    if "tensorflow" not in sys.modules:
        os.environ.update(onednn_environment())
    elif not processor_features() & _ONEDNN_BY_ITSELF:
        logging.info(
            "TensorFlow was imported before tff_fedmpq and does not use oneDNN. Import "
            "tff_fedmpq first, or set %s=1: convolutions are faster on this processor.",
            ONEDNN_VARIABLE,
        )


def onednn_setting() -> str:
    """Returns "on", "off", or "TensorFlow's default", for records of a run."""
    settings = {"1": "on", "0": "off"}
    return settings.get(os.environ.get(ONEDNN_VARIABLE, ""), "TensorFlow's default")


def _first(key: str, cpu_info: pathlib.Path) -> str:
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:
        return ""
    found = (line.split(":", 1)[1] for line in lines if line.split("\t")[0] == key)
    return next(found, "").strip()
