"""A differentiable Langevin chain of five steps, and one training episode: native against the reference.

    pytest bench/test_bench_training.py --benchmark-only

Both need second derivatives, which torch.compile refuses. "without coding" is the network's share.
"""

from __future__ import annotations

import pytest
from episode import Training
from measure import OpenTable, header, interleave

ROUNDS = 5
OTHERS = ("eager", "floor", "without coding")


@pytest.fixture(scope="module")
def table(open_table: OpenTable) -> list[str]:
    title = "second order at 64 px: native time, and times of the others as multiples of it"
    return open_table(title, f"{'work':>8} {header(OTHERS)}")


@pytest.mark.parametrize("work", ["chain", "episode"])
def test_training(benchmark, table: list[str], work: str) -> None:
    training = Training()
    names = ("native", "eager", "without coding")
    contenders = {name: getattr(training, work)(name) for name in names}
    times = interleave(contenders | {"floor": training.floor(work)}, ROUNDS)
    table.append(f"{work:>8} {times.row(OTHERS)}")
    benchmark.group = work
    benchmark.pedantic(contenders["native"], rounds=ROUNDS, warmup_rounds=1)
