"""Files for LiteRT and TFLite Micro whose weights have few bits, and their proof.

TensorFlow's converter gives a TFLite file with float weights, in which activations of k
bits are int8. `device_tools` stores the codes in place of these weights: LiteRT gets
int4 up to 4 bits and int8 above, TFLite Micro the stock lookup tables, of 1 to 7 bits
per weight, and int8 at 8 bits. What is computed is floating point, as in Keras. Levels
of 4 and 8 bits in `sign_magnitude` lie half a step beside integers: an operation of the
file adds the half. int2, whose convolutions LiteRT computes as NaN, is not written.

Each file is then run in the device's own runtime, and its outputs compared.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tff_fedmpq.export.report import ExportReport, report_of
from tff_fedmpq.files import PathLike, write_atomically
from tff_fedmpq.keras import layers as quant_layers
from tff_fedmpq.keras.quantized_kernel import QuantizedKernel, quantized_kernels

PYTHON_VARIABLE = "TFF_FEDMPQ_EXPORT_PYTHON"
DEFAULT_ENVIRONMENT = pathlib.Path("~/.cache/tff_fedmpq/export")
PACKAGES = ("ai-edge-litert==2.3.0", "tflite-micro==0.dev20261023182759")
INSTALL = (
    f"uv venv --python 3.12 {DEFAULT_ENVIRONMENT} && uv pip install --python "
    f"{DEFAULT_ENVIRONMENT} {' '.join(PACKAGES)}"
)
# Gates in the columns of a cell's kernels, which the converter may store apart.
_NUM_GATES: dict[Any, int] = {
    quant_layers.QuantLSTMCell: 4,
    quant_layers.QuantGRUCell: 3,
}


class ExportError(RuntimeError):
    """A file for a device was not written, or does not compute what Keras does."""


def write_litert(
    model: tf.keras.Model,
    path: PathLike,
    inputs: Any,
    *,
    tolerance: float = 1e-3,
    python: PathLike | None = None,
) -> ExportReport:
    """Writes a TFLite file for LiteRT, runs it there and compares with Keras.

    The file exists only if its outputs agree; otherwise `ExportError`.

    Args:
      model: Quantized model.
      path: File to write.
      inputs: Examples to compare on: an array, or one per input of the model.
      tolerance: Largest difference of an example's outputs, in units of the largest
        output of all, that at least half of the examples have to keep; all have to keep
        it if the activations are float. Where sums are added in another order, a few
        activations of k bits are rounded to the next level.
      python: Python with `PACKAGES`; by default the one that `PYTHON_VARIABLE` names,
        this one, or that of `DEFAULT_ENVIRONMENT`, whichever has them.
    """
    return _write("litert", model, path, inputs, tolerance, python)


def write_tflite_micro(
    model: tf.keras.Model,
    path: PathLike,
    inputs: Any,
    *,
    tolerance: float = 1e-3,
    python: PathLike | None = None,
) -> ExportReport:
    """Writes a TFLite file with lookup tables, for TFLite Micro; see `write_litert`."""
    return _write("micro", model, path, inputs, tolerance, python)


def _write(
    target: str,
    model: tf.keras.Model,
    path: PathLike,
    inputs: Any,
    tolerance: float,
    python: PathLike | None,
) -> ExportReport:
    python = find_python(python)
    arrays = tf.nest.flatten(inputs)
    if len(arrays) != len(model.inputs):
        raise ValueError(f"{len(model.inputs)} inputs expected, found {len(arrays)}.")
    dtypes = (tensor.dtype.as_numpy_dtype for tensor in model.inputs)
    arrays = [np.asarray(*pair) for pair in zip(arrays, dtypes)]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "float.tflite").write_bytes(_float_file(model))
        parts = list(_parts(model))
        rows = [(int(k.bit_width.numpy()), _is_half(k)) for k, _ in parts]
        codes = {str(i): part for i, (_, part) in enumerate(parts)}
        np.savez(folder / "kernels.npz", bits=np.array(rows).reshape(-1, 2), **codes)
        report = _call(python, "write", target, folder)
        outputs = run_file(folder / "device.tflite", arrays, model, target, python)
        differences = _compare(model, arrays, outputs, tolerance)
        write_atomically(path, (folder / "device.tflite").read_bytes())
    found = {parts[i][0].name for i in report["found"]}
    floats = (k.name for k in quantized_kernels(model) if k.name not in found)
    return report_of(
        model,
        path,
        largest_difference=float(differences.max()),
        typical_difference=float(np.median(differences)),
        float_kernels=tuple(floats),
    )


def run_file(
    path: PathLike,
    inputs: Sequence[np.ndarray],
    model: tf.keras.Model,
    target: str,
    python: PathLike | None = None,
) -> list[np.ndarray]:
    """Returns the outputs of a written file in the runtime "litert" or "micro"."""
    names = _input_names(model)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        shutil.copyfile(path, folder / "device.tflite")
        np.savez(folder / "inputs.npz", **dict(zip(names, inputs)))
        _call(find_python(python), "run", target, folder)
        with np.load(folder / "outputs.npz") as file:
            return [file[str(i)] for i in range(len(file.files))]


def find_python(python: PathLike | None = None) -> pathlib.Path:
    """Returns a Python with LiteRT and TFLite Micro; `ExportError` without one."""
    known = [python, os.environ.get(PYTHON_VARIABLE)]
    if importlib.util.find_spec("tflite_micro"):
        known.append(sys.executable)
    known.append(DEFAULT_ENVIRONMENT / "bin" / "python")
    path = pathlib.Path(next(p for p in known if p)).expanduser()
    if not path.exists():
        raise ExportError(
            f"LiteRT and TFLite Micro need an environment of their own: {INSTALL}"
        )
    return path


def _call(
    python: PathLike, action: str, target: str, folder: pathlib.Path
) -> dict[str, Any]:
    """Runs an action of `device_tools` and returns its report."""
    script = pathlib.Path(__file__).with_name("device_tools.py")
    command = [str(python), "-I", str(script), action, target, str(folder)]
    finished = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if finished.returncode:
        last = "\n".join(finished.stderr.strip().splitlines()[-3:])
        raise ExportError(f"{' '.join(command[2:5])} failed: {last}")
    return json.loads((folder / "report.json").read_text())


def _float_file(model: tf.keras.Model) -> bytes:
    """Returns the TFLite file of a model with weights in float32."""
    try:
        return tf.lite.TFLiteConverter.from_keras_model(model).convert()
    except Exception:
        pass  # Loops, of recurrent layers, are converted for batches of known size.
    names = _input_names(model)
    specs = [
        tf.TensorSpec([1, *tensor.shape[1:]], tensor.dtype, name)
        for tensor, name in zip(model.inputs, names)
    ]
    module = tf.Module()
    module.model = model  # Keeps its variables.

    @tf.function(input_signature=specs)
    def call(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = tf.nest.flatten(model(list(inputs), training=False))
        return {f"{i:04}": output for i, output in enumerate(outputs)}

    try:
        with tempfile.TemporaryDirectory() as folder:
            tf.saved_model.save(module, folder, signatures=call)
            return tf.lite.TFLiteConverter.from_saved_model(folder).convert()
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ExportError(
            f"TensorFlow cannot convert {model.name}: {reason}"
        ) from error


def _input_names(model: tf.keras.Model) -> list[str]:
    return [tensor.name.split(":")[0] for tensor in model.inputs]


def _parts(model: tf.keras.Model) -> Iterator[tuple[QuantizedKernel, np.ndarray]]:
    """Yields kernels, whole and by gates, and codes less ``2**(b-1)``, int8."""
    gates = {
        id(kernel): number
        for part in quant_layers.parts_of(model)
        for form, number in _NUM_GATES.items()
        if isinstance(part, form)
        for kernel in part.quantized_kernels.values()
    }
    for kernel in quantized_kernels(model):
        codes = kernel.codes.numpy().astype(np.int16)
        codes = (codes - 2 ** (int(kernel.bit_width.numpy()) - 1)).astype(np.int8)
        yield kernel, codes
        if id(kernel) in gates:
            for part in np.split(codes, gates[id(kernel)], axis=-1):
                yield kernel, part


def _is_half(kernel: QuantizedKernel) -> bool:
    zero_point = float(kernel.representation.zero_point(kernel.bit_width))
    return not zero_point.is_integer()


def _compare(
    model: tf.keras.Model,
    inputs: list[np.ndarray],
    outputs: list[np.ndarray],
    tolerance: float,
) -> np.ndarray:
    """Returns the largest difference per example; `ExportError` beyond tolerance."""
    expected = tf.nest.flatten(model.predict(inputs, verbose=0))
    differences = np.zeros(len(inputs[0]))
    limit = tolerance * max(float(np.abs(x).max()) for x in expected)
    for ours, theirs in zip(expected, outputs):
        difference = np.abs(ours - theirs.reshape(ours.shape))
        difference = np.where(np.isfinite(difference), difference, np.inf)
        rows = difference.reshape(len(difference), -1).max(1)
        differences = np.maximum(differences, rows)
    parts = quant_layers.parts_of(model)
    activations = (getattr(part, "activation", None) for part in parts)
    rounds = any(hasattr(activation, "bits") for activation in activations)
    found = float(np.median(differences) if rounds else differences.max())
    if not found <= limit:
        what = "half of the examples differ" if rounds else "an example differs"
        raise ExportError(
            f"{what} by {found:.2e} or more from Keras; the tolerance is {limit:.2e}."
        )
    return differences
