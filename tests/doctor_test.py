"""The report of what is installed, and the line that installs the rest."""

from __future__ import annotations

import configparser
import pathlib
import re
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from tff_fedmpq import doctor
from tff_fedmpq.version import __version__

_ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def without(monkeypatch):
    """Makes packages look as if they were not installed, or of another version."""

    def pretend(**versions):
        real = metadata.version

        def version(name):
            found = versions.get(name.replace("-", "_"), real)
            if found is None:
                raise metadata.PackageNotFoundError(name)
            return real(name) if found is real else found

        monkeypatch.setattr(metadata, "version", version)

    return pretend


def test_the_core_needs_no_tff_and_the_extra_does_not_repeat_the_core():
    core = {each.name for each in doctor.requirements()}
    federated = {each.name for each in doctor.requirements("federated")}
    assert {"tensorflow", "tensorflow-model-optimization", "numpy"} <= core
    assert "tensorflow-federated" in federated
    assert core & federated == set()
    assert ("tf-keras" in core) == (sys.version_info >= (3, 12))


def test_each_package_is_needed_in_one_version():
    for extra in ("", "federated"):
        names = [each.name for each in doctor.requirements(extra)]
        assert len(names) == len(set(names)) > 0


def test_a_complete_environment_fits(capsys):
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "Everything fits."
    assert re.search(r"^  tensorflow-federated +0\.87\.0$", printed, re.MULTILINE)


def test_what_is_missing_is_named_with_the_line_that_installs_it(without, capsys):
    without(tensorflow_federated=None, tabulate=None)
    assert doctor.main() == 1
    *report, line = capsys.readouterr().out.splitlines()
    (complete,) = (row for row in report if row.startswith("Complete: "))
    assert complete.startswith("Complete: core") and "federated" not in complete
    assert any(
        re.match(r" +tabulate +missing +expected >=0\.9$", row) for row in report
    )
    assert line.strip() == (
        f"pip install tff-fedmpq=={__version__} 'tabulate>=0.9' && pip install "
        "--no-deps --ignore-requires-python 'tensorflow-federated==0.87.0'"
    )


def test_a_version_that_does_not_fit_is_named(without, capsys):
    without(absl_py="2.1.0")
    assert doctor.main() == 1
    printed = capsys.readouterr().out
    assert re.search(r"absl-py +2\.1\.0 +expected <2,>=1\.0", printed)


def test_an_unsupported_tensorflow_is_told_what_is_supported(without, capsys):
    without(tensorflow="2.21.0")
    assert doctor.main() == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Expected Python 3.9 to 3.11 with TensorFlow 2.14, or")


def test_jupyter_is_looked_at_where_it_is_installed(without, capsys):
    without(ipykernel=None)
    doctor.main()
    assert "Notebooks:" not in capsys.readouterr().out
    without(ipykernel="6.29.0")
    doctor.main()
    assert "Notebooks:" in capsys.readouterr().out


def _of_extra(extra: str) -> list[Requirement]:
    """Returns what setup.cfg asks for, which may be newer than what is installed."""
    config = configparser.ConfigParser()
    config.read(_ROOT / "setup.cfg")
    lines = config["options.extras_require"][extra].split("\n")
    found = [Requirement(line) for line in lines if line and line[0] != "#"]
    return [each for each in found if not each.marker or each.marker.evaluate()]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="any fits there")
@pytest.mark.parametrize("extra", ["federated", "notebook"])
def test_typing_extensions_are_those_of_tensorflow_federated(extra):
    """With newer ones, as Jupyter asks for, runs ended after their first round."""
    (wanted,) = (
        Requirement(line)
        for line in metadata.requires("tensorflow-federated") or ()
        if line.startswith("typing-extensions")
    )
    (ours,) = (each for each in _of_extra(extra) if each.name == "typing-extensions")
    for version in ("4.4.0", "4.5.0", "4.6.0", "4.16.0"):
        assert ours.specifier.contains(version) == wanted.specifier.contains(version)


@pytest.mark.parametrize("name", ["ipykernel", "ipython", "jupyter-client"])
def test_what_is_installed_of_jupyter_may_be_this_typing_extensions(name):
    """As the extra says; an environment that has no Jupyter has nothing to check."""
    if doctor.installed_version(name) is None:
        pytest.skip("not installed")
    for each in _of_extra("notebook"):
        if each.name == name and not each.specifier.contains(metadata.version(name)):
            pytest.skip("another version than the extra's")
    for line in metadata.requires(name) or ():
        needed = Requirement(line)
        if needed.name.replace("_", "-") == "typing-extensions":
            applies = not needed.marker or needed.marker.evaluate({"extra": ""})
            found = metadata.version("typing-extensions")
            assert not applies or needed.specifier.contains(found)


def test_the_documentation_has_the_line_for_this_python():
    page = (_ROOT / "docs/installation.md").read_text()
    line = doctor.installing_line(doctor.requirements("federated"))
    assert f"\n{line}\n" in page


def _pins(text: str) -> set[str]:
    return set(re.findall(r"\b[a-z][a-z-]+==[\d.]+", text))


@pytest.mark.parametrize(
    "path", sorted((_ROOT / "examples/notebooks").glob("*.ipynb")), ids=lambda p: p.stem
)
def test_notebooks_install_what_the_requirements_for_colab_pin(path):
    of_colab = _pins((_ROOT / "requirements-colab.txt").read_text())
    in_notebook = _pins(path.read_text().split('"cell_type": "code"')[1])
    assert in_notebook <= of_colab
    if "federated" in path.stem:
        assert in_notebook == of_colab


def test_the_requirements_for_colab_touch_nothing_that_colab_has():
    lines = (_ROOT / ".ci/colab.txt").read_text().splitlines()
    colab = {Requirement(line).name for line in lines if line and line[0] != "#"}
    assert len(colab) > 10
    pins = _pins((_ROOT / "requirements-colab.txt").read_text())
    assert {pin.split("==")[0] for pin in pins} & colab == set()
