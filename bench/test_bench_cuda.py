"""Sparse coding on a GPU against PyTorch, eager and compiled, and the floor of matrix products.

    pytest bench/test_bench_cuda.py --benchmark-only

The table of ratios is of device time, by events: medians of rounds that begin with a cold L2 cache and with
all launches queued. What pytest-benchmark itself prints is the wall-clock time of the native kernels,
launches included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

import pytest
import torch
from measure import OpenTable
from problem import WORKS, Problem, Shape

import fsad_ext

ROUNDS = 20
SHAPES = [
    Shape(64, 10240, 1024),
    Shape(152, 2048, 1024),
    Shape(152, 10240, 1024),
    Shape(576, 4096, 1024),  # too wide for the fused kernels
]
NUMBERS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@pytest.fixture(scope="module")
def table(open_table: OpenTable) -> list[str]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: these benches need one")
    if "cuda" not in fsad_ext.DEVICES:
        pytest.skip("a CUDA device, but this build of fsad has no kernels for it: build it where nvcc is")
    columns = f"{'native ms':>10} {'eager':>8} {'compiled':>9} {'floor':>7}"
    title = f"{torch.cuda.get_device_name()}: native device time, and times of the others as multiples of it"
    return open_table(title, f"{'d, k, n':>18} {'numbers':>9} {'work':>11} {columns}")


@pytest.fixture(params=NUMBERS)
def numbers(table: list[str], request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param not in ("float32", "float64") and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip(f"{request.param} needs compute capability 8.0 or newer")
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32" if request.param == "tf32" else "ieee"
    yield request.param
    matmul.fp32_precision = before


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.label)
def test_istc(benchmark, table: list[str], numbers: str, shape: Shape, work: str) -> None:
    problem = Problem(shape, NUMBERS[numbers], "cuda")
    contenders = {name: problem.code(name) for name in ("native", "reference")}
    if work != "second":  # torch.compile has no second derivatives
        torch.compiler.reset()
        contenders["compiled"] = torch.compile(contenders["reference"], dynamic=False)
    times = {
        name: device_milliseconds(lambda code=code: problem.run(work, code))
        for name, code in contenders.items()
    }
    times["floor"] = device_milliseconds(problem.floor(work))
    native = times["native"]
    eager, floor = (f"{times[name] / native:.2f}" for name in ("reference", "floor"))
    compiled = f"{times['compiled'] / native:.2f}" if "compiled" in times else "-"
    table.append(
        f"{shape.label:>18} {numbers:>9} {work:>11} {native:>10.3f} {eager:>8} {compiled:>9} {floor:>7}"
    )

    def native_to_the_end() -> None:
        problem.run(work, contenders["native"])
        torch.cuda.synchronize()

    benchmark.group = f"{work}, {shape.label}"
    benchmark.pedantic(native_to_the_end, rounds=5, warmup_rounds=1)


def device_milliseconds(run: Callable[[], None]) -> float:
    """The median time of the device over rounds."""
    for _ in range(3):
        run()
    cache = torch.cuda.get_device_properties().L2_cache_size
    flushed = torch.empty(2 * cache, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(ROUNDS):
        flushed.zero_()
        torch.cuda._sleep(2_000_000)  # about a millisecond, in which the launches queue up
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        run()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    return median(times)
