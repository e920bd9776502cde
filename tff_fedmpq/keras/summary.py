"""What a quantized model stores: bits, bytes and compression per layer."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tff_fedmpq.keras.quantized_kernel import quantized_kernels
from tff_fedmpq.quantization.packing import packed_size

_FLOAT_BITS = 32


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One row of a summary.

    Attributes:
      name: of the variable, or of a group of them.
      num_weights: how many numbers it holds.
      bit_width: bits of each.
      num_bytes: stored size: packed codes and the float32 scale of a quantized layer.
    """

    name: str
    num_weights: int
    bit_width: int
    num_bytes: int

    @property
    def compression(self) -> float:
        """The size in float32 over the stored size."""
        return self.num_weights * _FLOAT_BITS / 8 / max(self.num_bytes, 1)


@dataclasses.dataclass(frozen=True)
class ModelSummary:
    """Rows of all quantized layers, one of the float rest, and their total.

    Attributes:
      layers: quantized layers, in the order of the model.
      float_rest: everything that is kept in float32.
    """

    layers: tuple[LayerSummary, ...]
    float_rest: LayerSummary

    @property
    def num_bytes(self) -> int:
        """Stored size of the whole model."""
        return sum(row.num_bytes for row in (*self.layers, self.float_rest))

    @property
    def mean_bit_width(self) -> float:
        """Average bits per quantized weight (nan where there is none)."""
        bits = sum(row.num_weights * row.bit_width for row in self.layers)
        weights = sum(row.num_weights for row in self.layers)
        return bits / weights if weights else float("nan")

    @property
    def compression(self) -> float:
        """Size of the model in float32 over its stored size."""
        weights = sum(row.num_weights for row in (*self.layers, self.float_rest))
        return weights * _FLOAT_BITS / 8 / max(self.num_bytes, 1)

    def __str__(self) -> str:
        width = max(len(row.name) for row in (*self.layers, self.float_rest))
        header = f"{'layer':<{width}}  {'weights':>9}  {'bits':>5}  {'bytes':>9}  ratio"
        lines = [header, "-" * len(header)]
        for row in (*self.layers, self.float_rest):
            lines.append(
                f"{row.name:<{width}}  {row.num_weights:>9,}  {row.bit_width:>5}  "
                f"{row.num_bytes:>9,}  {row.compression:>4.1f}x"
            )
        weights = sum(row.num_weights for row in (*self.layers, self.float_rest))
        lines.append("-" * len(header))
        lines.append(
            f"{'total':<{width}}  {weights:>9,}  {self.mean_bit_width:>5.2f}  "
            f"{self.num_bytes:>9,}  {self.compression:>4.1f}x"
        )
        return "\n".join(lines)


def summary(model: tf.keras.Model) -> ModelSummary:
    """Summarises a quantized Keras model; ``print(summary(model))`` is a table.

    Args:
      model: any built Keras model; one without quantized layers is all float rest.
    """
    kernels = quantized_kernels(model)
    rows = []
    for kernel in kernels:
        bits = int(kernel.bit_width.numpy())
        num_bytes = packed_size(kernel.size, bits) + _FLOAT_BITS // 8
        name = kernel.codes.name.split(":")[0]
        rows.append(LayerSummary(name, kernel.size, bits, num_bytes))
    quantized = {id(v) for k in kernels for v in (k.codes, k.scale, k.bit_width)}
    rest = sum(
        v.shape.num_elements() for v in model.variables if id(v) not in quantized
    )
    float_rest = LayerSummary(
        "(float rest)", rest, _FLOAT_BITS, rest * _FLOAT_BITS // 8
    )
    return ModelSummary(tuple(rows), float_rest)
