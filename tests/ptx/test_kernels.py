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
# The plain path is compiled for all GPUs: in float32 it is that of old ones, in float64 that of all.
GRID = [("sm_80", *taken) for taken in PATHS if taken != ("plain", torch.float32)]
GRID += [("sm_75", "plain", torch.float32)]
REST = [("sm_80", "plain", torch.float32), ("sm_75", "plain", torch.float64)]
NAMES = {"ids": lambda x: str(x).removeprefix("torch.")}


def sizes(path: str, receptive_field: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A problem that takes the path. In 16 bits a rounding reaches far: only few codes leave a gap."""
    shapes = (FEW if dtype.itemsize == 2 else MANY)[receptive_field]
    return {"receptive_field": receptive_field, "channels": CHANNELS[path, receptive_field], **shapes}


@functools.cache
def kernels(arch: str = "sm_80") -> Kernels:
    return Kernels(arch, shared_kib={"sm_80": 164, "sm_75": 64}[arch])


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


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
@pytest.mark.parametrize("receptive_field", [1, 3])
@pytest.mark.parametrize("shrinkage", SHRINKAGES)
@pytest.mark.parametrize(("arch", "path", "dtype"), GRID, **NAMES)
def test_passes(arch, path, dtype, shrinkage, receptive_field, iterations, tasks):
    settings = {"tasks": tasks, "shrinkage": shrinkage, "iterations": iterations}
    run_all(kernels(arch), Problem(**settings, **sizes(path, receptive_field, dtype)), dtype)


@pytest.mark.parametrize("receptive_field", [1, 3])
@pytest.mark.parametrize("shrinkage", SHRINKAGES)
@pytest.mark.parametrize(("arch", "path", "dtype"), REST, **NAMES)
def test_passes_of_the_other_compilation(arch, path, dtype, shrinkage, receptive_field):
    problem = Problem(tasks=2, shrinkage=shrinkage, **sizes(path, receptive_field, dtype))
    run_all(kernels(arch), problem, dtype)


@pytest.mark.parametrize(("path", "dtype"), PATHS, **NAMES)
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
    assert kernels("sm_75").path("backward", problem, torch.float32) == "plain"
    few = Problem(iterations=3, **large | {"query_shape": (1, 3, 3), "channels": 64})  # the backward sums 9
    told = [kernels().path(of, few, torch.float32) for of in ("forward", "backward", "peak")]
    assert told == ["fused", "plain", "fused"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shapes",
    [
        {"channels": 1, "query_shape": (1, 1, 1), "atom_shape": (1, 1, 1)},
        {"channels": 1100, "query_shape": (1, 1, 2), "atom_shape": (1, 1, 3)},
        {"channels": 4, "query_shape": (2, 2, 2), "atom_shape": (1, 5, 2), "receptive_field": 5},
        # Soft, since SigShrink is steeper than 1 at its knee: many steps amplify any rounding.
        {
            "channels": 53,
            "query_shape": (1, 3, 17),
            "atom_shape": (1, 5, 11),
            "iterations": 7,
            "shrinkage": "soft",
        },
    ],
    ids=["one", "wide", "field 5", "many steps"],
)
def test_shapes(shapes, dtype):
    run_all(kernels(), Problem(**{"iterations": 2} | shapes), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "shapes",
    [
        {"channels": 33, "atom_shape": (3, 5, 7)},
        {"channels": 18, "atom_shape": (1, 1, 65), "receptive_field": 3},  # too wide to be fused
    ],
    ids=["1", "3"],
)
def test_beyond_tiles(shapes, dtype):
    run_all(kernels(), Problem(iterations=2, query_shape=(1, 5, 13), **shapes), dtype)


@pytest.mark.parametrize(
    ("path", "iterations"), [("fused", 1), ("fused", 2), ("fused", 3), ("fused", 4), ("banded", 3)]
)
@pytest.mark.parametrize("receptive_field", [1, 3])
@pytest.mark.parametrize("shrinkage", SHRINKAGES)
def test_tf32(path, shrinkage, receptive_field, iterations):
    settings = {"shrinkage": shrinkage, "iterations": iterations, **sizes(path, receptive_field)}
    allowed, full = Problem(allow_tf32=True, **settings), Problem(**settings)
    run_all(kernels(), allowed, torch.float32)
    tensors = allowed.rounded(torch.float32)
    one, other = (kernels().forward(problem, tensors)[0] for problem in (allowed, full))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shrinkage", ["none", "sigshrink"])  # soft leaves no gap between so many codes
@pytest.mark.parametrize(
    ("path", "channels", "field"), [("fused", 61, 1), ("fused", 11, 3), ("banded", 197, 1), ("banded", 23, 3)]
)
def test_sixteen_bits_beyond_tiles(path, channels, field, shrinkage, dtype):
    """One query more than a block owns, atoms beyond a streamed tile, of prime widths."""
    shapes = {"query_shape": (1, 5, 13), "atom_shape": (1, 1, 67), "receptive_field": field}
    problem = Problem(channels=channels, iterations=2, shrinkage=shrinkage, **shapes)
    assert kernels().path("backward", problem, dtype) == path
    run_all(kernels(), problem, dtype)


def every_result(problem: Problem, dtype: torch.dtype) -> list[Tensor]:
    """Of all three passes."""
    k, tensors = kernels(), problem.rounded(dtype)
    residual, history = k.forward(problem, tensors)
    tensors["history"] = history
    return [residual, history, *k.backward(problem, tensors), *k.double_backward(problem, tensors)]


def test_other_amounts_of_shared_memory(monkeypatch):
    """Owned tiles stay in shared memory or pass through the ring: the same numbers either way."""
    problem = Problem(channels=150, query_shape=(1, 5, 14), atom_shape=(1, 9, 8), iterations=2)
    expected = every_result(problem, torch.float32)
    for shared_kib in (100, 228):
        monkeypatch.setattr(kernels().library, "device", (8, shared_kib * 1024))
        assert all(map(torch.equal, every_result(problem, torch.float32), expected))


def test_sm_75():
    """No tensor cores for these types: float32 takes the plain path, 16 bits are refused."""
    turing = kernels("sm_75")
    for path, receptive_field in CHANNELS:
        problem = Problem(iterations=1, **sizes(path, receptive_field))
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
def test_results_do_not_depend_on_the_order_of_warps(dtype, path, monkeypatch):
    larger = {"query_shape": (2, 5, 7), "atom_shape": (1, 9, 9), "atoms": 70, "iterations": 2}
    problem = Problem(tasks=2, **sizes(path, 3) | larger)
    expected = every_result(problem, dtype)
    for seed in (1, 2):
        monkeypatch.setattr(kernels().library, "seed", seed)
        assert all(map(torch.equal, every_result(problem, dtype), expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_queries(dtype):
    problem = Problem(query_shape=(0, 2, 2), receptive_field=3)
    tensors = problem.rounded(dtype)
    residual, history = kernels().forward(problem, tensors)
    assert residual.shape == problem.rows
    tensors["history"] = history
    with pytest.raises(RuntimeError, match="84 of 84 elements of 'grad_atoms' were never written"):
        kernels().backward(problem, tensors)  # the caller's zeros stay as they are
