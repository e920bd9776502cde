"""What of tff_fedmpq's requirements is installed, and the line that installs the rest.

    python -m tff_fedmpq.doctor

Reads the metadata of installed packages and imports none of them. The exit status is 0
if everything fits.
"""

from __future__ import annotations

import platform
import sys
from importlib import metadata

from packaging.requirements import Requirement

from tff_fedmpq._tensorflow import SUPPORTED, is_supported
from tff_fedmpq.version import __version__

_PACKAGE = "tff-fedmpq"
# What these ask for, pip cannot find together; `[federated]` lists all of it.
_WITHOUT_DEPENDENCIES = (
    "dp-accounting",
    "google-vizier",
    "tensorflow-federated",
    "tensorflow-privacy",
)


def requirements(extra: str = "") -> list[Requirement]:
    """Returns what this Python needs for the core, or for an extra beside the core."""

    def applies(requirement: Requirement, extra: str) -> bool:
        marker = requirement.marker
        return marker is None or marker.evaluate({"extra": extra})

    every = [Requirement(text) for text in metadata.requires(_PACKAGE) or ()]
    core = [each for each in every if applies(each, "")]
    return [r for r in every if applies(r, extra) and r not in core] if extra else core


def installed_version(name: str) -> str | None:
    """Returns the version of a package, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def is_met(requirement: Requirement) -> bool:
    """Returns whether a version that fits is installed."""
    version = installed_version(requirement.name)
    return version is not None and requirement.specifier.contains(version, True)


def installing_line(unmet: list[Requirement]) -> str:
    """Returns the shell command that installs them and keeps the core installed."""
    bare = [each for each in unmet if each.name in _WITHOUT_DEPENDENCIES]
    plain = [f"'{r.name}{r.specifier}'" for r in unmet if r not in bare]
    line = " ".join([f"pip install {_PACKAGE}=={__version__}", *plain])
    if bare:
        line += " && pip install --no-deps --ignore-requires-python "
        line += " ".join(f"'{each.name}{each.specifier}'" for each in bare)
    return line


def main() -> int:
    """Prints the report; returns the exit status."""
    python = platform.python_version()
    print(f"Python {python}, {platform.system()} {platform.machine()}")
    problems = []
    for title, extra in (("Core", ""), ("Federated training", "federated")):
        needed = sorted(requirements(extra), key=lambda each: each.name)
        unmet = [each for each in needed if not is_met(each)]
        print(f"\n{title}: {len(needed) - len(unmet)} of {len(needed)} packages fit")
        for each in needed:
            version = installed_version(each.name) or "missing"
            state = f"expected {each.specifier or 'any'}" if each in unmet else ""
            print(f"  {each.name:32}{version:12}{state}".rstrip())
        if unmet:
            problems.append(
                f"To install what does not fit:\n  {installing_line(unmet)}"
            )
    tensorflow, tf_keras = map(installed_version, ("tensorflow", "tf-keras"))
    if tensorflow and not is_supported(sys.version_info[:2], tensorflow):
        problems.append(
            f"Python {python} with TensorFlow {tensorflow}: use {SUPPORTED}."
        )
    elif tensorflow and tf_keras and _minor(tensorflow) != _minor(tf_keras):
        wanted = f"pip install 'tf_keras=={_minor(tensorflow)}.*'"
        problems.append(f"tf_keras {tf_keras} is not of TensorFlow's version: {wanted}")
    print("", *problems or ["Everything fits."], sep="\n")
    return 1 if problems else 0


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


if __name__ == "__main__":
    sys.exit(main())
