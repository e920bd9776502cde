"""What `quantize_model` did with each layer, and what stayed in float."""

from __future__ import annotations

import collections
import dataclasses

from absl import logging

from tff_fedmpq.quantization import activations


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What `quantize_model` did with a layer.

    Attributes:
      name: Name of the layer.
      kind: Class of the layer.
      num_weights: Number of its weights.
      form: Class of its converted form.
      bit_width: Bits per weight of its kernels; None if they are float.
      activation_bits: Bits of its activation; None if it has none, or a float one.
      remark: What stayed in float, and why; "" where nothing did.
    """

    name: str
    kind: str
    num_weights: int
    form: str
    bit_width: int | None
    activation_bits: int | None
    remark: str = ""


@dataclasses.dataclass(frozen=True)
class QuantizationReport:
    """What `quantize_model` did; its string is a table of the layers."""

    layers: tuple[LayerReport, ...]

    @property
    def float_share(self) -> float:
        """Share of all weights in layers that were left in float."""
        total = sum(row.num_weights for row in self.layers)
        left = sum(row.num_weights for row in self.layers if row.bit_width is None)
        return left / max(total, 1)

    def __str__(self) -> str:
        names = ("layer", "form", "weights", "bits", "activation", "remark")
        rows = [names] + [
            (
                row.name,
                row.form,
                f"{row.num_weights:,}",
                str(row.bit_width or "float"),
                str(row.activation_bits or ""),
                row.remark,
            )
            for row in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        return "\n".join(lines)


def warn_of_float_parts(
    report: QuantizationReport, quantizes_kernels: bool, num_clipped: int
) -> None:
    """Warns of weights and activations that stay in float, and of clipping."""

    def count(rows: list[LayerReport]) -> str:
        names = collections.defaultdict(list)
        for row in rows:
            names[row.kind].append(row.name)
        return ", ".join(
            f"{len(found)} {kind} ({', '.join(found[:3])}{', ...' * (len(found) > 3)})"
            for kind, found in names.items()
        )

    unknown = [row for row in report.layers if "no quantized form" in row.remark]
    unknown += [row for row in report.layers if "constraint" in row.remark]
    if quantizes_kernels and unknown:
        total = sum(row.num_weights for row in report.layers)
        share = sum(row.num_weights for row in unknown) / max(total, 1)
        logging.warning(
            "%.1f %% of the weights stay in float, in %s. `register_quantized_layer` "
            "makes a layer known; `model.quantization_report` lists all.",
            100 * share,
            count(unknown),
        )
    floats = [row for row in report.layers if "activation" in row.remark]
    floats = [row for row in floats if "softmax" not in row.remark]
    if floats:
        logging.warning("These activations stay in float: %s.", count(floats))
    if num_clipped:
        logging.warning(
            "%d activations without an upper limit are clipped at %g: give "
            "activation_range or calibration_data to choose the limit.",
            num_clipped,
            activations.CLIP_VALUE,
        )
