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
from .passes import Kernels, Problem
from .test_kernels import kernels

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
from roofline.memory import Launch, Size
from roofline.passes import BACKWARD_ATOMS, DOUBLE_DUAL, FORWARD, band_kernels, fused_kernels

KIB = 164  # of shared memory on a multiprocessor of an A100
PASSES = {
    "forward": (Kernels.forward, FORWARD),
    "backward": (Kernels.backward, BACKWARD_ATOMS),
    "double backward": (Kernels.double_backward, DOUBLE_DUAL),
}


def streaming(launches: list[tuple[str, Counters]]) -> list[Counters]:
    return [counters for name, counters in launches if "::stream<" in name]


@pytest.mark.parametrize(
    ("dtype", "channels", "atoms", "steps"),
    [
        (torch.bfloat16, 152, 2048, 2),
        (torch.float32, 152, 2048, 1),
        (torch.bfloat16, 576, 2048, 1),  # banded
    ],
    ids=str,
)
@pytest.mark.slow
def test_budgets(dtype, channels, atoms, steps):
    queries = 256
    problem = Problem(
        query_shape=(1, 1, queries), atom_shape=(1, 1, atoms), channels=channels, iterations=steps
    )
    k = kernels()
    tensors = problem.rounded(dtype)
    per_step = 32 // dtype.itemsize
    width = -(-channels // per_step) * per_step
    size = Size(queries=queries, atoms=atoms, width=width)
    planned = fused_kernels if channels == 152 else band_kernels
    for name, (run, which) in PASSES.items():
        results = run(k, problem, tensors)
        if name == "forward":
            tensors["history"] = results[1]
        counted = streaming(k.library.launches)
        for i, (kernel, counters) in enumerate(zip(planned(which, steps), counted, strict=True)):
            what = f"{name}, kernel {i}"
            assert counters.bank_conflicts <= 0.02, what
            assert counters.sector_use >= 0.9, what
            launch = Launch(kernel, size, dtype.itemsize, KIB * 1024)
            assert counters.global_bytes <= 1.25 * launch.global_bytes(), what
            if kernel.fused:  # nothing but the sums of every split is stored: no codes, nor gradients of them
                stored = counters.total("used_bytes", "global_store")
                assert stored == 4 * width * launch.owned * launch.splits, what
