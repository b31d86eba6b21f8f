"""Never slower than plain PyTorch, anywhere: points spread over all sizes, and the worst of them."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import fresh
import numpy as np
from measure import Times, contenders, interleave
from problem import Problem, Shape

TITLE = "Over all sizes: the worst points"
POINTS, SEED, WORST = 60, 0, 10
ROUNDS, FEW_ROUNDS, MUCH = 7, 3, 2**33  # fewer rounds beyond d·k·n·N: they take seconds
WIDTHS = (16, 32, 64, 152, 256, 576, 1024)
ATOMS = (64, 256, 1024, 4096, 10240, 40960)
QUERIES = (1, 8, 64, 256, 1024, 8192)
FIELDS = (1, 3)
STEPS = (1, 3, 10)
LARGEST = 2**25  # k·n
TOGETHER = 10  # points a process
FORWARD_LIMIT, BACKWARD_LIMIT = 1.05, 0.8
# What the draw hardly meets: few queries over narrow patches, which take longer to gather than to multiply.
NARROW = [
    Shape(18, 1024, 8, 3, 1),
    Shape(18, 4096, 1, 3, 3),
    Shape(18, 4096, 1, 3, 10),
    Shape(18, 4096, 8, 3, 3),
    Shape(18, 10240, 1, 3, 3),
    Shape(18, 40960, 1, 3, 3),
    Shape(18, 40960, 8, 3, 10),
    Shape(36, 64, 1, 3, 1),
    Shape(36, 1024, 1, 3, 3),
    Shape(36, 10240, 1, 3, 10),
    Shape(63, 1024, 1, 3, 3),
    Shape(153, 1024, 1, 3, 1),
]
QUICK = [Shape(16, 64, 8), Shape(36, 256, 64, 3, 1), Shape(64, 256, 64)]


def points(count: int = POINTS) -> list[Shape]:
    """Stratified: every value, and every pair (k, n), occurs as often as the others, give or take one."""
    generator = np.random.default_rng(SEED)

    def deck(values: Any) -> list[Any]:
        values = list(values)
        rounds = range(-(-count // len(values)))
        return [values[i] for _ in rounds for i in generator.permutation(len(values))][:count]

    pairs = deck((k, n) for k, n in product(ATOMS, QUERIES) if k * n <= LARGEST)
    rest = zip(pairs, deck(WIDTHS), deck(FIELDS), deck(STEPS), strict=True)
    return [Shape(_width(d, field), k, n, field, steps) for (k, n), d, field, steps in rest]


def measure(quick: bool) -> list[dict[str, Any]]:
    shapes = QUICK if quick else [*points(), *NARROW]
    entries = []
    for start in range(0, len(shapes), TOGETHER):
        some = shapes[start : start + TOGETHER]
        forward = fresh.call("sweep:default_times", some, quick, fresh.WARM_UPS["default"])
        raised = fresh.call("sweep:raised_times", some, quick, fresh.WARM_UPS["raised"], allocator="raised")
        entries += [
            {"shape": shape, "forward": first["forward"], "raised": second}
            for shape, first, second in zip(some, forward, raised, strict=True)
        ]
        print(f"  {len(entries)} of {len(shapes)}", flush=True)
    return entries


def default_times(shapes: list[list[int]], quick: bool, warm_ups: int) -> list[dict[str, Any]]:
    works = {"forward": ["native", "eager", "compiled"]}
    return [_times(Shape(*shape), works, quick, warm_ups) for shape in shapes]


def raised_times(shapes: list[list[int]], quick: bool, warm_ups: int) -> list[dict[str, Any]]:
    works = {"forward": ["native", "eager"], "backward": ["native", "eager"]}
    return [_times(Shape(*shape), works, quick, warm_ups) for shape in shapes]


def _times(
    shape: Shape, works: dict[str, list[str]], quick: bool, warm_ups: int
) -> dict[str, dict[str, list[float]]]:
    """Work by work, the rounds' seconds of each contender."""
    problem = Problem(shape)
    much = shape.width * shape.atoms * shape.queries * shape.steps > MUCH
    rounds = 2 if quick else FEW_ROUNDS if much else ROUNDS
    return {
        work: interleave(contenders(problem, work, names), rounds, warm_ups).seconds
        for work, names in works.items()
    }


def markdown(result: list[dict[str, Any]], plots: Path) -> str:
    parts = [
        f"{len(result)} points: {len(NARROW)} of narrow patches and few queries, where gathering weighs,",
        f"and others drawn with a seed so that all values of d ∈ {WIDTHS}, l ∈ {FIELDS} and N ∈ {STEPS},",
        f"and all pairs of k ∈ {ATOMS} and n ∈ {QUERIES} with k·n ≤ {LARGEST}, occur alike",
        "often (with l = 3, d is the nearest multiple of 9, at least 18). Medians of",
        f"{ROUNDS} interleaved rounds, {FEW_ROUNDS} where one takes long; torch.compile compiles each anew.",
        "",
        *_worst(
            f"Forward, default allocator: native over eager; at most {FORWARD_LIMIT}",
            [(entry["shape"], _over(entry["forward"], "eager")) for entry in result],
            FORWARD_LIMIT,
        ),
        *_worst(
            f"Forward, default allocator: native over compiled; at most {FORWARD_LIMIT}",
            [(entry["shape"], _over(entry["forward"], "compiled")) for entry in result],
            FORWARD_LIMIT,
        ),
        *_worst(
            f"Forward, raised thresholds: native over eager; at most {FORWARD_LIMIT}",
            [(entry["shape"], _over(entry["raised"]["forward"], "eager")) for entry in result],
            FORWARD_LIMIT,
        ),
        *_worst(
            "Forward + backward in features, raised thresholds: native over eager; at most "
            f"1/{BACKWARD_LIMIT} = {1 / BACKWARD_LIMIT:.2f}",
            [(entry["shape"], _over(entry["raised"]["backward"], "eager")) for entry in result],
            1 / BACKWARD_LIMIT,
        ),
    ]
    return "\n".join(parts)


def _over(seconds: dict[str, list[float]], other: str) -> dict[str, float]:
    """Native as a multiple of another, and its milliseconds."""
    times = Times(seconds)
    return {other: times.ratio("native", other), "native, ms": 1000 * times.median("native")}


def _worst(title: str, points: list[tuple[list[int], dict[str, float]]], limit: float) -> list[str]:
    def worst_ratio(point: tuple[list[int], dict[str, float]]) -> float:
        return max(ratio for name, ratio in point[1].items() if name != "native, ms")

    ordered = sorted(points, key=worst_ratio, reverse=True)
    kept = sum(worst_ratio(point) <= limit for point in points)
    names = list(points[0][1])
    lines = [
        f"**{title}.** Kept at {kept} of {len(points)} points; the median is "
        f"{median(map(worst_ratio, points)):.2f}. The worst:",
        "",
        f"| d | k | n | l | N | {' | '.join(names)} |",
        "|---" * (5 + len(names)) + "|",
    ]
    for shape, figures in ordered[:WORST]:
        cells = [*map(str, shape), *(f"{figures[name]:.3g}" if name in figures else "-" for name in names)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _width(width: int, field: int) -> int:
    return max(2, round(width / field**2)) * field**2 if field > 1 else width
