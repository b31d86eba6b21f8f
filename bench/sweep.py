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
POINTS, SEED, ROUNDS, WORST = 60, 0, 7, 10
WIDTHS = (16, 32, 64, 152, 256, 576, 1024)
ATOMS = (64, 256, 1024, 4096, 10240, 40960)
QUERIES = (1, 8, 64, 256, 1024, 8192)
FIELDS = (1, 3)
STEPS = (1, 3, 10)
LARGEST = 2**25  # k·n
FORWARD_LIMIT, BACKWARD_LIMIT = 1.05, 0.8
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
    shapes = QUICK if quick else points()
    rounds = 2 if quick else ROUNDS
    entries = []
    for i, shape in enumerate(shapes, 1):
        names = ["native", "eager", "compiled"]
        forward = fresh.call("sweep:times", shape, {"forward": names}, rounds, fresh.WARM_UPS["default"])
        works = {"forward": names[:2], "backward": names[:2]}
        raised = fresh.call("sweep:times", shape, works, rounds, fresh.WARM_UPS["raised"], allocator="raised")
        entries.append({"shape": shape, "forward": forward["forward"], "raised": raised})
        print(f"  {i} of {len(shapes)}: {shape}", flush=True)
    return entries


def times(
    shape: list[int], works: dict[str, list[str]], rounds: int, warm_ups: int
) -> dict[str, dict[str, list[float]]]:
    """Work by work, the rounds' seconds of each contender."""
    problem = Problem(Shape(*shape))
    return {
        work: interleave(contenders(problem, work, names), rounds, warm_ups).seconds
        for work, names in works.items()
    }


def markdown(result: list[dict[str, Any]], plots: Path) -> str:
    compiled = sum("compiled" in entry["forward"] for entry in result)
    parts = [
        f"{len(result)} points, drawn with a seed so that all values of d ∈ {WIDTHS}, l ∈ {FIELDS} and",
        f"N ∈ {STEPS}, and all pairs of k ∈ {ATOMS} and n ∈ {QUERIES} with k·n ≤ {LARGEST}, occur alike",
        "often (with l = 3, d is the nearest multiple of 9, at least 18). Medians of",
        f"{len(result[0]['forward']['native'])} interleaved rounds; torch.compile at {compiled} points.",
        "",
        *_worst(
            f"Forward, default allocator: native over eager and over compiled; at most {FORWARD_LIMIT}",
            [(entry["shape"], _over(entry["forward"])) for entry in result],
            FORWARD_LIMIT,
        ),
        *_worst(
            f"Forward, raised thresholds: native over eager; at most {FORWARD_LIMIT}",
            [(entry["shape"], _over(entry["raised"]["forward"])) for entry in result],
            FORWARD_LIMIT,
        ),
        *_worst(
            "Forward + backward in features, raised thresholds: native over eager; at most "
            f"1/{BACKWARD_LIMIT} = {1 / BACKWARD_LIMIT:.2f}",
            [(entry["shape"], _over(entry["raised"]["backward"])) for entry in result],
            1 / BACKWARD_LIMIT,
        ),
    ]
    return "\n".join(parts)


def _over(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Native as a multiple of each of the others, and its milliseconds."""
    times = Times(seconds)
    ratios = {name: times.ratio("native", name) for name in seconds if name != "native"}
    return ratios | {"native, ms": 1000 * times.median("native")}


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
        cells = [*map(str, shape), *(f"{figures[name]:.3g}" for name in names)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _width(width: int, field: int) -> int:
    return max(2, round(width / field**2)) * field**2 if field > 1 else width
