"""Fixtures of several files."""

import copy

import pytest
import torch
from detectors import NORMAL, make


@pytest.fixture(scope="session")
def adapted():
    """To look at; ``detector`` is a copy to work with."""
    return make().fit(NORMAL)


@pytest.fixture
def detector(adapted):
    return copy.deepcopy(adapted)


@pytest.fixture
def two_threads():
    """`make test` gives each of its processes one; the kernels are also to be right where work is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
