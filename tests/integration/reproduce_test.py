"""`examples/reproduce.py` as a user calls it, without training anything."""

import pathlib
import shutil
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parents[2]
_NAME = "table1/cifar10/alpha0.5/fedmpq/seed0"
_RESULT = f"paper/{_NAME}.json"


def reproduce(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(_ROOT / "examples" / "reproduce.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
    )


def test_documents_of_other_results_stand_beside_them(tmp_path):
    """And leave those of the project alone."""
    kept = tmp_path / "mine" / _RESULT
    kept.parent.mkdir(parents=True)
    shutil.copy(_ROOT / "docs/results/reproduction" / _RESULT, kept)
    finished = reproduce(tmp_path, "--report_only", "--results_dir=mine/")
    assert finished.returncode == 0, finished.stderr
    assert not (tmp_path / "docs").exists()
    text = (tmp_path / "mine" / "reproduction.md").read_text()
    assert f"| paper: {_NAME} |" in text
    assert (tmp_path / "mine" / "study.md").exists()


def test_a_mistyped_folder_of_results_is_no_empty_one(tmp_path):
    finished = reproduce(tmp_path, "--report_only", "--results_dir=mien")
    assert finished.returncode == 2
    assert f"no directory {tmp_path / 'mien'}" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not list(tmp_path.iterdir())


def test_the_projects_results_are_found_from_elsewhere(tmp_path):
    """The documents that are made of them say the same."""
    finished = reproduce(
        tmp_path, "--report_only", "--document=here.md", "--study=study.md"
    )
    assert finished.returncode == 0, finished.stderr
    for mine, ours in (("here.md", "reproduction.md"), ("study.md", "study.md")):
        assert (tmp_path / mine).read_text() == (_ROOT / "docs" / ours).read_text()
