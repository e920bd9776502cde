"""Summaries of quantized models: bits, bytes, operations and energy per layer."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tff_fedmpq.keras.inference_cost import energy, macs_by_kernel
from tff_fedmpq.keras.quantized_kernel import quantized_kernels
from tff_fedmpq.quantization.packing import packed_size

_FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One row of a summary.

    Attributes:
      name: Name of layer and kernel, or of a group of variables.
      num_weights: Number of weights.
      bit_width: Bits per weight.
      num_bytes: Stored size: packed codes and float32 scales, or float32 weights.
      macs: Multiply-accumulates with the kernel in one inference.
    """

    name: str
    num_weights: int
    bit_width: int
    num_bytes: int
    macs: int = 0

    @property
    def compression(self) -> float:
        """Size in float32 divided by the stored size."""
        return self.num_weights * _FLOAT_BYTES / max(self.num_bytes, 1)

    @property
    def nanojoules(self) -> float:
        """Estimated energy of one inference; see `keras.inference_cost`."""
        return energy(self.macs, self.num_weights, self.bit_width) if self.macs else 0.0


@dataclasses.dataclass(frozen=True)
class ModelSummary:
    """Summary of a model; its string is a table.

    Attributes:
      layers: Rows of the quantized layers, in the order of the model.
      float_parameters: Row of all weights that are stored in float32.
    """

    layers: tuple[LayerSummary, ...]
    float_parameters: LayerSummary

    @property
    def num_weights(self) -> int:
        """Number of all weights."""
        return sum(row.num_weights for row in (*self.layers, self.float_parameters))

    @property
    def num_bytes(self) -> int:
        """Stored size of the whole model."""
        return sum(row.num_bytes for row in (*self.layers, self.float_parameters))

    @property
    def macs(self) -> int:
        """Multiply-accumulates with quantized kernels in one inference."""
        return sum(row.macs for row in self.layers)

    @property
    def nanojoules(self) -> float:
        """Estimated energy of one inference's operations with quantized kernels."""
        return sum(row.nanojoules for row in self.layers)

    @property
    def mean_bit_width(self) -> float:
        """Average bits per quantized weight; nan without quantized weights."""
        bits = sum(row.num_weights * row.bit_width for row in self.layers)
        weights = sum(row.num_weights for row in self.layers)
        return bits / weights if weights else float("nan")

    @property
    def compression(self) -> float:
        """Size in float32 divided by the stored size."""
        return self.num_weights * _FLOAT_BYTES / max(self.num_bytes, 1)

    def __str__(self) -> str:
        rows = (*self.layers, self.float_parameters)
        width = max(len(row.name) for row in rows)

        def line(name: str, bits: str, row: LayerSummary | ModelSummary) -> str:
            return (
                f"{name:<{width}}  {row.num_weights:>9,}  {bits:>5}  "
                f"{row.num_bytes:>9,}  {row.compression:>4.1f}x  "
                f"{row.macs:>11,}  {row.nanojoules:>9,.1f}"
            )

        header = (
            f"{'layer':<{width}}  {'weights':>9}  {'bits':>5}  {'bytes':>9}  ratio  "
            f"{'MACs':>11}  {'nJ':>9}"
        )
        rule = "-" * len(header)
        lines = [line(row.name, str(row.bit_width), row) for row in rows]
        total = line("total", f"{self.mean_bit_width:.2f}", self)
        return "\n".join([header, rule, *lines, rule, total])


def summary(model: tf.keras.Model) -> ModelSummary:
    """Summarizes a built Keras model, quantized or not; printed, it is a table."""
    kernels, macs = quantized_kernels(model), macs_by_kernel(model)
    rows = []
    for kernel in kernels:
        bits = int(kernel.bit_width.numpy())
        num_scales = kernel.scale.shape.num_elements()
        num_bytes = packed_size(kernel.size, bits) + _FLOAT_BYTES * num_scales
        name = f"{kernel.name}_codes"
        operations = macs.get(id(kernel.codes), 0)
        rows.append(LayerSummary(name, kernel.size, bits, num_bytes, operations))
    quantized = {id(v) for k in kernels for v in (k.codes, k.scale, k.bit_width)}
    others = (v for v in model.variables if id(v) not in quantized)
    size = sum(int(tf.size(variable)) for variable in others)
    rest = LayerSummary("(float parameters)", size, 32, _FLOAT_BYTES * size)
    return ModelSummary(tuple(rows), rest)
