"""Tests of loading by name: where files are searched, and what "auto" loads."""

import logging
import shutil
import subprocess
import sys

import pytest

from tff_fedmpq.simulation import data as datasets
from tff_fedmpq.simulation.data import (
    DATA_DIR_VARIABLE,
    DatasetError,
    DatasetNotFoundError,
)


def test_search_order(home, tmp_path, monkeypatch, write_cifar10):
    def source(data_dir=None):
        return datasets.load("auto", data_dir).source

    places = [tmp_path / "given", tmp_path / "environment", home / ".keras/datasets"]
    given, environment, keras = [str(write_cifar10(place)) for place in places]
    assert source() == keras
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path / "environment"))
    assert source() == environment
    assert source("") == environment
    assert source(str(tmp_path / "given")) == given
    assert source(given) == given
    renamed = shutil.move(given, tmp_path / "renamed")
    assert source(renamed) == str(renamed)
    monkeypatch.chdir(tmp_path)
    assert source("environment") == environment


def test_environment_directory_without_this_data_is_passed_over(
    home, tmp_path, monkeypatch, write_cifar10
):
    (tmp_path / "others").mkdir()
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path / "others"))
    folder = write_cifar10(home / ".keras/datasets")
    assert datasets.load_cifar10().source == str(folder)


@pytest.mark.parametrize("name", ["auto", "cifar10", "cifar100", "tiny_imagenet"])
def test_an_explicit_directory_without_the_data(
    home, tmp_path, name, write_cifar10, check_one_line
):
    write_cifar10(home / ".keras/datasets")
    for data_dir in (tmp_path / "missing", tmp_path):
        with pytest.raises(DatasetNotFoundError, match="expected the folder") as error:
            datasets.load(name, data_dir)
        check_one_line(error, data_dir)


@pytest.mark.parametrize("name", ["auto", "cifar10", "tiny_imagenet"])
def test_an_environment_variable_that_names_nothing(
    home, name, monkeypatch, write_cifar10
):
    write_cifar10(home / ".keras/datasets")
    monkeypatch.setenv(DATA_DIR_VARIABLE, "/nowhere/at/all")
    with pytest.raises(DatasetError, match="/nowhere/at/all: expected a directory"):
        datasets.load(name)


def test_auto_falls_back_to_digits_loudly(home, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = datasets.load("auto")
    assert dataset.name == "digits"
    assert "USING DIGITS INSTEAD OF CIFAR-10" in caplog.text
    assert "its download failed" in caplog.text


def test_unknown_name_lists_those_that_exist():
    with pytest.raises(ValueError, match="Unknown dataset 'mnist'.*'auto', 'cifar10'"):
        datasets.load("mnist")


@pytest.mark.parametrize(
    "code",
    [
        "from tff_fedmpq.simulation.data import augmentation, partitions",
        "from tff_fedmpq.simulation import models",
        "from tff_fedmpq.simulation import data; data.load('digits')",
    ],
)
def test_data_is_loaded_without_tensorflow(code):
    code += "; import sys; assert not {'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
