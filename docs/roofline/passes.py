"""The passes as lists of streaming kernels: what the rules of csrc/cuda ask for on a pair of tiles.

Every function here repeats one rule of fused_rules.h or band_rules.h, or one function of istc_*.cu. ``dual``
is 1 where the dictionary has tangents, else 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from .tiling import FUSED


@dataclass(frozen=True)
class Kernel:
    rule: str
    work: str
    products: tuple[str, ...] = ()  # of each product the matrix on the owning side
    sums: int = 0
    kept: int = 0  # places in shared memory
    touched: int = 0  # times that an entry is kept or read back, but for the sums
    loads: int = 0  # codes from the workspace, places
    stores: int = 0
    values: int = 0  # evaluations of the shrinkage an entry
    firsts: int = 0  # with the first derivative
    seconds: int = 0  # with the second
    arithmetic: int = 0  # other multiplications and additions an entry
    steps_read: int = 0  # times that a lane reads η

    @property
    def slots(self) -> int:
        return len(set(self.products))

    @property
    def fused(self) -> bool:
        return self.work in FUSED


# ---- fused ---------------------------------------------------------------------------------------------


def forward_step(m: int) -> Kernel:
    inputs = tuple(f"r{i}" for i in range(m + 1))
    return Kernel(
        "ForwardStep", "fused_codes", inputs, sums=1, kept=1, touched=1, values=m + 1,
        arithmetic=m + 1, steps_read=m + 1,
    )  # fmt: skip


def backward_step(steps: int, m: int) -> Kernel:
    back = steps - m
    inputs = (*(f"r{i}" for i in range(steps)), *(f"h{i + 1}" for i in range(m, steps)))
    return Kernel(
        "BackwardStep", "fused_kept", inputs, sums=1, kept=steps, touched=2 * back + 1, firsts=steps,
        arithmetic=steps + 2 * back + 1, steps_read=steps + 1,
    )  # fmt: skip


def backward_atoms(steps: int) -> Kernel:
    return Kernel(
        "BackwardAtoms", "fused_atoms", 2 * steps * ("D",), sums=2 * steps, kept=steps, touched=4 * steps,
        values=steps, firsts=steps, arithmetic=5 * steps, steps_read=2 * steps,
    )  # fmt: skip


def _dual_products(i: int, dual: int) -> tuple[str, ...]:
    return (f"r{i}", f"t{i}", *dual * (f"r{i}",))


def _second_products(steps: int, i: int, dual: int) -> tuple[str, ...]:
    return (f"h{i + 1}", *dual * (f"h{i + 1}",), *((f"s{i + 1}",) if i + 1 < steps else ()))


def tangent_step(m: int, dual: int) -> Kernel:
    inputs = sum((_dual_products(i, dual) for i in range(m + 1)), ())
    return Kernel(
        "TangentStep", "fused_dual", inputs, sums=1 + dual, kept=2, touched=2 + 4 * (m + 1), firsts=m + 1,
        arithmetic=3 * (m + 1), steps_read=2 * (m + 1),
    )  # fmt: skip


def second_step(steps: int, m: int, dual: int) -> Kernel:
    inputs = sum((_dual_products(i, dual) for i in range(steps)), ())
    inputs += sum((_second_products(steps, i, dual) for i in range(steps - 1, m - 1, -1)), ())
    back = steps - m
    return Kernel(
        "SecondStep", "fused_dual", inputs, sums=1 + dual, kept=2 * steps, touched=6 * steps + 2 * back + 2,
        seconds=steps, arithmetic=4 * steps + 7 * back + 2, steps_read=2 * steps + 2,
    )  # fmt: skip


def second_atoms(steps: int, dual: int) -> Kernel:
    forward = steps * ("D", "D", *dual * ("T",))
    back = sum((("D", *dual * ("T",), *(i + 1 < steps) * ("D",)) for i in range(steps)), ())
    return Kernel(
        "SecondAtoms", "fused_dual_atoms", forward + back, sums=4 * steps - 1, kept=2 * steps,
        touched=12 * steps, firsts=steps, seconds=steps, arithmetic=14 * steps, steps_read=4 * steps,
    )  # fmt: skip


# ---- banded --------------------------------------------------------------------------------------------


def band_codes(m: int, slopes: bool) -> Kernel:
    return Kernel(
        "BandCodes", "codes", (f"r{m}",), loads=int(m > 0), stores=1 + slopes, firsts=1, arithmetic=1,
        steps_read=1,
    )  # fmt: skip


def band_adjoint(steps: int, m: int) -> Kernel:
    return Kernel(
        "BandAdjoint", "codes", (f"h{m + 1}",), loads=1 + (m + 1 < steps), stores=1, arithmetic=2
    )  # fmt: skip


def band_tangent(m: int, dual: int) -> Kernel:
    return Kernel(
        "BandTangent", "codes", _dual_products(m, dual), loads=2 * (m > 0), stores=4, seconds=1,
        arithmetic=4, steps_read=2,
    )  # fmt: skip


def band_second(steps: int, m: int, dual: int) -> Kernel:
    return Kernel(
        "BandSecond", "codes", _second_products(steps, m, dual), loads=2 + 2 * (m + 1 < steps), stores=2,
        arithmetic=7,
    )  # fmt: skip


def band_sums(terms: int, atom_side: bool = False) -> Kernel:
    return Kernel(
        "BandSums", "atom_sums" if atom_side else "sums", sums=terms, kept=1, touched=terms, loads=terms,
        arithmetic=terms, steps_read=terms,
    )  # fmt: skip


# ---- passes --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """One operator: its kernels in order, with what a band of it keeps."""

    name: str
    gradient: bool  # D̄ wanted
    dual: int  # Ḋ given
    label: str


FORWARD = Pass("forward", False, 0, "forward")
BACKWARD = Pass("backward", False, 0, "backward")
BACKWARD_ATOMS = Pass("backward", True, 0, "backward, with D̄")
DOUBLE = Pass("double", True, 0, "double backward")
DOUBLE_DUAL = Pass("double", True, 1, "double backward, with Ḋ")
PASSES = (FORWARD, BACKWARD, BACKWARD_ATOMS, DOUBLE, DOUBLE_DUAL)


def fused_kernels(which: Pass, steps: int) -> list[Kernel]:
    if which.name == "forward":
        return [forward_step(m) for m in range(steps)]
    kernels = [backward_step(steps, m) for m in reversed(range(steps))]
    if which.name == "backward":
        return kernels + which.gradient * [backward_atoms(steps)]
    kernels += [tangent_step(m, which.dual) for m in range(steps)]
    kernels += [second_step(steps, m, which.dual) for m in reversed(range(steps))]
    return kernels + which.gradient * [second_atoms(steps, which.dual)]


def band_kernels(which: Pass, steps: int) -> list[Kernel]:
    """The kernels of every band."""
    kernels: list[Kernel] = []
    if which.name == "forward":
        for m in range(steps):
            kernels += [band_codes(m, False), band_sums(1)]
        return kernels
    kernels += [band_codes(m, True) for m in range(steps)]
    for m in reversed(range(steps)):
        kernels += [band_adjoint(steps, m), band_sums(1)]
    if which.name == "double":
        for m in range(steps):
            kernels += [band_tangent(m, which.dual), band_sums(1 + which.dual)]
        for m in reversed(range(steps)):
            kernels += [band_second(steps, m, which.dual), band_sums(1 + which.dual)]
    terms = 2 * steps if which.name == "backward" else 4 * steps - 1
    return kernels + which.gradient * [band_sums(terms, atom_side=True)]


def places(which: Pass, steps: int) -> int:
    """Codes of a query that a band's workspace holds (``Places`` of band_rules.h)."""
    if which.name == "forward":
        return 1
    codes = steps if which.gradient else 1
    return (2 * steps + 2 * codes) if which.name == "double" else steps + codes


def row_sets(which: Pass, steps: int) -> int:
    """Sets of query rows that a pass packs or forms."""
    return {"forward": steps, "backward": 2 * steps + 1, "double": 4 * steps + 1}[which.name]
