"""Files that take a quantized model to a device, each checked when it is written."""

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
    "ExportReport",
    "ForeignFileError",
    "FutureVersionError",
    "PackedFileError",
    "UnsafeFileError",
    "read_packed",
    "write_packed",
]
