"""Which code made a result: in a checkout, changed or not, and outside of one."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest

from tff_fedmpq import processor
from tff_fedmpq.simulation import provenance


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    finished = subprocess.run(
        ["git", *identity, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout.strip()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a repository of its own, committed."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "code.py").write_text("x = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "code")
    monkeypatch.setattr(provenance, "_PACKAGE", folder)
    return folder


def test_the_commit_is_the_packages_last(package):
    commit = git(package, "rev-parse", "--short", "HEAD")
    assert provenance.find_commit() == commit
    (package.parent / "README").write_text("text\n")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "--quiet", "-m", "text")
    assert provenance.find_commit() == commit


def test_changed_code_is_dirty(package):
    (package / "code.py").write_text("x = 2\n")
    assert provenance.find_commit().endswith("-dirty")


def test_an_installed_package_has_no_commit(package, tmp_path, monkeypatch):
    """Though it lies within a repository, as .venv does."""
    installed = tmp_path / "venv" / "package"
    installed.mkdir(parents=True)
    (tmp_path / ".gitignore").write_text("venv\n")
    monkeypatch.setattr(provenance, "_PACKAGE", installed)
    assert provenance.find_commit() is None


def test_versions_and_hardware(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5})
    described = provenance.describe()
    assert described["versions"]["numpy"] == np.__version__
    assert described["hardware"]["cores"] == 3
    hardware = described["hardware"]
    assert hardware["processor"] == processor.processor_name()
    assert set(hardware["vector_instructions"]) <= processor.processor_features()
    assert hardware["onednn"] in ("on", "off", "TensorFlow's default")
