"""How time and peak memory follow k, n, d, l, N and the number of threads."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import fresh
import numpy as np
import torch
from measure import Times, contenders, interleave
from problem import Problem, Shape

TITLE = "Cost and peak memory against the sizes"
BASE = Shape(64, 4096, 1024)
CHANNELS = 16  # of the maps whose receptive field grows: d = 16·l²
AXES: dict[str, list[int]] = {
    "k": [512, 1024, 2048, 4096, 10240, 20480, 40960],
    "n": [128, 512, 1024, 2048, 4096, 8192],
    "d": [16, 64, 152, 256, 512, 1024],
    "l": [1, 3, 5],
    "N": [1, 2, 3, 5, 10],
    "threads": [1, 2],
}
WORK = "backward"
NAMES = ("native", "eager", "floor")


def measure(quick: bool) -> dict[str, Any]:
    """Axis by axis: values, the rounds' seconds of each, and bytes at the peak."""
    result: dict[str, Any] = {}
    axes = {axis: AXES[axis][:2] for axis in ("k", "n")} if quick else AXES
    for axis, values in axes.items():
        values = [value for value in values if axis != "threads" or value <= (os.cpu_count() or 1)]
        points = [point(axis, value) for value in values]
        result[axis] = {
            "values": values,
            "times": [fresh.call("scaling:times", *where, 2 if quick else 5) for where in points],
            "bytes": [
                {name: fresh.call("memory:coding", shape, WORK, name, threads) for name in NAMES[:2]}
                for shape, threads in points
            ],
        }
    return result


def point(axis: str, value: int) -> tuple[Shape, int | None]:
    """The base with one size changed, and the number of threads where that is the one."""
    if axis == "threads":
        return BASE, value
    if axis == "l":
        return BASE._replace(field=value, width=CHANNELS * value**2), None
    return BASE._replace(**{{"k": "atoms", "n": "queries", "d": "width", "N": "steps"}[axis]: value}), None


def times(shape: list[int], threads: int | None, rounds: int) -> dict[str, list[float]]:
    if threads:
        torch.set_num_threads(threads)
    return interleave(contenders(Problem(Shape(*shape)), WORK, NAMES), rounds).seconds


def markdown(result: dict[str, Any], plots: Path) -> str:
    milliseconds = {
        axis: {name: [1000 * Times(each).median(name) for each in line["times"]] for name in NAMES}
        for axis, line in result.items()
    }
    megabytes = {
        axis: {name: [each[name] / 1e6 for each in line["bytes"]] for name in NAMES[:2]}
        for axis, line in result.items()
    }
    draw(result, milliseconds, "ms", plots / "cost.svg")
    draw(result, megabytes, "MB beyond the inputs", plots / "memory.svg")
    return "\n".join(
        [
            f"Forward + backward in features, SigShrink; from d = {BASE.width}, k = {BASE.atoms},",
            f"n = {BASE.queries}, l = 1, N = {BASE.steps} one size at a time (with l also",
            f"d = {CHANNELS}·l²).",
            "",
            "![Time against k, n, d, l, N and threads](plots/cost.svg)",
            "",
            "![Peak memory against the same](plots/memory.svg)",
            "",
            *[_growth_of_time(axis, result[axis]["values"], milliseconds[axis]) for axis in ("k", "n")],
            "",
            _growth_of_memory(result),
        ]
    )


def draw(result: dict[str, Any], heights: dict[str, dict[str, list[float]]], unit: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fsad"  # the same numbers give the same file
    from matplotlib import pyplot, ticker

    figure, panels = pyplot.subplots(2, 3, figsize=(10, 6), layout="constrained")
    for (axis, lines), panel in zip(heights.items(), panels.flat, strict=False):
        for name, values in lines.items():
            panel.plot(result[axis]["values"], values, "o-", label=name, markersize=3)
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=unit)
        panel.set_xticks(result[axis]["values"], map(str, result[axis]["values"]), fontsize=7)
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
    panels.flat[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _growth_of_time(axis: str, values: list[int], lines: dict[str, list[float]]) -> str:
    """Slope in logarithms: 1 is linear."""
    slope = np.polyfit(np.log(values), np.log(lines["native"]), 1)[0]
    steepest = max(
        np.log(b / a) / np.log(y / x)
        for (x, y), (a, b) in zip(pairwise(values), pairwise(lines["native"]), strict=True)
    )
    return (
        f"Time of the native kernels grows as {axis}^{slope:.2f} over {values[0]} ... {values[-1]} (1 is "
        f"linear; the steepest step has {steepest:.2f}).  "
    )


def _growth_of_memory(result: dict[str, Any]) -> str:
    """Bytes that the peak grows by with each more code: an array of k·n numbers would be 4."""
    growth = {}
    for axis, other in (("k", BASE.queries), ("n", BASE.atoms)):
        values, peaks = result[axis]["values"], result[axis]["bytes"]
        codes = (values[-1] - values[0]) * other
        growth[axis] = {name: (peaks[-1][name] - peaks[0][name]) / codes for name in NAMES[:2]}
    kept = max(line["native"] for line in growth.values()) < 1
    return (
        f"Memory {'does not depend' if kept else '**depends**'} on k·n. For each more of the k·n codes the "
        f"native peak grows by {growth['k']['native']:.3f} bytes along k and {growth['n']['native']:.3f} "
        f"along n, eager's by {growth['k']['eager']:.1f} and {growth['n']['eager']:.1f}; one array of codes "
        "would be 4. "
        f"What must be kept are N − 1 = {BASE.steps - 1} residuals and the gradient, arrays of d·n: "
        f"{4 * BASE.steps * BASE.width / BASE.atoms:.3f} bytes a code along n."
    )
