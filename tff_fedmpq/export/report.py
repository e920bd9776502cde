"""What a writer of files for devices stored, and what it measured."""

from __future__ import annotations

import dataclasses
import pathlib

import tensorflow as tf

from tff_fedmpq.files import PathLike
from tff_fedmpq.keras.model_summary import summary
from tff_fedmpq.keras.quantized_kernel import quantized_kernels


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """A file and its sizes in bytes; its string is one line.

    Attributes:
      path: The file.
      num_bytes: Its size.
      code_bytes: Sum of bits of all codes, divided by 8.
      other_bytes: Scales and all weights in float32.
      largest_difference: Between outputs of the file in the device's runtime and those
        of Keras; None where the file was compared bit by bit.
      typical_difference: The median over examples of the largest one of an example.
      float_kernels: Kernels that the file stores in float32.
    """

    path: pathlib.Path
    num_bytes: int
    code_bytes: float
    other_bytes: int
    largest_difference: float | None = None
    typical_difference: float | None = None
    float_kernels: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = (
            f"{self.path}: {self.num_bytes:,} bytes (codes {self.code_bytes:,.0f}, "
            f"scales and floats {self.other_bytes:,})"
        )
        if self.largest_difference is not None:
            text += (
                f"; difference from Keras {self.largest_difference:.1e}, typically "
                f"{self.typical_difference:.1e}"
            )
        if self.float_kernels:
            text += f"; in float32: {', '.join(self.float_kernels)}"
        return text


def report_of(model: tf.keras.Model, path: PathLike, **measured) -> ExportReport:
    """Returns the report of a file that holds a model."""
    stored = summary(model)
    kernels = quantized_kernels(model)
    bits = sum(kernel.size * int(kernel.bit_width.numpy()) for kernel in kernels)
    packed = sum(-(-row.num_weights * row.bit_width // 8) for row in stored.layers)
    return ExportReport(
        pathlib.Path(path),
        pathlib.Path(path).stat().st_size,
        bits / 8,
        stored.num_bytes - packed,
        **measured,
    )
