"""The documents are of the committed result files, and of nothing else."""

import pathlib

import pytest

from tff_fedmpq.simulation.reproduction import document, study_document

_DOCS = pathlib.Path(__file__).parents[2] / "docs"
_RESULTS = _DOCS / "results" / "reproduction"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    document.write_document(_RESULTS, folder / "reproduction.md")
    template = _DOCS / "study.template.md"
    study_document.write_study(_RESULTS, template, folder / "study.md")
    return folder


@pytest.mark.parametrize("name", ["reproduction.md", "study.md"])
def test_is_what_reproduce_report_only_writes(written, name):
    assert (written / name).read_text() == (_DOCS / name).read_text()
