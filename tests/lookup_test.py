"""Variations by name, or as objects."""

from __future__ import annotations

import numpy as np
import pytest

from tff_fedmpq.lookup import check_bool, check_count, check_name, lookup

KNOWN = {"sum": sum, "max": max}


def test_a_name_gives_its_variation_and_an_object_itself():
    assert lookup("max", KNOWN, "rule") is max
    assert lookup(min, KNOWN, "rule") is min


@pytest.mark.parametrize("wrong", ["min", "", None, 1, 0.5, True])
def test_unknown_names_are_answered_with_those_that_exist(wrong):
    with pytest.raises(ValueError, match=r"Unknown rule .*\['max', 'sum'\]"):
        lookup(wrong, KNOWN, "rule")


@pytest.mark.parametrize("wrong", ["min", None, max, ["max"]])
def test_where_a_name_is_wanted_an_object_is_refused(wrong):
    check_name("max", KNOWN, "rule")
    with pytest.raises(ValueError, match="Unknown rule"):
        check_name(wrong, KNOWN, "rule")


@pytest.mark.parametrize("wrong", ["no", "", 0, 1.0, None])
def test_what_is_neither_true_nor_false_is_refused(wrong):
    check_bool(False, "saturate")
    with pytest.raises(ValueError, match="saturate has to be true or false"):
        check_bool(wrong, "saturate")


@pytest.mark.parametrize("wrong", [0, -1, 2.5, 2.0, "2", None, float("nan")])
def test_what_is_no_count_is_refused(wrong):
    check_count(np.int64(1), "epochs")
    with pytest.raises(ValueError, match="epochs has to be a whole number of at least"):
        check_count(wrong, "epochs")
