"""Fixtures that several folders share: one worker and one small problem per session.

Imports are inside, so that tests of the core run without TensorFlow Federated.
"""

from __future__ import annotations

import pytest

import tff_fedmpq  # noqa: F401  Before TensorFlow and TFF, which it prepares.


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Seeds Python, NumPy and TensorFlow, so that no test depends on those before it."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(1)


@pytest.fixture(scope="session")
def problem():
    """The small federated problem (`oracles.problem`)."""
    from oracles.problem import make_problem

    return make_problem()


@pytest.fixture(scope="session")
def runtime():
    """Starts one worker for all tests, and stops it after the last."""
    from tff_fedmpq.federated.runtime import local_runtime

    with local_runtime() as context:
        yield context


@pytest.fixture(scope="session")
def process(problem):
    """FedMPQ on the small problem."""
    return problem.build()
