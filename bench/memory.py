"""Peak memory beyond what was there before, each contender in a fresh process.

The kernel's own high-water mark: 5 into ``/proc/self/clear_refs`` sets it to the present resident size, and
``VmHWM`` afterwards tells how far it rose.
"""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

import fresh
import torch
from episode import Training
from problem import COLUMNS, Problem, Shape

TITLE = "Peak memory"
LIMITS = [1 / 20, 1 / 20, 1 / 10]  # native, of eager's, in each column
EPISODE_LIMIT = 1 / 10
BACKENDS = {"native": "native", "eager": "reference"}
QUICK = [Shape(64, 1024, 256), Shape(144, 1024, 256, field=3)]


def measure(quick: bool) -> dict[str, Any]:
    shapes = QUICK if quick else COLUMNS
    return {
        "columns": [
            {
                "label": shape.label,
                "inputs": 4 * shape.width * (shape.atoms + shape.queries) / shape.field**2,
                **{name: fresh.call("memory:coding", shape, "backward", name) for name in BACKENDS},
            }
            for shape in shapes
        ],
        "episode": {name: fresh.call("memory:episode", name) for name in (*BACKENDS, "without coding")},
    }


def markdown(result: dict[str, Any], plots: Path) -> str:
    lines = [
        "Beyond what was resident before the work, in MB; forward + backward in features. The inputs are not",
        "part of it, and stand beside for comparison.",
        "",
        "| (d, k, n) | inputs | native | eager | native, of eager's | limit |",
        "|---|---|---|---|---|---|",
    ]
    for column, limit in zip(result["columns"], LIMITS, strict=False):
        native, eager = column["native"], column["eager"]
        lines.append(
            f"| {column['label']} | {megabytes(column['inputs'])} | {megabytes(native)} | {megabytes(eager)} "
            f"| {_share(native / eager, limit)} | 1/{1 / limit:.0f} |"
        )
    rest = result["episode"]["without coding"]
    native, eager = (result["episode"][name] - rest for name in BACKENDS)
    lines.append(
        "\nCoding in a training episode, by which the peak lies above that of the same episode without it "
        f"({megabytes(rest)} MB): native {megabytes(native)} MB, eager {megabytes(eager)} MB, "
        f"{_share(native / eager, EPISODE_LIMIT)} (limit 1/{1 / EPISODE_LIMIT:.0f})."
    )
    return "\n".join(lines)


def megabytes(count: float) -> str:
    return f"{count / 1e6:.1f}"


def coding(shape: list[int], work: str, contender: str, threads: int | None = None) -> int:
    """Bytes beyond the inputs at the peak of one of ``problem.WORKS``; for a fresh process."""
    if threads:
        torch.set_num_threads(threads)
    backend = BACKENDS[contender]
    # Libraries and threads that torch loads on first use are nobody's memory.
    tiny = Problem(Shape(shape[3] ** 2, 64, 16, shape[3], shape[4]))
    tiny.run(work, tiny.code("reference"))
    problem = Problem(Shape(*shape))
    return peak(lambda: problem.run(work, problem.code(backend)))


def episode(contender: str) -> int:
    training = Training()
    training.episode("without coding")()  # as above
    return peak(training.episode(contender))


def peak(run: Any) -> int:
    """Bytes by which the resident size rises above its present value while ``run`` runs."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that is still resident could be used without being seen
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def _share(share: float, limit: float) -> str:
    text = f"1/{1 / share:.1f}" if 0 < share < 1 else f"{share:.2f}"
    return text if share <= limit else f"**{text}**, missed"
