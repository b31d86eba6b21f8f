"""Traffic of the kernels at realistic sizes, by the counters: a budget that no timing here could give."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from . import nvcc

if nvcc() is None:
    pytest.skip("nvcc was not found: no PTX of our kernels to run", allow_module_level=True)

from .gpu import Counters
from .passes import Kernels, Problem, dictionary, patches
from .test_kernels import kernels

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
from roofline.memory import Launch, Size, patch_fill
from roofline.passes import BACKWARD_ATOMS, DOUBLE_DUAL, FORWARD, Kernel, band_kernels, fused_kernels
from roofline.tiling import padded_width

KIB = 164  # of shared memory on a multiprocessor of an A100
PASSES = {
    "forward": (Kernels.forward, FORWARD),
    "backward": (Kernels.backward, BACKWARD_ATOMS),
    "double backward": (Kernels.double_backward, DOUBLE_DUAL),
}
LARGE = {"query_shape": (1, 1, 256), "atom_shape": (1, 1, 2048)}
# Patches over borders, of a part of the positions.
FIELD = {"query_shape": (1, 8, 16), "atom_shape": (1, 20, 20), "atoms": 256, "receptive_field": 3}


def launched(launches: list[tuple[str, Counters]], name: str) -> list[Counters]:
    return [counters for kernel, counters in launches if name in kernel]


def hold(what: str, kernel: Kernel, counters: Counters, problem: Problem, dtype: torch.dtype) -> Launch:
    """Conflicts, use of sectors and bytes of a streaming kernel, against what its tiles need."""
    fill = patch_fill(*problem.atom_shape[1:], problem.receptive_field)
    size = Size(
        queries=problem.rows[1],
        atoms=problem.kept_atoms,
        width=padded_width(problem.channels, dtype.itemsize) * problem.receptive_field**2,
        atom_fill=fill,
        indexed=problem.atoms is not None,
    )
    launch = Launch(kernel, size, dtype.itemsize, KIB * 1024)
    assert counters.bank_conflicts <= 0.02, what
    assert counters.sector_use >= 0.9, what
    assert counters.global_bytes <= 1.25 * launch.global_bytes(), what
    return launch


@pytest.mark.parametrize(
    ("path", "dtype", "settings"),
    [
        ("fused", torch.bfloat16, {**LARGE, "channels": 152, "iterations": 1}),
        ("fused", torch.float32, {**LARGE, "channels": 152, "iterations": 1}),
        ("banded", torch.bfloat16, {**LARGE, "channels": 208, "iterations": 1}),
        ("fused", torch.float16, {**FIELD, "channels": 16, "iterations": 3}),
        ("fused", torch.float32, {**FIELD, "channels": 16, "iterations": 1}),
        ("banded", torch.float16, {**FIELD, "channels": 32, "iterations": 3}),
        ("fused", torch.float32, {**FIELD, "channels": 16, "iterations": 2, "allow_tf32": True}),
        ("banded", torch.float32, {**FIELD, "channels": 32, "iterations": 1, "allow_tf32": True}),
    ],
    ids=lambda x: "-".join(map(str, x.values())) if isinstance(x, dict) else str(x),
)
@pytest.mark.slow
def test_budgets(path, dtype, settings):
    problem, k = Problem(**settings), kernels()
    tensors, steps = problem.rounded(dtype), problem.iterations
    assert k.path("backward", problem, dtype) == path
    planned = fused_kernels if path == "fused" else band_kernels
    for name, (run, which) in PASSES.items():
        results = run(k, problem, tensors)
        if name == "forward":
            tensors["history"] = results[1]
        counted = launched(k.library.launches, "::stream<")
        for i, (kernel, counters) in enumerate(zip(planned(which, steps), counted, strict=True)):
            launch = hold(f"{name}, kernel {i}", kernel, counters, problem, dtype)
            if kernel.fused:  # nothing but the sums of every split is stored: no codes, nor gradients of them
                stored = counters.total("used_bytes", "global_store")
                assert stored == 4 * launch.size.width * launch.owned * launch.splits, f"{name}, kernel {i}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("settings", [{**LARGE, "channels": 152}, {**FIELD, "channels": 16}], ids=["1", "3"])
def test_budgets_of_the_peak_search(settings, dtype):
    problem, k = Problem(**settings), kernels()
    k.peak_atom(problem, problem.rounded(dtype))
    (counters,) = launched(k.library.launches, "::stream<")
    hold("peak_atom", Kernel("PeakRule", "peak", ("r0",)), counters, problem, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "settings",
    [{**LARGE, "atom_shape": (1, 16, 16), "channels": 160}, {**FIELD, "channels": 16}],
    ids=["1", "3"],
)
def test_budgets_of_packing_and_unpacking(settings, dtype):
    """Im2Col of the queries and Col2Im of the dictionary's gradient touch every number once."""
    problem, k = Problem(iterations=1, **settings), kernels()
    tensors = problem.rounded(dtype)
    tensors["history"] = k.forward(problem, tensors)[1]
    (pack,) = launched(k.library.launches, "pack_kernel<")
    k.backward(problem, tensors)
    unpack, _ = launched(k.library.launches, "unpack_kernel<")
    ones = {name: torch.ones_like(t) if t.is_floating_point() else t for name, t in tensors.items()}
    size, warp = dtype.itemsize, 32
    (_, queries, width), positions = problem.rows, tensors["atom_map"].numel()
    read = int(patches(ones["queries"], problem.receptive_field).sum())
    # Beside the numbers: a sector for a warp's factor, and one for its rows of atoms at every offset.
    needed = size * (read + queries * width) + 32 * queries * width / warp
    assert pack.global_bytes <= 1.25 * needed
    read = int(dictionary(problem, ones).sum())
    indexed = (problem.atoms is not None) * problem.receptive_field**2
    assert unpack.global_bytes <= 1.25 * (4 * read + size * positions + 32 * indexed * positions / warp)
    for counters in (pack, unpack):
        sectors, used, issues = (counters.columns[name] for name in ("sectors", "used_bytes", "issues"))
        coalesced = used >= 0.9 * 32 * sectors
        assert (coalesced | (sectors <= 1.5 * issues)).all()  # or near enough one number a warp
