"""Fixtures of several files."""

import copy

import pytest
from detectors import NORMAL, make


@pytest.fixture(scope="session")
def adapted():
    """To look at; ``detector`` is a copy to work with."""
    return make().fit(NORMAL)


@pytest.fixture
def detector(adapted):
    return copy.deepcopy(adapted)
