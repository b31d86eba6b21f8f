"""Every CUDA kernel, executed from nvcc's PTX with the host code's launches, against the reference.

The bound on errors: twice what plain PyTorch makes in the same dtype. For float64 there is no better
reference than PyTorch in float64, which loses more digits than the kernels do (autograd of a sigmoid
subtracts nearly equal numbers): there the bound is 32 times PyTorch's float32 error, scaled by the ratio of
the two epsilons.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from . import nvcc

if nvcc() is None:
    pytest.skip("nvcc was not found: no PTX of our kernels to run", allow_module_level=True)

from .passes import (
    SHRINKAGES,
    Kernels,
    Problem,
    patches,
    torch_backward,
    torch_double_backward,
    torch_forward,
)

DTYPES = [torch.float32, torch.float64]
# Odd everywhere: no size is a multiple of a warp, of a block or of another size.
SMALL = {
    1: {"query_shape": (1, 3, 3), "atom_shape": (2, 2, 3), "channels": 7},
    3: {"query_shape": (1, 2, 3), "atom_shape": (1, 3, 4), "channels": 5, "atoms": 7},
}


@functools.cache
def kernels(arch: str = "sm_80", seed: int = 0, max_blocks: int | None = None) -> Kernels:
    return Kernels(arch, seed, max_blocks)


def copies(tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Fresh tensors, floating ones in ``dtype``, for autograd to mark."""
    return {
        k: v.detach().to(dtype if dtype and v.is_floating_point() else v.dtype, copy=True)
        for k, v in tensors.items()
    }


def norm(tensor: Tensor) -> float:
    return float(tensor.double().norm())


def check(results: list[Tensor], problem: Problem, dtype: torch.dtype, plain) -> None:
    """Compare with ``plain(problem, tensors)``, the pass in PyTorch."""
    single = problem.rounded(torch.float32)
    double = copies(problem.rounded(dtype), torch.float64)
    exact = plain(problem, double)
    eager = plain(problem, copies(single))
    eager_exact = plain(problem, copies(single, torch.float64))
    scale = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    factor = 2 if dtype == torch.float32 else 32
    for got, want, rough, fine in zip(results, exact, eager, eager_exact, strict=True):
        assert got.dtype == dtype
        error = norm(got - want)
        # Where PyTorch happens to be exact, a rounding of the result is allowed.
        allowed = factor * max(norm(rough - fine), norm(fine) * torch.finfo(torch.float32).eps)
        assert error <= allowed * scale, (
            f"error {error:.2e}, allowed {allowed * scale:.2e}, of a result of norm {norm(want):.2e}"
        )


def forward(problem: Problem, tensors: dict[str, Tensor]) -> list[Tensor]:
    return [torch_forward(problem, tensors)]


def run_all(k: Kernels, problem: Problem, dtype: torch.dtype) -> None:
    tensors = problem.rounded(dtype)
    residual, history = k.forward(problem, tensors)
    check([residual], problem, dtype, forward)
    with_history = {**tensors, "history": history}
    check(k.backward(problem, with_history), problem, dtype, torch_backward)
    check(k.double_backward(problem, with_history), problem, dtype, torch_double_backward)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
@pytest.mark.parametrize("receptive_field", [1, 3])
@pytest.mark.parametrize("shrinkage", SHRINKAGES)
def test_passes(shrinkage, receptive_field, iterations, tasks, dtype):
    sizes = SMALL[receptive_field]
    problem = Problem(
        tasks=tasks,
        shrinkage=shrinkage,
        iterations=iterations,
        receptive_field=receptive_field,
        **sizes,
    )
    run_all(kernels(), problem, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        {"channels": 1, "query_shape": (1, 1, 1), "atom_shape": (1, 1, 1)},
        {"channels": 1200, "query_shape": (1, 1, 2), "atom_shape": (1, 1, 3)},  # several chunks
        {"channels": 33, "query_shape": (1, 2, 1), "atom_shape": (3, 5, 7)},
        {"channels": 4, "query_shape": (2, 2, 2), "atom_shape": (1, 5, 2), "receptive_field": 5},
    ],
    ids=["one", "wide", "many atoms", "field 5"],
)
def test_shapes(sizes, dtype):
    run_all(kernels(), Problem(iterations=2, **sizes), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("receptive_field", [1, 3])
def test_peak_atom(receptive_field, dtype):
    problem = Problem(tasks=2, receptive_field=receptive_field, **SMALL[receptive_field])
    tensors = problem.rounded(dtype)
    # The largest inner product, up to rounding: equal magnitudes may fall to either.
    got = kernels().peak_atom(problem, tensors)
    problem.iterations, problem.shrinkage, problem.lambdas = 1, "none", [0.0]
    products = inner_products(problem, copies(tensors, torch.float64)).abs()
    chosen = products.gather(-1, got[..., None])[..., 0]
    assert (chosen >= products.amax(-1) * (1 - 1e-5)).all()


def inner_products(problem: Problem, tensors: dict[str, Tensor]) -> Tensor:
    """⟨query patch, patch⟩ for every position of the atom map, −∞ … 0 where it is no atom."""
    queries, atoms = (patches(tensors[name], problem.receptive_field) for name in ("queries", "atom_map"))
    products = queries @ atoms.mT
    if "atom_index" in tensors:
        kept = torch.zeros(products.shape[0], products.shape[2], dtype=torch.bool)
        kept.scatter_(1, tensors["atom_index"], True)
        products = products * kept[:, None]
    return products


@pytest.mark.parametrize("seed", [1, 2])
def test_results_do_not_depend_on_the_order_of_warps(seed):
    problem = Problem(tasks=2, receptive_field=3, **SMALL[3])
    tensors = problem.rounded(torch.float32)
    expected, history = kernels().forward(problem, tensors)
    assert torch.equal(kernels(seed=seed).forward(problem, tensors)[0], expected)
    tensors["history"] = history
    expected = kernels().backward(problem, tensors)
    got = kernels(seed=seed).backward(problem, tensors)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("seed", [1, 2])
def test_more_work_than_blocks(seed):
    """Blocks that loop over several rows of results: shared memory is used again and again."""
    few = kernels(seed=seed, max_blocks=2)
    problem = Problem(tasks=2, receptive_field=3, **SMALL[3])
    run_all(few, problem, torch.float32)
    tensors = problem.rounded(torch.float32)
    assert torch.equal(few.peak_atom(problem, tensors), kernels().peak_atom(problem, tensors))


def test_sm_75():
    run_all(kernels("sm_75"), Problem(receptive_field=3, **SMALL[3]), torch.float32)


def test_no_codes_in_global_memory():
    """Nothing of size n·k is ever written: every buffer is one of the caller's or of known size."""
    problem = Problem(query_shape=(1, 4, 8), atom_shape=(1, 8, 8), channels=3, iterations=2)
    k = kernels()
    k.library.launches.clear()
    k.forward(problem, problem.rounded(torch.float32))
    written = sum(c.total("used_bytes", "global_store") for _, c in k.library.launches)
    n, d = 32, 3
    assert written == 4 * n * d * (1 + problem.iterations)  # z, r_1, r_2
