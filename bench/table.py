"""The table of ratios: every work on every column, against the floor and against eager PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fresh
from measure import Times, contenders, interleave
from problem import COLUMNS, WORKS, Problem, Shape

TITLE = "Against the floor and against eager PyTorch"
FLOOR_LIMITS = {
    "forward": (1.4, 1.15, 1.1),
    "backward": (1.3, 1.15, 1.15),
    "dictionary": (1.4, 1.25, 1.2),
    "second": (1.4, 1.25, 1.2),
}
EAGER_LIMITS = {"backward": (5, 2.8, 1), "dictionary": (4.5, 2.3, 1), "second": (5, 2.5, 1)}
QUICK = [Shape(16, 512, 128), Shape(36, 1024, 1024, field=3)], ["forward", "second"]
NAMES = ("native", "eager", "floor")


def measure(quick: bool) -> list[dict[str, Any]]:
    """One entry a column and work: the rounds' seconds under both allocator settings."""
    shapes, works = QUICK if quick else (COLUMNS, list(WORKS))
    entries = []
    for column, shape in enumerate(shapes):
        for work in works:
            entry: dict[str, Any] = {"label": shape.label, "column": column, "work": work}
            for allocator in fresh.ALLOCATORS:
                arguments = shape, work, 2 if quick else 7, fresh.WARM_UPS[allocator]
                entry[allocator] = fresh.call("table:times", *arguments, allocator=allocator)
            entries.append(entry)
    return entries


def times(shape: list[int], work: str, rounds: int, warm_ups: int) -> dict[str, list[float]]:
    return interleave(contenders(Problem(Shape(*shape)), work, NAMES), rounds, warm_ups).seconds


def markdown(result: list[dict[str, Any]], plots: Path) -> str:
    lines = [
        "Each line from two processes, one under glibc's default allocator and one with raised mmap and trim",
        "thresholds, in which native, eager and floor take turns. What misses its limit is bold.",
        "",
        "| work | (d, k, n) | native, ms | over floor | limit | raised | eager over it | limit | raised |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in result:
        default, raised = Times(entry["default"]), Times(entry["raised"])
        work, column = entry["work"], entry["column"]
        most = FLOOR_LIMITS[work][column]
        least = EAGER_LIMITS[work][column] if work in EAGER_LIMITS else None
        to_floor, of_native = default.ratio("native", "floor"), default.ratio("eager", "native")
        lines.append(
            f"| {WORKS[work]} | {entry['label']} | {1000 * default.median('native'):.1f} "
            f"| {_marked(to_floor, to_floor <= most)} | {most} | {raised.ratio('native', 'floor'):.2f} "
            f"| {_marked(of_native, least is None or of_native >= least)} | {least or '-'} "
            f"| {raised.ratio('eager', 'native'):.2f} |"
        )
    return "\n".join(lines)


def _marked(value: float, met: bool) -> str:
    return f"{value:.2f}" if met else f"**{value:.2f}**"
