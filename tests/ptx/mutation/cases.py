"""The problems that a damaged kernel goes through."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..passes import Problem

PASSES = ("forward", "backward", "double_backward")
PEAK = ("peak_atom",)


@dataclass(frozen=True)
class Case:
    """One problem in one type on one device, and the passes that it goes through."""

    name: str
    settings: dict[str, Any]
    dtype: torch.dtype = torch.float32
    shared_kib: int = 164  # on a multiprocessor
    passes: tuple[str, ...] = PASSES
    atom_values: str = ""  # "ties": several atoms are the best; "nan": none is
    atom_gradient: bool = True  # wanted, and that of the backward has a cotangent
    small: bool = False  # limits of workspaces, see compiler.py

    @cached_property
    def problem(self) -> Problem:
        problem = Problem(**self.settings)
        if not self.atom_gradient:
            problem.tensors["tangent_atoms"][:] = 0
        return problem

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        tensors = self.problem.rounded(self.dtype)
        if self.atom_values == "nan":
            tensors["atom_map"][:] = torch.nan
        if self.atom_values == "ties":
            tensors["atom_map"][:] = 0
            # Two in neighbouring columns of a tile, whose lanes have to agree; others in later tiles.
            for position in (23, 24, 70, 99):
                tensors["atom_map"].view(-1, self.problem.channels)[position] = (-1.0) ** position
            tensors["queries"][:] = 1
        if not self.atom_gradient:
            del tensors["tangent_atoms"]  # null means zero
        return tensors


def _case(name: str, query_shape: tuple[int, ...], atom_shape: tuple[int, ...], **settings: Any) -> Case:
    whole = {field: settings.pop(field) for field in Case.__dataclass_fields__ if field in settings}
    return Case(name, {"query_shape": query_shape, "atom_shape": atom_shape, **settings}, **whole)


_HALF = torch.bfloat16
# The cheapest and most telling first. Sizes are one beyond a tile: 65 rows are two tiles of 64, three of 32.
# Float32 is fused up to 4 steps and 160 numbers (16 bits up to 192), banded beyond, and plain where a sum is
# short. With field 3, patches reach over borders and atoms are thinned.
_FIELD = {"receptive_field": 3}
CASES = [
    _case("fused", (1, 5, 13), (1, 5, 13), tasks=2, channels=53, iterations=2),
    _case(
        "fused, field 3",
        *((2, 5, 5), (1, 7, 13)),
        **{"tasks": 2, "channels": 7, "atoms": 70, "iterations": 3, "shrinkage": "soft", "shared_kib": 100},
        **_FIELD,
    ),
    _case("fused 16 bits", (1, 5, 13), (1, 1, 67), tasks=2, channels=70, iterations=2, dtype=_HALF),
    _case("banded", (1, 5, 13), (1, 1, 67), tasks=2, channels=53, iterations=5),
    _case("wide", (2, 5, 5), (1, 7, 10), tasks=2, channels=21, atoms=65, iterations=2, **_FIELD),
    _case("wide 16 bits", (1, 3, 3), (1, 7, 10), channels=197, iterations=2, shrinkage="none", dtype=_HALF),
    _case("plain", (1, 5, 13), (1, 7, 5), tasks=2, channels=2, atoms=33, iterations=2, **_FIELD),
    _case("plain, wide", (1, 1, 5), (1, 1, 12), tasks=2, channels=230, iterations=1),
    _case("peak", (1, 5, 13), (1, 7, 13), tasks=2, channels=7, atoms=70, passes=PEAK, **_FIELD),
    _case("peak 16 bits", (1, 5, 13), (1, 10, 10), channels=3, dtype=_HALF, passes=PEAK),
    _case("peak of several", (1, 1, 13), (1, 10, 10), channels=53, passes=PEAK, atom_values="ties"),
    _case("peak of no number", (1, 1, 2), (1, 7, 5), channels=53, passes=PEAK, atoms=33, atom_values="nan"),
    _case("plain peak", (1, 1, 5), (1, 7, 5), tasks=2, channels=3, passes=PEAK),
    _case("fused, no atom gradient", (1, 5, 10), (1, 5, 13), channels=53, atom_gradient=False),
    _case("banded, no atom gradient", (1, 5, 10), (1, 5, 13), channels=165, atom_gradient=False),
    _case("fused, not resident", (1, 5, 13), (1, 5, 13), channels=150, iterations=3, shared_kib=100),
    _case("fused, TF32", (1, 5, 13), (1, 5, 13), channels=53, iterations=2, allow_tf32=True),
    _case("banded, TF32", (1, 5, 13), (1, 5, 13), channels=53, iterations=5, allow_tf32=True),
    _case(
        "fused, several tiles a split",
        *((1, 5, 10), (1, 5, 15)),
        **{"channels": 7, "atoms": 70, "iterations": 2, "small": True},
        **_FIELD,
    ),
    _case(
        "16 bits, several tiles a split",
        *((1, 3, 11), (1, 13, 11)),
        **{"channels": 5, "atoms": 140, "dtype": _HALF, "small": True},
    ),
    _case("peak, several tiles a split", (1, 1, 2), (1, 1, 195), channels=53, passes=PEAK, small=True),
    _case("several bands of a task", (1, 3, 43), (1, 7, 10), tasks=2, channels=53, iterations=5, small=True),
    _case(
        "several bands of tasks",
        *((1, 5, 10), (1, 5, 15)),
        **{"tasks": 3, "channels": 7, "atoms": 70, "iterations": 5, "small": True},
        **_FIELD,
    ),
    _case(
        "windows of atoms",
        *((1, 3, 5), (2, 7, 11)),
        **{"tasks": 2, "channels": 5, "iterations": 2, "limit_divisor": 1024},
        **_FIELD,
    ),
]
