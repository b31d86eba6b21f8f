"""Makes docs/roofline.md: what every kernel has to compute and move, and how long that takes at the least.

Run it as `python docs/make_roofline.py`. The counts are in docs/roofline/, the words here.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from roofline import eager
from roofline.cost import SHRINK_ALU, SHRINK_FP32, dram_bytes
from roofline.machines import LAUNCH, MACHINES, PRECISIONS, Machine, Precision
from roofline.memory import Launch, Size
from roofline.passes import (
    BACKWARD_ATOMS,
    DOUBLE,
    DOUBLE_DUAL,
    FORWARD,
    PASSES,
    Kernel,
    Pass,
    backward_step,
    second_atoms,
    second_step,
)
from roofline.tiling import constants
from roofline.totals import SHAPES, Shape, bound, can_fuse, launches, memory, seconds
from roofline.words import CHOICE, EAGER, INTRO

PAGE = Path(__file__).with_name("roofline.md")
STEPS = range(1, 13)
EXAMPLE: Shape = (152, 10240, 1024)
NAMES = {"alu": "integer", "special": "special functions", "shared": "shared memory", "fp32": "float32"}
# The largest dynamic shared memory of a block, KiB.
BLOCK_SHARED = {"sm_80": 163, "sm_86, sm_89": 99, "sm_90": 227}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def name(shape: Shape) -> str:
    return "{}, {}, {}".format(*shape)


def chosen(which: Pass, steps: int, shape: Shape, precision: Precision, machine: Machine) -> float:
    fused = can_fuse(shape, precision) and steps <= constants().fused_steps
    return seconds(which, steps, shape, precision, machine, fused)


def machine_table() -> str:
    def row(label: str, cell) -> list[str]:
        return [label, *(cell(machine) for machine in MACHINES)]

    return table(
        ["", *(machine.name for machine in MACHINES)],
        [
            row("multiprocessors, clock", lambda m: f"{m.processors}, {m.clock / 1e9:.2f} GHz"),
            row("TF32", lambda m: f"{m.tensor['tf32'] / 1e12:.0f} TFLOP/s"),
            row("bfloat16", lambda m: f"{m.tensor['bf16'] / 1e12:.0f} TFLOP/s"),
            row("of it by mma.sync", lambda m: f"{m.mma_sync:.0%}"),
            row("float32", lambda m: f"{m.fp32 / 1e12:g} TFLOP/s"),
            row("DRAM", lambda m: f"{m.dram / 1e12:g} TB/s"),
            row("L2 to multiprocessors (estimate)", lambda m: f"{m.l2 / 1e12:g} TB/s"),
            row("shared memory, each", lambda m: f"{m.shared_bytes >> 10} KiB"),
            row("its rate, each", lambda m: f"{m.shared_bandwidth} bytes a clock"),
            row("integer, each", lambda m: f"{m.alu_lanes} lanes a clock"),
            row("special functions, each", lambda m: f"{m.special_lanes} lanes a clock"),
        ],
    )


def short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def kernel_rows(machine: Machine, fused: bool) -> list[list[str]]:
    """The kernels of a forward, backward and double backward with tangents, on the largest band if banded."""
    width, atoms, _ = EXAMPLE
    rows, seen = [], set()
    for which in (FORWARD, BACKWARD_ATOMS, DOUBLE_DUAL):
        lists = [launches(which, 3, EXAMPLE, precision, machine, fused) for precision in PRECISIONS]
        for same in zip(*lists, strict=True):
            first = same[0]
            kernel, queries = first.kernel, first.size.queries
            key = (kernel.work, kernel.rule, len(kernel.products), kernel.sums, kernel.loads, kernel.stores)
            if key in seen or queries < max(launch.size.queries for launch in lists[0]):
                continue
            seen.add(key)
            pairs = atoms * queries
            cells = [
                kernel.rule,
                f"{len(kernel.products)} + {kernel.sums}",
                f"{kernel.loads} + {kernel.stores}",
            ]
            cells += [str(queries), short(width * pairs * (len(kernel.products) + kernel.sums) / 1e9)]
            cells += [short(pairs * (kernel.values + kernel.firsts + kernel.seconds) / 1e6)]
            cells += [f"{first.shared[0]} of {kernel.slots}"]
            for precision, launch in zip(PRECISIONS, same, strict=True):
                if precision.name != "TF32":  # whose bytes are those of float32
                    moved = dram_bytes(launch, precision) + launch.code_bytes()
                    cells.append(f"{short(launch.global_bytes() / 1e6)}, {short(moved / 1e6)}")
                time, limit = bound(launch, precision, machine)
                cells.append(f"{short(time * 1e6)} {NAMES.get(limit, limit)}")
            rows.append(cells)
    return rows


def kernel_tables() -> str:
    head = [
        *("kernel", "products + sums", "codes read + written", "queries", "G multiply-adds", "M evaluations"),
        *("owned tiles that stay", "float32: MB by L2, DRAM", "float32: µs", "TF32: µs"),
        *("bfloat16: MB by L2, DRAM", "bfloat16: µs"),
    ]
    text = f"## Kernel by kernel\n\nd, k, n = {name(EXAMPLE)}, N = 3, and what limits each. Of banded "
    text += "passes, the kernels of the\nlargest band, without repetition; multiply-adds without padding.\n"
    for machine in MACHINES:
        for fused in (True, False):
            path = "fused" if fused else "banded"
            text += f"\n**{machine.name}, {path}**\n\n" + table(head, kernel_rows(machine, fused))
    return text


def last_step(
    which: Pass, shape: Shape, precision: Precision, machine: Machine, slower: float, in_l2: bool
) -> int:
    """The largest N up to which fused takes at most `slower` times as long as banded."""
    for steps in STEPS:
        fused = seconds(which, steps, shape, precision, machine, True)
        if fused > slower * seconds(which, steps, shape, precision, machine, False, in_l2):
            return steps - 1
    return STEPS[-1]


def crossing_table() -> tuple[str, str]:
    rows, differing = [], 0
    for machine in MACHINES:
        for precision in PRECISIONS:
            for shape in SHAPES:
                if not can_fuse(shape, precision):
                    continue
                cells = [machine.name.split()[0], precision.name, name(shape)]
                for which in PASSES:
                    ends = [last_step(which, shape, precision, machine, s, False) for s in (1, 1.25)]
                    in_l2 = last_step(which, shape, precision, machine, 1, True)
                    differing += in_l2 != ends[0]
                    cells.append(f"{ends[0]} ({ends[1]})" + (f", {in_l2} in L2" if in_l2 != ends[0] else ""))
                rows.append(cells)
    agreement = "Where codes that stay in L2 change the first number, it is given too."
    if not differing:
        agreement = "Whether codes stay in L2 changes none of them."
    head = ["", "precision", "d, k, n", *(which.label for which in PASSES)]
    return table(head, rows), agreement


def all_times() -> str:
    text = ""
    for machine in MACHINES:
        for precision in PRECISIONS:
            rows = []
            for shape in SHAPES:
                for steps in STEPS:
                    cells = [name(shape), str(steps)]
                    for which in PASSES:
                        times = [
                            f"{seconds(which, steps, shape, precision, machine, fused) * 1e3:.3g}"
                            if not fused or can_fuse(shape, precision)
                            else "–"
                            for fused in (True, False)
                        ]
                        cells.append(" / ".join(times))
                    rows.append(cells)
            head = ["d, k, n", "N", *(which.label for which in PASSES)]
            text += f"\n**{machine.name}, {precision.name}**\n\n" + table(head, rows)
    return text


def largest_steps(block_bytes: int) -> int:
    """N up to which the kernels that keep most codes fit one block's shared memory, float32."""

    def fits(kernel: Kernel) -> bool:
        return Launch(kernel, Size(1024, 1024, 64), 4, 0).shared[1] <= block_bytes

    return max(
        steps
        for steps in range(1, 33)
        if all(map(fits, (backward_step(steps, 0), second_step(steps, 0, 1), second_atoms(steps, 1))))
    )


def eager_tables() -> tuple[str, str, str]:
    def affine(a: int, b: int) -> str:
        return f"{a}N" + (f" {'+' if b > 0 else '−'} {abs(b)}" if b else "")

    counts = table(
        ["", "arrays", "products", "operators"],
        [[which.label, *(affine(*pair) for pair in eager.COUNTS[which])] for which in PASSES],
    )
    times, sizes = [], []
    for machine in MACHINES:
        for precision in PRECISIONS:
            for shape in SHAPES:
                cells = [machine.name.split()[0], precision.name, name(shape)]
                for which in PASSES:
                    ours = chosen(which, 3, shape, precision, machine)
                    theirs = eager.seconds(which, 3, shape, precision, machine)
                    cells.append(f"{ours * 1e3:.3g} / {theirs * 1e3:.3g}: {theirs / ours:.1f}×")
                times.append(cells)
    precision, machine = PRECISIONS[0], MACHINES[0]
    for shape in SHAPES:
        cells = [name(shape)]
        for which in (FORWARD, BACKWARD_ATOMS, DOUBLE):
            fused = can_fuse(shape, precision) and constants().fused_steps >= 3
            cells.append(f"{memory(which, 3, shape, precision, machine, fused) / 2**20:.0f}")
        cells += [f"{count * shape[1] * shape[2] * 4 / 2**20:.0f}" for count in eager.PEAK_ARRAYS]
        sizes.append(cells)
    head = ["", "precision", "d, k, n", *(which.label for which in PASSES)]
    memory_head = ["d, k, n", *(f"ours, {which.label}" for which in (FORWARD, BACKWARD_ATOMS, DOUBLE))]
    memory_head += ["eager, forward + backward", "eager, double backward"]
    return counts, table(head, times), table(memory_head, sizes)


def page() -> str:
    c = constants()
    crossings, agreement = crossing_table()
    places = ", ".join(f"{name} up to N = {largest_steps(size << 10)}" for name, size in BLOCK_SHARED.items())
    counts, times, sizes = eager_tables()
    shrink = " to ".join(str(SHRINK_FP32[i] + SHRINK_ALU[i]) for i in (0, -1))
    return (
        INTRO.format(launch=LAUNCH * 1e6, machines=machine_table(), codes=c.codes_bytes >> 20, shrink=shrink)
        + kernel_tables()
        + "\n"
        + CHOICE.format(
            agreement=agreement, crossings=crossings, fused_steps=c.fused_steps,
            width4=c.fused_width(4), width2=c.fused_width(2),
            places=places,
            note="–: too wide to fuse.",
        )
        + all_times()
        + "\n"
        + EAGER.format(counts=counts, times=times, memory=sizes, arrays=eager.PEAK_ARRAYS)
    )  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(page())
