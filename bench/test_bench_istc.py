"""Sparse coding on the CPU, native against the pure-PyTorch reference and the floor.

    pytest bench/test_bench_istc.py --benchmark-only

Compare times within one group of one run only.
"""

from __future__ import annotations

import pytest
from problem import PRODUCTS, SHAPES, Problem


@pytest.mark.parametrize("contender", ["native", "reference", "floor"])
@pytest.mark.parametrize("work", [work for work in PRODUCTS if work != "second"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_istc(benchmark, shape: tuple[int, int, int], work: str, contender: str) -> None:
    benchmark.group = f"{work}, d={shape[0]} k={shape[1]} n={shape[2]}"
    problem = Problem(*shape)
    if contender == "floor":
        benchmark.pedantic(problem.floor(work), rounds=5, warmup_rounds=1)
    else:
        benchmark.pedantic(problem.run, args=(work, problem.code(contender)), rounds=5, warmup_rounds=1)
