"""What of tff_fedmpq's requirements is installed, and the line that installs the rest.

    python -m tff_fedmpq.doctor

Reads metadata and imports no package. The exit status is 0 if everything fits.
"""

from __future__ import annotations

import platform
import sys
from importlib import metadata

from packaging.requirements import Requirement

from tff_fedmpq._tensorflow import SUPPORTED, is_supported
from tff_fedmpq.version import __version__

# What these ask for, pip cannot find together; `[federated]` lists all of it.
_WITHOUT_DEPENDENCIES = (
    "dp-accounting",
    "google-vizier",
    "tensorflow-federated",
    "tensorflow-privacy",
)


def requirements(extra: str = "") -> list[Requirement]:
    """Returns what this Python needs for the core, or for an extra beside the core."""

    def applying(extra: str) -> dict[str, Requirement]:
        found = map(Requirement, metadata.requires("tff-fedmpq") or ())
        given = {"extra": extra}
        return {str(r): r for r in found if not r.marker or r.marker.evaluate(given)}

    core = applying("")
    return [r for key, r in applying(extra).items() if not extra or key not in core]


def installed_version(name: str) -> str | None:
    """Returns the version of a package, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def installing_line(unmet: list[Requirement]) -> str:
    """Returns the shell command that installs them and keeps the core installed."""
    bare = [r for r in unmet if r.name in _WITHOUT_DEPENDENCIES]
    plain = [f"'{r.name}{r.specifier}'" for r in unmet if r not in bare]
    line = " ".join([f"pip install tff-fedmpq=={__version__}", *plain])
    if bare:
        line += " && pip install --no-deps --ignore-requires-python "
        line += " ".join(f"'{r.name}{r.specifier}'" for r in bare)
    return line


def main() -> int:
    """Prints the report; returns the exit status."""
    print(f"Python {platform.python_version()}, {platform.platform()}")
    complete, problems = [], []
    groups = [("Core", ""), ("Federated training", "federated")]
    if installed_version("ipykernel"):  # No need of programs.
        groups.append(("Notebooks", "notebook"))
    for title, extra in groups:
        print(f"\n{title}:")
        unmet = []
        for requirement in sorted(requirements(extra), key=lambda r: r.name):
            version = installed_version(requirement.name)
            fits = version is not None and requirement.specifier.contains(version, True)
            note = "" if fits else f"expected {requirement.specifier or 'any'}"
            line = f"  {requirement.name:32}{version or 'missing':12}{note}"
            print(line.rstrip())
            unmet += [] if fits else [requirement]
        if unmet:
            problems.append(f"{title} needs:\n  {installing_line(unmet)}")
        else:
            complete.append(title.lower())
    tensorflow, keras = map(installed_version, ("tensorflow", "tf-keras"))
    if tensorflow and not is_supported(sys.version_info[:2], tensorflow, keras):
        problems.append(f"Expected {SUPPORTED}.")
    if problems:
        print(f"\nComplete: {', '.join(complete) or 'nothing'}.")
    print("", *problems or ["Everything fits."], sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
