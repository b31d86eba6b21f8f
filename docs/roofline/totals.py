"""Whole passes: the sums over their kernels, and their memory."""

from __future__ import annotations

from collections import Counter
from functools import cache

from .cost import limits
from .machines import LAUNCH, Machine, Precision
from .memory import Launch, Size
from .passes import Pass, band_kernels, fused_kernels, places, row_sets
from .tiling import choose_bands, constants, padded_width, real_size

Shape = tuple[int, int, int]  # d, k, n; patches of one vector
SHAPES: tuple[Shape, ...] = ((64, 10240, 1024), (152, 2048, 1024), (152, 10240, 1024), (576, 5120, 1024))


def can_fuse(shape: Shape, precision: Precision) -> bool:
    """By width alone."""
    return padded_width(shape[0], precision.element_size) <= constants().fused_width(precision.element_size)


def launches(
    which: Pass, steps: int, shape: Shape, precision: Precision, machine: Machine, fused: bool
) -> dict[Launch, int]:
    """The kernels of a pass, and how often each runs."""
    return _launches(which, steps, shape, precision.element_size, machine.shared_bytes, fused)


@cache
def _launches(
    which: Pass, steps: int, shape: Shape, element_size: int, processor_bytes: int, fused: bool
) -> dict[Launch, int]:
    width, atoms, queries = padded_width(shape[0], element_size), *shape[1:]
    kernels = Counter(fused_kernels(which, steps) if fused else band_kernels(which, steps))
    bands = {queries: 1}
    if not fused:
        row_bytes = places(which, steps) * -(-atoms // 8) * 8 * real_size(element_size)
        bands = Counter(rows for _, rows in choose_bands(1, queries, row_bytes))
    return {
        Launch(kernel, Size(rows, atoms, width), element_size, processor_bytes): times * bands[rows]
        for rows in bands
        for kernel, times in kernels.items()
    }


def bound(
    launch: Launch, precision: Precision, machine: Machine, codes_in_l2: bool = False
) -> tuple[float, str]:
    """Predicted seconds, and what limits them."""
    parts = limits(launch, precision, machine)
    if codes_in_l2:
        parts = {**parts, "DRAM": parts["DRAM alone"]}
    limit = max(parts, key=parts.__getitem__)
    return parts[limit], limit


def finish(launch: Launch, precision: Precision, machine: Machine) -> float:
    """Adding up the splits of one launch's sums, by a kernel of its own."""
    if not launch.tiles.chunks:
        return 0
    row = launch.size.width * (launch.splits * launch.real + 3 * precision.element_size)
    return LAUNCH + launch.owned * row / machine.l2


@cache
def seconds(
    which: Pass,
    steps: int,
    shape: Shape,
    precision: Precision,
    machine: Machine,
    fused: bool,
    codes_in_l2: bool = False,
) -> float:
    total = 0.0
    for launch, times in launches(which, steps, shape, precision, machine, fused).items():
        one = bound(launch, precision, machine, codes_in_l2)[0] + LAUNCH
        total += times * (one + finish(launch, precision, machine))
    # Packing, importing and unpacking of rows: each reads and writes every number once.
    width, atoms, queries = padded_width(shape[0], precision.element_size), *shape[1:]
    small = 1 if which.name == "forward" else steps + 3 + (which.name == "double")
    moved = 2 * small * queries * width * precision.element_size
    if which.gradient:
        small, moved = small + 1, moved + atoms * width * (4 + precision.element_size)
    if width != shape[0]:  # dictionaries are copied with padding
        small += 1 + which.dual
        moved += (1 + which.dual) * atoms * (shape[0] + width) * precision.element_size
    return total + small * LAUNCH + moved / machine.dram


def memory(which: Pass, steps: int, shape: Shape, precision: Precision, machine: Machine, fused: bool) -> int:
    """Bytes that a pass takes beside its inputs and results, and the history between passes."""
    element = precision.element_size
    width, atoms, queries = padded_width(shape[0], element), *shape[1:]
    size = (row_sets(which, steps) + steps - 1) * queries * width * element
    if which.name != "forward":
        size += queries * width * real_size(element)  # gradients of the patches
    if which.gradient:
        size += atoms * width * real_size(element)  # rows of D̄
    if width != shape[0]:
        size += (1 + which.dual) * atoms * width * element  # dictionaries with padding
    partial = 0
    all_launches = launches(which, steps, shape, precision, machine, fused)
    for launch in all_launches:
        if launch.tiles.chunks and launch.splits * launch.owned * width > partial:
            partial = launch.splits * launch.owned * width
            size += partial * launch.real
    if not fused:
        rows = max(launch.size.queries for launch in all_launches)
        size += places(which, steps) * rows * -(-atoms // 8) * 8 * real_size(element)
    return size
