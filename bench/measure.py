"""Times that can be compared: contenders take turns, so that whatever drifts hits them all alike."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import ceil
from statistics import median
from time import perf_counter

import torch
from problem import Problem

Run = Callable[[], object]
OpenTable = Callable[[str, str], list[str]]  # the fixture ``open_table``

CONTENDERS = ("native", "eager", "compiled", "floor")
WIDTH = 14  # of a column of tables in the terminal
LONG_ENOUGH = 20.0  # seconds


@dataclass(frozen=True)
class Times:
    """Seconds a call, contender by contender, in each round."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return median(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """The median of the rounds' ratios: a slow round slows both, and leaves its ratio as it is."""
        return median(a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True))

    def row(self, others: Iterable[str]) -> str:
        """Milliseconds of ``"native"``, and the others as multiples of it, or "-"; see ``header``."""
        cells = [f"{self.ratio(name, 'native'):.2f}" if name in self.seconds else "-" for name in others]
        return f"{1000 * self.median('native'):>10.1f} " + " ".join(f"{cell:>{WIDTH}}" for cell in cells)


def header(others: Iterable[str]) -> str:
    return f"{'native ms':>10} " + " ".join(f"{name:>{WIDTH}}" for name in others)


def interleave(contenders: dict[str, Run], rounds: int, warm_ups: int = 1, at_least: float = 0.02) -> Times:
    """Time each contender once a round, every second round in reverse order.

    Args:
        warm_ups: calls before the first round, fewer if they take longer than ``LONG_ENOUGH`` together. One
            more is timed: what takes less than ``at_least`` seconds is called so many times a round that
            it does not.
    """
    repeats = {}
    for name, run in contenders.items():
        warm_until = perf_counter() + LONG_ENOUGH
        for _ in range(warm_ups):
            run()
            if perf_counter() > warm_until:
                break
        repeats[name] = ceil(at_least / _seconds(run, 1))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            for name in list(contenders)[:: 1 if i % 2 == 0 else -1]:
                times[name].append(_seconds(contenders[name], repeats[name]))
    finally:
        gc.enable()
    return Times(times)


def contenders(problem: Problem, work: str, names: Iterable[str] = CONTENDERS) -> dict[str, Run]:
    """What can do this work: the kernels, the reference as it is and compiled, the floor of products.

    ``"compiled"`` is left out of second derivatives: torch.compile raises "does not currently support
    double backward" there.
    """
    made: dict[str, Run] = {}
    for name in names:
        if name == "floor":
            made[name] = problem.floor(work)
        elif name != "compiled":
            made[name] = partial(problem.run, work, problem.code("reference" if name == "eager" else name))
        elif work != "second":
            torch.compiler.reset()  # else a process with many problems runs into the limit of recompilations
            compiled = torch.compile(problem.code("reference"), dynamic=False, fullgraph=True)
            made[name] = partial(problem.run, work, compiled)
    return made


def _seconds(run: Run, repeats: int) -> float:
    start = perf_counter()
    for _ in range(repeats):
        run()
    return (perf_counter() - start) / repeats
