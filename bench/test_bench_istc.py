"""The operators on the CPU: native, the pure-PyTorch reference as it is and compiled, and the floor.

    pytest bench/test_bench_istc.py --benchmark-only

The table at the end is of interleaved rounds; pytest-benchmark's own table is of the native kernels alone.
"""

from __future__ import annotations

import pytest
from measure import OpenTable, contenders, header, interleave
from problem import COLUMNS, WORKS, Problem, Shape

ROUNDS = 5
OTHERS = ("eager", "compiled", "floor")


@pytest.fixture(scope="module")
def table(open_table: OpenTable) -> list[str]:
    title = "sparse coding: native time, and times of the others as multiples of it"
    return open_table(title, f"{'d, k, n':>28} {'work':>11} {header(OTHERS)}")


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("shape", COLUMNS, ids=lambda shape: shape.label)
def test_coding(benchmark, table: list[str], shape: Shape, work: str) -> None:
    made = contenders(Problem(shape), work)
    times = interleave(made, ROUNDS)
    table.append(f"{shape.label:>28} {work:>11} {times.row(OTHERS)}")
    benchmark.group = f"{work}, {shape.label}"
    benchmark.pedantic(made["native"], rounds=ROUNDS, warmup_rounds=1)
