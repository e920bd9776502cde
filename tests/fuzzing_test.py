"""Any bytes are refused by a typed error, or are what they say, in every parser."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from oracles import parsers

# Slower targets get fewer of them; `.ci/fuzz.py` runs all for minutes.
_CASES = {"messages": 25, "packed_files": 60, "tiny_imagenet_files": 100}


@pytest.mark.faults
@pytest.mark.parametrize("name", parsers.TARGETS)
def test_any_bytes_are_refused_or_are_what_they_say(name):
    target = parsers.TARGETS[name]
    found = set()

    @settings(
        max_examples=_CASES.get(name, 300),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(script=st.binary(max_size=40))
    @example(script=b"\0\0\0\1")  # Nothing is edited.
    def check(script):
        found.add(target(script))

    check()
    assert found == {parsers.REFUSED, parsers.TAKEN}
