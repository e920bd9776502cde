"""The documents are of the committed result files, and of nothing else."""

import pathlib
import re
import shlex

import pytest

from tff_fedmpq.simulation.reproduction import (
    cells,
    document,
    results,
    study_document,
)

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


def _digest_in(figure: pathlib.Path) -> str:
    """The bytes differ with the version of Matplotlib; what is drawn does not."""
    (digest,) = re.findall(r"content: ([0-9a-f]{64})", figure.read_text())
    return digest


def test_has_its_figures(written):
    drawn, committed = (
        {path.name: _digest_in(path) for path in folder.glob("*")}
        for folder in (written / study_document.FIGURES, _DOCS / study_document.FIGURES)
    )
    assert drawn == committed


@pytest.mark.parametrize("preset", cells.PRESETS)
def test_a_results_command_makes_a_run_of_its_settings(preset):
    for name, record in results.read_records(_RESULTS, preset).items():
        words = shlex.split(record["command"])
        flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
        assert (record["id"], flags["preset"]) == (name, preset)
        seed, compute = int(flags["seeds"]), flags["compute"]
        (cell,) = cells.select(
            cells.expand(words[2], preset, [seed], compute), [flags["cells"]]
        )
        assert results.find_record({name: record}, cell.config) == name


def test_the_studys_commands_make_all_it_shows():
    template = (_DOCS / "study.template.md").read_text()
    (block,) = re.findall(
        r"```bash\n(python examples/reproduce.*?)```",
        template,
        flags=re.DOTALL,
    )
    records = {
        preset: results.read_records(_RESULTS, preset) for preset in cells.PRESETS
    }
    made = {preset: set() for preset in cells.PRESETS}
    for line in block.splitlines():
        words = shlex.split(line)
        flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
        preset, seeds = flags["preset"], map(int, flags["seeds"].split(","))
        patterns = flags["cells"].split(",") if "cells" in flags else []
        for cell in cells.select(cells.expand(words[2], preset, [*seeds]), patterns):
            if cell.config is not None:
                made[preset].add(results.find_record(records[preset], cell.config))
    of_commands = {
        preset: {name: r for name, r in found.items() if name in made[preset]}
        for preset, found in records.items()
    }
    shown = study_document.build_study(template, of_commands)
    assert shown == study_document.build_study(template, records)
