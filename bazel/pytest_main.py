"""Runs pytest on the test file named by the Bazel target.

Usage: pytest_main.py FILE, where FILE is relative to the workspace's root.
"""

from __future__ import annotations

import sys

import pytest

if __name__ == "__main__":
    # Bazel starts tests in the root of their runfiles, a copy of the workspace.
    sys.exit(pytest.main(["-p", "no:cacheprovider", "-m", "not slow", *sys.argv[1:]]))
