"""Every CUDA kernel, executed from nvcc's PTX with the host code's launches, against the reference.

The bound on errors: twice what plain PyTorch makes in the same dtype. The reference is PyTorch in float64,
and for results in float64 the same mathematics in 80 bits (``exact.py``). Where torch allows TF32, the bound
is twice the error of products of operands rounded to TF32.
"""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from . import nvcc

if nvcc() is None:
    pytest.skip("nvcc was not found: no PTX of our kernels to run", allow_module_level=True)

from . import exact
from .passes import (
    SHRINKAGES,
    Kernels,
    Problem,
    patches,
    torch_backward,
    torch_double_backward,
    torch_forward,
)
from .tf32 import ProductsInTf32

TENSOR_CORES = [torch.float32, torch.bfloat16, torch.float16]
DTYPES = [*TENSOR_CORES, torch.float64]
# Odd everywhere: no size is a multiple of a warp, of a block or of another size. Rows wider than a block can
# sum beside its codes take the banded path. Float32 with few terms to a sum takes the plain one.
CHANNELS = {
    ("fused", 1): 53,
    ("fused", 3): 7,
    ("banded", 1): 197,
    ("banded", 3): 23,
    ("plain", 1): 7,
    ("plain", 3): 3,
}
FEW = {
    1: {"query_shape": (1, 3, 3), "atom_shape": (2, 2, 3)},
    3: {"query_shape": (1, 2, 3), "atom_shape": (1, 3, 4), "atoms": 7},
}
MANY = {
    1: {"query_shape": (1, 3, 17), "atom_shape": (1, 3, 17)},
    3: {"query_shape": (1, 3, 17), "atom_shape": (1, 7, 8), "atoms": 53},
}
PATHS = [(path, dtype) for path in ("fused", "banded") for dtype in TENSOR_CORES]
PATHS += [("plain", torch.float32), ("plain", torch.float64)]


def sizes(path: str, receptive_field: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A problem that takes the path. In 16 bits a rounding reaches far: only few codes leave a gap."""
    shapes = (FEW if dtype.itemsize == 2 else MANY)[receptive_field]
    return {"receptive_field": receptive_field, "channels": CHANNELS[path, receptive_field], **shapes}


@functools.cache
def kernels(arch: str = "sm_80", **options: int) -> Kernels:
    return Kernels(arch, **options)


def copies(tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Fresh tensors, floating ones in ``dtype``, for autograd to mark."""
    return {
        k: v.detach().to(dtype if dtype and v.is_floating_point() else v.dtype, copy=True)
        for k, v in tensors.items()
    }


def check(results: list[Tensor], problem: Problem, dtype: torch.dtype, plain) -> None:
    """Compare with ``plain(problem, tensors)``, the pass in PyTorch."""
    tensors = problem.rounded(dtype)
    if dtype == torch.float64:
        truth = EXACT[plain](problem, tensors)
    else:
        truth = [exact.wide(want) for want in plain(problem, copies(tensors, torch.float64))]
    with ProductsInTf32() if problem.allow_tf32 else nullcontext():
        eager = plain(problem, copies(tensors))
    for got, want, rough in zip(results, truth, eager, strict=True):
        assert got.dtype == dtype
        error = exact.norm(exact.wide(got) - want)
        # Where PyTorch happens to be exact, a rounding of the result is allowed.
        rounding = exact.norm(want) * torch.finfo(dtype).eps
        allowed = 2 * max(exact.norm(exact.wide(rough) - want), rounding)
        assert error <= allowed, (
            f"error {error:.2e}, allowed {allowed:.2e}, of a result of norm {exact.norm(want):.2e}"
        )


def forward(problem: Problem, tensors: dict[str, Tensor]) -> list[Tensor]:
    return [torch_forward(problem, tensors)]


EXACT = {
    forward: exact.forward,
    torch_backward: exact.backward,
    torch_double_backward: exact.double_backward,
}


def run_all(k: Kernels, problem: Problem, dtype: torch.dtype) -> None:
    tensors = problem.rounded(dtype)
    residual, history = k.forward(problem, tensors)
    check([residual], problem, dtype, forward)
    with_history = {**tensors, "history": history}
    check(k.backward(problem, with_history), problem, dtype, torch_backward)
    check(k.double_backward(problem, with_history), problem, dtype, torch_double_backward)


@pytest.mark.parametrize(("iterations", "tasks"), [(1, 2), (2, 1), (3, 2), (4, 1)])
@pytest.mark.parametrize("receptive_field", [1, 3])
@pytest.mark.parametrize("shrinkage", SHRINKAGES)
@pytest.mark.parametrize(("path", "dtype"), PATHS, ids=lambda x: str(x).removeprefix("torch."))
def test_passes(path, dtype, shrinkage, receptive_field, iterations, tasks):
    settings = {"tasks": tasks, "shrinkage": shrinkage, "iterations": iterations}
    run_all(kernels(), Problem(**settings, **sizes(path, receptive_field, dtype)), dtype)


@pytest.mark.parametrize(("path", "dtype"), PATHS, ids=lambda x: str(x).removeprefix("torch."))
def test_the_library_says_which_path_it_takes(path, dtype):
    k, problem = kernels(), Problem(iterations=1, **sizes(path, 1, dtype))
    k.forward(problem, problem.rounded(dtype))
    kernel = next(name for name, _ in k.library.launches if "::stream<" in name)
    taken = "plain" if "Products)0" in kernel else "fused" if "ForwardStep" in kernel else "banded"
    assert k.path("forward", problem, dtype) == taken == path


@pytest.mark.parametrize(
    ("steps", "field", "paths"),
    [(3, 3, "fused fused plain"), (3, 5, "banded banded plain"), (5, 1, "banded plain plain")],
)
def test_paths_of_larger_problems(steps, field, paths):
    large = {"channels": 16, "query_shape": (1, 32, 32), "atom_shape": (4, 32, 32)}
    problem = Problem(iterations=steps, receptive_field=field, **large)
    types = (torch.bfloat16, torch.float32, torch.float64)
    assert " ".join(kernels().path("backward", problem, dtype) for dtype in types) == paths
    assert kernels("sm_75", shared_kib=64).path("backward", problem, torch.float32) == "plain"
    few = Problem(iterations=3, **large | {"query_shape": (1, 3, 3), "channels": 64})  # the backward sums 9
    told = [kernels().path(of, few, torch.float32) for of in ("forward", "backward", "peak")]
    assert told == ["fused", "plain", "fused"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shapes",
    [
        {"channels": 1, "query_shape": (1, 1, 1), "atom_shape": (1, 1, 1)},
        {"channels": 1100, "query_shape": (1, 1, 2), "atom_shape": (1, 1, 3)},
        {"channels": 33, "query_shape": (1, 5, 13), "atom_shape": (3, 5, 7)},
        {"channels": 4, "query_shape": (2, 2, 2), "atom_shape": (1, 5, 2), "receptive_field": 5},
        {"channels": 18, "query_shape": (1, 5, 13), "atom_shape": (1, 1, 65), "receptive_field": 3},
        # Soft, since SigShrink is steeper than 1 at its knee: many steps amplify any rounding.
        {
            "channels": 53,
            "query_shape": (1, 3, 17),
            "atom_shape": (1, 5, 11),
            "iterations": 7,
            "shrinkage": "soft",
        },
    ],
    ids=["one", "wide", "beyond tiles", "field 5", "fused no more", "many steps"],
)
def test_shapes(shapes, dtype):
    run_all(kernels(), Problem(**{"iterations": 2} | shapes), dtype)


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
    problem = Problem(channels=3, atom_shape=(1, 64, 128), iterations=5, **shapes)
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


@pytest.mark.parametrize("receptive_field", [1, 3])
@pytest.mark.parametrize("path", ["fused", "banded"])
def test_tf32(path, receptive_field):
    allowed = Problem(allow_tf32=True, **sizes(path, receptive_field))
    run_all(kernels(), allowed, torch.float32)
    exact, tensors = Problem(**sizes(path, receptive_field)), allowed.rounded(torch.float32)
    k = kernels()
    assert not torch.equal(k.forward(allowed, tensors)[0], k.forward(exact, tensors)[0])


@pytest.mark.parametrize("shared_kib", [100, 228])
def test_other_amounts_of_shared_memory(shared_kib):
    """Owned tiles stay in shared memory or pass through the ring: the same numbers either way."""
    problem = Problem(channels=150, query_shape=(1, 5, 14), atom_shape=(1, 9, 8))
    tensors = problem.rounded(torch.float32)
    expected, other = kernels(), kernels(shared_kib=shared_kib)
    residual, history = expected.forward(problem, tensors)
    assert torch.equal(other.forward(problem, tensors)[0], residual)
    tensors["history"] = history
    for run in (Kernels.backward, Kernels.double_backward):
        pairs = zip(run(other, problem, tensors), run(expected, problem, tensors), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("iterations", "tasks"), [(1, 2), (2, 1), (3, 2), (4, 1)])
@pytest.mark.parametrize("receptive_field", [1, 3])
@pytest.mark.parametrize("shrinkage", SHRINKAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_passes_on_sm_75(dtype, shrinkage, receptive_field, iterations, tasks):
    settings = {"tasks": tasks, "shrinkage": shrinkage, "iterations": iterations}
    problem = Problem(**settings, **sizes("plain", receptive_field))
    run_all(kernels("sm_75", shared_kib=64), problem, dtype)


def test_sm_75():
    """No tensor cores for these types: float32 takes the plain path, 16 bits are refused."""
    turing = kernels("sm_75", shared_kib=64)
    for path, receptive_field in CHANNELS:
        problem = Problem(**sizes(path, receptive_field))
        run_all(turing, problem, torch.float32)
    with pytest.raises(RuntimeError, match=r"compute capability 8\.0 or newer: use float32"):
        turing.forward(problem, problem.rounded(torch.bfloat16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("receptive_field", [1, 3])
def test_peak_atom(receptive_field, dtype):
    problem = Problem(tasks=2, **sizes("fused", receptive_field))
    tensors = problem.rounded(dtype)
    # The largest inner product, up to rounding: equal magnitudes may fall to either.
    got = kernels().peak_atom(problem, tensors)
    products = inner_products(problem, copies(tensors, torch.float64)).abs()
    chosen = products.gather(-1, got[..., None])[..., 0]
    assert (chosen >= products.amax(-1) * (1 - 1e-5)).all()


def test_peak_of_several_is_the_first():
    """Atoms at odds by sign only, in lanes, tiles and splits of their own; the number is the first."""
    problem = Problem(channels=3, query_shape=(1, 1, 13), atom_shape=(1, 10, 20), iterations=1)
    tensors = problem.rounded(torch.float32)
    tensors["atom_map"][:] = 0
    for position in (23, 24, 70, 71, 199):
        tensors["atom_map"].view(-1, 3)[position] = (-1.0) ** position
    tensors["queries"][:] = 1
    assert kernels().peak_atom(problem, tensors).tolist() == [13 * [23]]


def inner_products(problem: Problem, tensors: dict[str, Tensor]) -> Tensor:
    """⟨query patch, patch⟩ for every position of the atom map, 0 where it is no atom."""
    queries, atoms = (patches(tensors[name], problem.receptive_field) for name in ("queries", "atom_map"))
    products = queries @ atoms.mT
    if "atom_index" in tensors:
        kept = torch.zeros(products.shape[0], products.shape[2], dtype=torch.bool)
        kept.scatter_(1, tensors["atom_index"], True)
        products = products * kept[:, None]
    return products


@pytest.mark.parametrize("path", ["fused", "banded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_do_not_depend_on_the_order_of_warps(dtype, path):
    larger = {"query_shape": (2, 5, 7), "atom_shape": (1, 9, 9), "atoms": 70}
    problem = Problem(tasks=2, **sizes(path, 3) | larger)
    tensors = problem.rounded(dtype)
    expected, history = kernels().forward(problem, tensors)
    tensors["history"] = history
    gradients = kernels().double_backward(problem, tensors)
    for seed in (1, 2):
        k = kernels(seed=seed)
        assert torch.equal(k.forward(problem, tensors)[0], expected)
        got = k.double_backward(problem, tensors)
        assert all(torch.equal(a, b) for a, b in zip(got, gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_queries(dtype):
    problem = Problem(query_shape=(0, 2, 2), receptive_field=3)
    tensors = problem.rounded(dtype)
    residual, history = kernels().forward(problem, tensors)
    assert residual.shape == problem.rows
    tensors["history"] = history
    with pytest.raises(RuntimeError, match="84 of 84 elements of 'grad_atoms' were never written"):
        kernels().backward(problem, tensors)  # the caller's zeros stay as they are
