"""Procedural parts with defects and masks: pictures for tests, the demo without data, and documentation.

Two kinds of part: "disc", an object (a brushed metal washer whose angle, place and shade vary), and "weave",
a texture. Every picture depends on its seed alone. Nothing here imitates a particular data set.
"""

from typing import NamedTuple

import numpy as np

from .errors import InputError

KINDS = ("disc", "weave")
DEFECTS = ("scratch", "spot", "dent")


class Part(NamedTuple):
    """image: uint8 (size, size, 3); mask: bool (size, size), true where the part is defective."""

    image: np.ndarray
    mask: np.ndarray


def make_part(kind: str = "disc", defect: str | None = None, *, size: int = 128, seed: int = 0) -> Part:
    """One part of `KINDS`, normal or with one defect of `DEFECTS`, both drawn from `seed`.

    Raises `InputError` for an unknown kind or defect, or a size below 16.
    """
    if kind not in KINDS or defect not in (None, *DEFECTS) or size < 16:
        raise InputError(
            f"make_part(kind={kind!r}, defect={defect!r}, size={size}); expected a kind of {KINDS}, a "
            f"defect of {DEFECTS} or None, and a size of at least 16."
        )
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    y, x = np.mgrid[:size, :size].astype(np.float64) / size - 0.5
    grey, body = _disc(x, y, rng) if kind == "disc" else _weave(x, y, rng)
    grey = grey + 0.03 * _noise(size, size // 2, rng) + 0.015 * rng.standard_normal((size, size))
    tint = np.array([1.0, 0.985, 0.95]) * rng.uniform(0.95, 1.05)
    mask = np.zeros((size, size), bool)
    if defect is not None:
        grey, mask = _damage(grey, body, x, y, defect, rng)
    image = np.clip(grey[:, :, None] * tint, 0, 1)
    return Part((image * 255).round().astype(np.uint8), mask)


def make_parts(
    count: int, kind: str = "disc", *, defective: bool = False, size: int = 128, seed: int = 0
) -> list[Part]:
    """`count` parts with seeds of their own; with `defective`, the kinds of defect take turns."""
    return [
        make_part(
            kind,
            DEFECTS[i % len(DEFECTS)] if defective else None,
            size=size,
            seed=10_000 * seed + i,
        )
        for i in range(count)
    ]


def _noise(size: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise (size, size), about in [-1, 1]: random values on a coarse grid, interpolated."""
    grid = rng.uniform(-1, 1, (cells + 2, cells + 2))
    at = np.linspace(0, cells, size)
    low, part = at.astype(int), at % 1
    rows = grid[low] * (1 - part)[:, None] + grid[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def _disc(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A washer with three slots, lit from one side: grey values and where the part is, both (size, size)."""
    x, y = x - rng.uniform(-0.02, 0.02), y - rng.uniform(-0.02, 0.02)
    radius, angle = np.hypot(x, y), np.arctan2(y, x) + rng.uniform(-np.pi, np.pi)
    edge = 1 / len(x)
    inside = np.clip((0.40 - radius) / edge, 0, 1) * np.clip((radius - 0.13) / edge, 0, 1)
    hole = np.hypot((angle * 3 / np.pi + 1) % 2 - 1, (radius - 0.27) / 0.09)
    inside *= np.clip((hole - 0.38) * 8, 0, 1)
    metal = 0.62 + 0.10 * np.cos(np.arctan2(y, x) - 0.8) + 0.03 * np.sin(radius * 220)
    ring = 0.12 * np.exp(-(((radius - 0.37) / 0.012) ** 2))
    return 0.16 * (1 - inside) + inside * (metal + ring) * rng.uniform(0.96, 1.04), inside > 0.99


def _weave(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A woven cloth with irregular threads: grey values and where the part is, both (size, size)."""
    bend = 0.006 * _noise(len(x), 6, rng)
    u, v = (x + bend + rng.uniform()) * 16, (y - bend + rng.uniform()) * 16
    over = (np.floor(u) + np.floor(v)) % 2 == 0
    thread = np.where(over, np.sin(np.pi * (u % 1)), np.sin(np.pi * (v % 1)))
    return 0.28 + 0.34 * thread + 0.06 * over + 0.04 * _noise(len(x), 4, rng), np.ones(x.shape, bool)


def _damage(
    grey: np.ndarray,
    body: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    defect: str,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The grey values with one defect on the body, and its mask."""
    rows, columns = np.nonzero(body & (np.hypot(x, y) < 0.42))
    at = rng.integers(len(rows))
    dx, dy = x - x[rows[at], columns[at]], y - y[rows[at], columns[at]]
    turn = rng.uniform(0, np.pi)
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    if defect == "scratch":
        across = across + 0.012 * np.sin(along * 30)
        shape = (np.abs(along) < rng.uniform(0.09, 0.14)) & (np.abs(across) < 0.012)
        change = np.where(shape, rng.uniform(0.25, 0.35), 0)
    else:
        spread = np.hypot(along / rng.uniform(0.06, 0.08), across / rng.uniform(0.045, 0.06))
        shape = spread < 1
        blotch = -0.35 if defect == "spot" else 0.5 * across / 0.05  # a dent is bright on one side
        change = np.where(shape, blotch * (1 - spread**4), 0)
    return grey + np.where(body, change, 0), shape & body
