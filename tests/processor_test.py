"""What is known of the processor, and whether TensorFlow is told to use oneDNN."""

from __future__ import annotations

import os
import sys

import pytest

from tff_fedmpq import processor


@pytest.fixture
def cpu_info(tmp_path):
    """Returns (text) -> path of a list of processors."""

    def write(text):
        path = tmp_path / "cpuinfo"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("flags\t\t: fpu sse2 avx2 avx512f\n", False),
        ("flags\t\t: my_avx512_bf16_emulated\n", False),
        ("vmx flags\t: avx512_bf16\n", False),
        ("Features\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_bfloat16_is_fast_by_the_processors_flags(cpu_info, tmp_path, text, fast):
    features = processor.processor_features(cpu_info(text))
    no_gpu = tmp_path / "none"
    assert processor.has_fast_bfloat16(features, no_gpu) is fast


def test_bfloat16_is_slow_without_onednn(monkeypatch, tmp_path):
    features, no_gpu = frozenset({"avx512_bf16"}), tmp_path / "none"
    monkeypatch.setenv(processor.ONEDNN_VARIABLE, "1")
    assert processor.has_fast_bfloat16(features, no_gpu)
    monkeypatch.setenv(processor.ONEDNN_VARIABLE, "0")
    assert not processor.has_fast_bfloat16(features, no_gpu)


def test_where_a_gpu_is_used_nothing_is_known_of_its_speed(tmp_path):
    assert not processor.has_fast_bfloat16(frozenset({"avx512_bf16"}), tmp_path)


def test_without_a_list_of_processors_nothing_is_known(tmp_path):
    assert processor.processor_features(tmp_path / "none") == frozenset()
    assert processor.processor_name(tmp_path / "none")


def test_the_name_is_that_of_the_first_processor(cpu_info):
    text = "processor\t: 0\nmodel\t\t: 17\nmodel name\t: Some CPU @ 2 GHz\n"
    path = cpu_info(text + text.replace("Some", "Other"))
    assert processor.processor_name(path) == "Some CPU @ 2 GHz"


@pytest.mark.parametrize(
    ("features", "expected"),
    [({"avx2"}, "1"), ({"avx512f", "sse2"}, "1"), ({"sse2"}, None), (set(), None)],
)
def test_onednn_is_for_wide_vectors(features, expected):
    found = processor.onednn_environment(frozenset(features))
    assert found.get(processor.ONEDNN_VARIABLE) == expected


@pytest.fixture
def environment(monkeypatch):
    """Of a processor with AVX2, before TensorFlow is imported."""
    monkeypatch.setattr(processor, "processor_features", lambda: frozenset({"avx2"}))
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setenv(processor.ONEDNN_VARIABLE, "")
    monkeypatch.delenv(processor.ONEDNN_VARIABLE)
    return os.environ


def test_onednn_is_enabled_before_tensorflow_is_imported(environment):
    assert processor.onednn_setting() == "TensorFlow's default"
    processor.enable_onednn()
    assert environment[processor.ONEDNN_VARIABLE] == "1"
    assert processor.onednn_setting() == "on"


def test_the_users_setting_has_priority(environment, monkeypatch):
    monkeypatch.setenv(processor.ONEDNN_VARIABLE, "0")
    processor.enable_onednn()
    assert environment[processor.ONEDNN_VARIABLE] == "0"
    assert processor.onednn_setting() == "off"


def test_once_tensorflow_is_imported_the_log_says_what_is_missing(
    environment, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "tensorflow", object())
    with caplog.at_level("INFO", logger="absl"):
        processor.enable_onednn()
    assert processor.ONEDNN_VARIABLE not in environment
    assert f"set {processor.ONEDNN_VARIABLE}=1" in caplog.text
