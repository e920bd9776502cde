"""Benchmarks: `python -m benchmarks` runs all, `python -m benchmarks.<name>` one.

Each writes `docs/results/performance/<name>.json`; `docs/performance.md` is made from
these files by `python -m benchmarks.report`.
"""

import os

# TensorFlow's start-up notes say nothing about a benchmark.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tff_fedmpq  # noqa: F401  Before TensorFlow, which it prepares.
