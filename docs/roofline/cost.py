"""What a launch asks of every part of a multiprocessor, and how long that takes at the least.

Instructions are counted on the source (arithmetic.cuh, skeleton.cuh, shrinkage.h) as nvcc 13.0 compiles it
for sm_80, in instructions of a warp.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from .machines import Machine, Precision
from .memory import Launch
from .tiling import ROW_BYTES, ROWS, STEP_BYTES, WARPS

LANES = 32
STEPS = ROW_BYTES // STEP_BYTES

# Instructions of an element of a fragment, by how many products of TF32 numbers one of float32 takes.
# Three: an addition, a mask and a subtraction split it in two numbers. One: cvt.rna.tf32, which has no
# instruction of its own but is a comparison and an addition, that on the float32 pipe (IMAD).
ROUND_ALU, ROUND_FP32 = {3: 2, 1: 1}, {3: 1, 1: 1}
# Adding a 16×8 block of partial products. That they start from zero costs nothing: the core reads RZ.
ADD_FP32 = 4
# SigShrink of an entry: with its first derivative, with its second. Two special functions each. Counted while
# zero and one were computed from u, less the five additions that literals save.
SHRINK_FP32, SHRINK_ALU, SHRINK_SPECIAL = (12, 17, 24), (9, 9, 12), 2
CODE_ALU = 3  # addresses and bounds, for an entry loaded from or stored to the workspace
# Addresses: of a step of a product, and of an 8×8 block of streamed numbers that is read across.
STEP_ALU = {4: 2, 2: 10}
ACROSS_FP32 = {4: 3, 2: 0}
ACROSS_ALU = {4: 0, 2: 0.3}
MMA_DEPTH = {4: 8, 2: 16}


@dataclass
class Work:
    """Of a block and tile: multiply-adds of the tensor core, warp instructions, shared-memory bytes."""

    tensor: float = 0
    mma: float = 0
    fp32: float = 0
    alu: float = 0
    special: float = 0
    shared_loads: float = 0  # instructions
    shared: float = 0  # bytes


def tile_work(launch: Launch, precision: Precision) -> Work:
    """Averages over the parts where the width of the sums has several."""
    kernel, tiles, size = launch.kernel, launch.tiles, precision.element_size
    columns, tf32 = tiles.columns, size == 4
    round_alu, round_fp32 = ROUND_ALU[precision.multiplications], ROUND_FP32[precision.multiplications]
    work = Work()

    # Inner products: for every 32 bytes of depth, the fragments of 16 rows and of all columns.
    steps = -(-launch.size.width * size // STEP_BYTES)
    products = len(kernel.products)
    blocks = columns / 8
    work.mma += products * steps * blocks * precision.multiplications
    rounded = 4 + 2 * blocks
    work.fp32 += products * steps * tf32 * (rounded * round_fp32 + blocks * ADD_FP32)
    work.alu += products * steps * (tf32 * rounded * round_alu + STEP_ALU[size])
    work.shared_loads += products * steps * (1 + columns / 16)
    work.shared += products * steps * (1 + columns / 16) * 16 * STEP_BYTES

    # Weighted sums: for every chunk, the weights once more and the streamed tile.
    chunks = kernel.sums * launch.row_chunks / launch.parts
    depth, across = columns / MMA_DEPTH[size], ROW_BYTES / size / 8
    work.mma += chunks * depth * across * precision.multiplications
    rounded = 4 + 2 * across
    work.fp32 += chunks * depth * tf32 * (rounded * round_fp32 + across * ADD_FP32)
    work.fp32 += chunks * depth * across * ACROSS_FP32[size]
    work.alu += chunks * depth * across * ACROSS_ALU[size]
    work.alu += chunks * depth * (rounded * round_alu if tf32 else 4)
    work.shared_loads += chunks * depth * (across * (2 if tf32 else 0.5) + (1 if tf32 else 2))
    work.shared += chunks * columns * (ROW_BYTES + 16 * 4)

    # The rule, and codes on their way to shared or global memory: entries a lane.
    entries = 16 * columns / LANES
    rules = list(zip((kernel.values, kernel.firsts, kernel.seconds), SHRINK_FP32, SHRINK_ALU, strict=True))
    work.fp32 += entries * (kernel.arithmetic + sum(count * fp32 for count, fp32, _ in rules))
    work.alu += entries * (
        sum(count * alu for count, _, alu in rules) + CODE_ALU * (kernel.loads + kernel.stores)
    )
    work.special += entries * SHRINK_SPECIAL * sum(count for count, _, _ in rules)
    work.shared_loads += entries / 4 * kernel.touched
    work.shared += 16 * columns * 4 * kernel.touched

    work = Work(**{name: WARPS * amount for name, amount in vars(work).items()})
    work.tensor = work.mma * 16 * 8 * MMA_DEPTH[size]
    # Copies arrive in shared memory, those of owned tiles that do not stay with them.
    stay = launch.shared[0]
    passing = max(0, products - stay) if stay < kernel.slots else 0
    work.shared += (products * launch.row_chunks + chunks) * columns * ROW_BYTES
    work.shared += passing * launch.row_chunks * ROWS * ROW_BYTES
    return work


def dram_bytes(launch: Launch, precision: Precision) -> float:
    """Of matrices, each once: the rest of their traffic meets L2."""
    size, kernel = launch.size, launch.kernel
    rows = size.atoms + max(1, len(set(kernel.products))) * size.queries
    return size.tasks * size.width * precision.element_size * rows


def busiest(launch: Launch, machine: Machine) -> int:
    """Tiles that the busiest multiprocessor goes through: its blocks, each with its part of the stream."""
    return -(-launch.blocks // machine.processors) * -(-launch.streamed_tiles // launch.splits)


@cache
def limits(launch: Launch, precision: Precision, machine: Machine) -> dict[str, float]:
    """Seconds that each part of the machine needs at the least; the kernel takes the largest.

    "DRAM" counts the codes of a band, "DRAM alone" takes them for staying in L2.
    """
    tiles = busiest(launch, machine)
    work = tile_work(launch, precision)

    def on_processor(amount: float, a_clock: float) -> float:
        return tiles * amount / a_clock / machine.clock

    tensor = machine.tensor[precision.tensor] * machine.mma_sync / 2 / machine.processors / machine.clock
    issued = work.mma + work.fp32 + work.alu + work.special + work.shared_loads
    codes = launch.code_bytes()
    return {
        "tensor": on_processor(work.tensor, tensor),
        "fp32": on_processor(work.fp32 * LANES, machine.fp32_lanes),
        "alu": on_processor(work.alu * LANES, machine.alu_lanes),
        "issue": on_processor(issued * LANES, machine.issue_lanes),
        "special": on_processor(work.special * LANES, machine.special_lanes),
        "shared": on_processor(work.shared, machine.shared_bandwidth),
        "L2": (launch.tile_bytes() + launch.partial_bytes() + codes) / machine.l2,
        "DRAM": (dram_bytes(launch, precision) + codes) / machine.dram,
        "DRAM alone": dram_bytes(launch, precision) / machine.dram,
    }
