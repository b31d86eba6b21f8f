"""Bands of queries and windows of atoms: the same results in workspaces of bounded size."""

from __future__ import annotations

import pytest
import torch

from . import nvcc

if nvcc() is None:
    pytest.skip("nvcc was not found: no PTX of our kernels to run", allow_module_level=True)

from . import exact
from .passes import Problem, torch_backward, torch_double_backward
from .test_kernels import check, forward, kernels, run_all


@pytest.mark.parametrize(
    "shapes",
    [
        {"tasks": 1, "query_shape": (1, 7, 11)},  # rows of one task
        {"tasks": 3, "query_shape": (1, 4, 5)},  # two tasks, then one
    ],
    ids=["rows", "tasks"],
)
def test_several_bands(shapes):
    """More codes than the workspace of a band holds; gradients of atoms add up over bands."""
    problem = Problem(channels=3, atom_shape=(1, 8, 16), iterations=5, limit_divisor=64, **shapes)
    run_all(kernels(), problem, torch.bfloat16)
    rows = problem.tasks * problem.rows[1]
    every_code = 4 * 4 * problem.iterations * rows * problem.kept_atoms
    assert kernels().workspace_bytes < every_code


# In windows of 64 atoms: codes of 15 queries in 1, 4 and 8 places.
WINDOWS = {"forward": (8192, forward), "backward": (2048, torch_backward)}
WINDOWS["double_backward"] = (1024, torch_double_backward)


@pytest.mark.parametrize(
    ("dtype", "shapes"),
    [
        (torch.bfloat16, {"channels": 23, "atom_shape": (2, 9, 11), "atoms": 140}),
        (torch.float32, {"channels": 5, "atom_shape": (2, 7, 11)}),  # all positions, over borders of maps
    ],
    ids=["banded, thinned", "plain"],
)
def test_windows_of_atoms(dtype, shapes):
    """Where 16 rows of all codes are more than the workspace may hold, it holds a window of atoms."""
    shapes = {"tasks": 2, "query_shape": (1, 3, 5), "receptive_field": 3, "iterations": 2, **shapes}
    problem, tensors = Problem(**shapes), Problem(**shapes).rounded(dtype)
    k = kernels()
    for name, (divisor, plain) in WINDOWS.items():
        problem.limit_divisor = 1
        whole, launches = getattr(k, name)(problem, tensors), len(k.library.launches)
        problem.limit_divisor = divisor
        results = getattr(k, name)(problem, tensors)
        assert len(k.library.launches) > 3 * launches
        for one, other in zip(results, whole, strict=True):
            difference = exact.norm(exact.wide(one) - exact.wide(other))
            assert difference <= 2 * torch.finfo(dtype).eps * exact.norm(exact.wide(other))
        if name == "forward":
            tensors["history"] = whole[1]
        check(results[:1] if name == "forward" else results, problem, dtype, plain)


def test_windows_of_atoms_in_bands_of_queries():
    """Gradients of atoms add up over bands within a window."""
    problem = Problem(channels=3, query_shape=(1, 13, 20), atom_shape=(1, 10, 103), iterations=1)
    problem.limit_divisor = 64
    run_all(kernels(), problem, torch.float64)


@pytest.mark.parametrize("name", WINDOWS)
def test_codes_take_a_bounded_workspace(name):
    """However many the atoms: codes and partial sums together at most 64 MiB, here divided."""
    taken = []
    for height in (7, 14):
        shapes = {"query_shape": (1, 3, 5), "atom_shape": (1, height, 20), "receptive_field": 3}
        problem = Problem(channels=5, iterations=2, limit_divisor=WINDOWS[name][0], **shapes)
        tensors = problem.rounded(torch.float32)
        tensors["history"] = tensors["grad_residual"][None]
        getattr(kernels(), name)(problem, tensors)
        queries, atoms = problem.rows[1], problem.kept_atoms
        sets = {"forward": 2, "backward": 5, "double_backward": 9}[name]  # r, h, ṙ, r'
        reverse = name != "forward"
        # Positions; maps with padding; rows of D̄, of the gradients of patches, of sums over windows.
        arrays = 8 * atoms + 4 * 8 * atoms * (1 + (name == "double_backward"))
        arrays += 4 * 72 * (reverse * (atoms + queries) + (sets + 1) * queries)
        # Of a single split, which is affordable always, those of all queries and of a window of atoms.
        results = 4 * 72 * (queries + reverse * 64)
        taken.append(kernels().workspace_bytes - arrays)
        assert taken[-1] <= results + (64 << 20) / problem.limit_divisor
    assert taken[0] == taken[1]
