"""Fixtures that several folders share: one worker and one small problem per session.

Imports are inside, so that tests of the core run without TensorFlow Federated.
"""

from __future__ import annotations

import pytest

import tff_fedmpq  # noqa: F401  Before TensorFlow and TFF, which it prepares.


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Seeds Python, NumPy and TensorFlow: no test depends on those before it."""
    from oracles.seeds import set_random_seed

    set_random_seed(1)


_ALL_TESTS = pytest.StashKey[list]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Keeps what was collected, before marks deselect some of it."""
    config.stash[_ALL_TESTS] = list(items)


@pytest.fixture
def all_tests(request):
    """The tests that were collected, also those that do not run."""
    return request.config.stash[_ALL_TESTS]


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
