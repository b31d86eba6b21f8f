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
    ties: bool = False  # several atoms are the best
    small: bool = False  # limits of workspaces, see compiler.py

    @cached_property
    def problem(self) -> Problem:
        return Problem(**self.settings)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        tensors = self.problem.rounded(self.dtype)
        if self.ties:
            tensors["atom_map"][:] = 0
            for position in (23, 70, 71, 99):
                tensors["atom_map"].view(-1, self.problem.channels)[position] = (-1.0) ** position
            tensors["queries"][:] = 1
        return tensors


def _case(name: str, query_shape: tuple[int, ...], atom_shape: tuple[int, ...], **settings: Any) -> Case:
    whole = {field: settings.pop(field) for field in Case.__dataclass_fields__ if field in settings}
    return Case(name, {"query_shape": query_shape, "atom_shape": atom_shape, **settings}, **whole)


_HALF = torch.bfloat16
# The cheapest and most telling first. Sizes are one beyond a tile: 65 queries are two tiles of 64 or three of
# 32, 33 atoms two of 32. Float32 is fused up to 4 steps and 160 numbers (16 bits up to 192), banded beyond, and
# plain where a sum has fewer than 32 terms. With field 3, patches reach over borders and atoms are thinned.
_FIELD = {"receptive_field": 3}
CASES = [
    _case("fused", (1, 5, 13), (1, 3, 11), tasks=2, channels=37, iterations=2),
    _case(
        "fused, field 3",
        *((2, 3, 6), (1, 7, 13)),
        **{"tasks": 2, "channels": 5, "atoms": 70, "iterations": 3, "shrinkage": "soft", "shared_kib": 100},
        **_FIELD,
    ),
    _case("fused 16 bits", (1, 5, 13), (1, 1, 67), tasks=2, channels=70, iterations=2, dtype=_HALF),
    _case("banded", (1, 5, 13), (1, 1, 67), tasks=2, channels=37, iterations=5),
    _case("wide", (1, 3, 11), (1, 7, 5), tasks=2, channels=21, atoms=34, iterations=2, **_FIELD),
    _case("wide 16 bits", (1, 3, 3), (1, 7, 5), channels=197, iterations=2, shrinkage="none", dtype=_HALF),
    _case("plain", (1, 5, 13), (1, 7, 5), tasks=2, channels=2, atoms=33, iterations=2, **_FIELD),
    _case("plain, wide", (1, 1, 5), (1, 1, 12), tasks=2, channels=230, iterations=1),
    _case("peak", (1, 5, 13), (1, 7, 13), tasks=2, channels=5, atoms=70, passes=PEAK, **_FIELD),
    _case("peak 16 bits", (1, 5, 13), (1, 10, 10), channels=3, dtype=_HALF, passes=PEAK),
    _case("peak of several", (1, 1, 2), (1, 10, 10), channels=33, passes=PEAK, ties=True),
    _case("plain peak", (1, 1, 5), (1, 7, 5), tasks=2, channels=3, passes=PEAK),
    _case("fused, not resident", (1, 5, 13), (1, 3, 11), channels=150, iterations=3, shared_kib=100),
    _case("fused, TF32", (1, 5, 13), (1, 3, 11), channels=37, iterations=2, allow_tf32=True),
    _case(
        "fused, several tiles a split",
        *((1, 3, 11), (1, 5, 15)),
        **{"channels": 5, "atoms": 70, "iterations": 2, "small": True},
        **_FIELD,
    ),
    _case("16 bits, several tiles a split", (1, 3, 11), (1, 13, 11), channels=5, dtype=_HALF, small=True),
    _case("peak, several tiles a split", (1, 1, 2), (1, 1, 195), channels=33, passes=PEAK, small=True),
    _case("several bands of a task", (1, 5, 13), (1, 7, 10), tasks=2, channels=37, iterations=5, small=True),
    _case(
        "several bands of tasks",
        *((1, 3, 11), (1, 5, 15)),
        **{"tasks": 3, "channels": 4, "atoms": 70, "iterations": 5, "small": True},
        **_FIELD,
    ),
]
