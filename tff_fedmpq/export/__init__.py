"""Files that take a quantized model to a device, each checked when it is written."""

from tff_fedmpq.export.device import (
    ExportError,
    find_python,
    run_file,
    write_litert,
    write_tflite_micro,
)
from tff_fedmpq.export.packed import (
    DamagedFileError,
    ForeignFileError,
    FutureVersionError,
    PackedFileError,
    UnsafeFileError,
    read_packed,
    write_packed,
)
from tff_fedmpq.export.report import ExportReport

__all__ = [
    "DamagedFileError",
    "ExportError",
    "ExportReport",
    "ForeignFileError",
    "FutureVersionError",
    "PackedFileError",
    "UnsafeFileError",
    "find_python",
    "read_packed",
    "run_file",
    "write_litert",
    "write_packed",
    "write_tflite_micro",
]
