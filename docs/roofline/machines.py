"""Two GPUs in numbers, each the maker's unless marked. Sustained rates lie below."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)  # known by identity
class Machine:
    name: str
    processors: int
    clock: float  # Hz
    shared_bytes: int  # of a multiprocessor
    tensor: dict[str, float]  # dense FLOP/s, by what is multiplied
    mma_sync: float  # the part of it that mma.sync reaches
    fp32: float  # FLOP/s of the float32 pipe
    dram: float  # bytes/s
    l2: float  # bytes/s towards the multiprocessors; an estimate from published micro-benchmarks
    alu_lanes: int = 64  # comparisons, selections, integers: a clock and multiprocessor
    special_lanes: int = 16
    issue_lanes: int = 128
    shared_bandwidth: int = 128  # bytes a clock and multiprocessor

    @property
    def fp32_lanes(self) -> float:
        """Instructions a clock and multiprocessor."""
        return self.fp32 / 2 / self.processors / self.clock


A100 = Machine(
    "A100 SXM 80 GB", 108, 1.41e9, 164 << 10, {"tf32": 156e12, "bf16": 312e12}, 1.0, 19.5e12, 2.0e12, 4.5e12
)
H100 = Machine(
    "H100 SXM", 132, 1.83e9, 228 << 10, {"tf32": 495e12, "bf16": 990e12}, 0.62, 67e12, 3.35e12, 5.5e12
)
MACHINES = (A100, H100)
LAUNCH = 2e-6  # seconds from one kernel of a stream to the next: an estimate


@dataclass(frozen=True)
class Precision:
    name: str
    element_size: int
    tensor: str  # what our tensor-core instructions multiply
    multiplications: int  # of them for one product
    eager: str  # what cuBLAS multiplies


FLOAT32 = Precision("float32 (3×TF32)", 4, "tf32", 3, "fp32")
TF32 = Precision("TF32", 4, "tf32", 1, "tf32")
BF16 = Precision("bfloat16", 2, "bf16", 1, "bf16")
PRECISIONS = (FLOAT32, TF32, BF16)
