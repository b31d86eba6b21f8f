"""Procedural products with defects and masks: any number of tasks to train and test on, without any data.

What makes a product what it is comes from the generator `task`, which starts anew for every picture; what
differs between pictures comes from `part`. Lengths are shares of a picture's side, so that a task looks the
same at every size. Arrays are (size, size), colours (size, size, 3). Nothing imitates a particular data set.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array
from numpy.random import Generator, default_rng

from fsad.errors import InputError

TEXTURES = ("weave", "grain", "speckle", "tiles", "knit")
FAMILIES = (*TEXTURES, "disc", "nut", "board", "cap")
DEFECTS = ("scratch", "spot", "dent", "missing", "crack", "smear", "discolour")
HELD_OUT = 1_000_000  # tasks from this seed on are for evaluation, and never trained on
Surface = tuple[Array, Array, Array | float]  # colours, height, distance from the outline (negative inside)
_ramp = partial(np.clip, a_min=0, a_max=1)


class Part(NamedTuple):
    """image: uint8 (size, size, 3); mask: bool (size, size), true where the part is defective."""

    image: Array
    mask: Array


class ProceduralTask:
    """One product: a family of textures or objects with parameters of its own, all drawn from `seed`.

    Picture `number` depends on (seed, number) alone, and looks the same at every size but for its noise.
    Raises `InputError` for an unknown family or defect, a size below 16, or a negative seed or number.
    """

    def __init__(self, seed: int, size: int = 64, family: str | None = None) -> None:
        if seed < 0 or size < 16 or family not in (None, *FAMILIES):
            got = f"ProceduralTask(seed={seed}, size={size}, family={family!r})"
            raise InputError(f"{got}; expected seed >= 0, size >= 16 and a family of {FAMILIES} or None.")
        self.seed, self.size = seed, size
        self.family = family or FAMILIES[default_rng(seed).integers(len(FAMILIES))]
        self._key = seed, FAMILIES.index(self.family)
        self.name = f"procedural-{self.family}-{seed}"

    def normal(self, number: int) -> Part:
        """Normal picture `number`; its mask is empty."""
        return Part(_pixels(self._paint(number)[0]), np.zeros((self.size, self.size), bool))

    def defective(self, number: int, defect: str | None = None) -> Part:
        """Normal picture `number` with one defect of `DEFECTS`, drawn if None; all else stays as it is."""
        if defect not in (None, *DEFECTS):
            raise InputError(f"defect={defect!r}; expected one of {DEFECTS} or None.")
        rng = default_rng((*self._key, 3, number))
        image, ground, body, light = self._paint(number)
        # Well on the body is the first point that it surrounds; seen at one size, it is the same at all.
        small = body if self.size == 64 else ProceduralTask(self.seed, 64, self.family)._paint(number)[2]
        damaged, share = _spoil(image, ground, body, small, light, defect, rng)
        return Part(_pixels(damaged), share > 0.2)

    def _paint(self, number: int) -> tuple[Array, Array, Array, complex]:
        """Colours of the picture and of what is behind the part, where the part is, whence light comes."""
        if number < 0:
            raise InputError(f"number={number}; expected a picture's number, from 0.")
        task, part, noise = (default_rng((*self._key, *key)) for key in ((0,), (1, number), (2, number)))
        grid, texture = _grid(self.size), self.family in TEXTURES
        spin = (0.03, 0.15, np.pi)[0 if texture else task.integers(3)]
        turn = part.uniform(-spin, spin) + texture * task.integers(2) * task.uniform(0, np.pi)
        shift = complex(*part.uniform(-1, 1, 2)) * (4 if texture else 0.025)
        place = part.uniform(0.98, 1.02) * np.exp(1j * turn) * grid + shift
        u, v = place.real.copy(), place.imag.copy()
        colour, height, distance = _PAINTERS[self.family](u, v, task, part)
        cover = _ramp(0.5 - self.size * (distance + 0 * u))
        height = height + task.uniform(0.01, 0.04) * _ramp(-distance / task.uniform(0.01, 0.06))
        light = np.exp(1j * (task.uniform(-np.pi, np.pi) + part.uniform(-0.15, 0.15)))
        rough = 1 + task.uniform(0, 0.1) * _noise(24 * u, 24 * v, part)[:, :, None]
        colour = colour * (rough + task.uniform(0.2, 0.5) * _slope(height, light)[:, :, None])
        ground = _palette(task, 1, (0.1, 0.9)[task.integers(2)]) * rough
        slant = (grid * np.exp(2j * np.pi * part.uniform())).real[:, :, None]
        lamp = part.uniform(0.93, 1.07) + part.uniform(-0.02, 0.02, 3) + 0.12 * slant
        grain = task.uniform(0.006, 0.02) * noise.standard_normal(colour.shape)
        image, ground = lamp * _mix(ground, colour, cover) + grain, lamp * ground + grain
        return image, np.roll(image, self.size // 3, (0, 1)) if texture else ground, cover > 0.5, light


def spoil(image: Array, rng: Generator) -> Array:
    """A copy of any square picture (size, size, 3) of colours in [0, 1] with one defect of `DEFECTS`."""
    size = len(image)
    elsewhere = np.roll(image, tuple(rng.integers(size, size=2)), (0, 1))
    light = np.exp(2j * np.pi * rng.uniform())
    return _ramp(_spoil(image, elsewhere, np.ones((size, size)), np.ones((64, 64)), light, None, rng)[0])


def _spoil(
    image: Array, ground: Array, body: Array, small: Array, light: complex, kind: str | None, rng: Generator
) -> tuple[Array, Array]:
    """The picture with a defect somewhere on its body, and how far that changes each pixel. `small` is the
    body at 64 pixels, which decides where."""
    size, drawn, turn = len(image), DEFECTS[rng.integers(len(DEFECTS))], np.exp(2j * np.pi * rng.uniform())
    kind, reach = kind or drawn, max(0.05 * 2.6 ** rng.uniform(), 2 / size)
    points = rng.uniform(-0.42, 0.42, (32, 1, 2)) @ [1, 1j]
    around = (np.add(points, [0, 0.04, -0.04, 0.04j, -0.04j]) + 0.5 + 0.5j) * 64
    inside = small[around.imag.astype(int), around.real.astype(int)].sum(1)
    place = (_grid(size) - points[inside.argmax()]) * turn / reach
    share = body * _shape(kind, place, 1 / (size * reach), rng)
    damaged = _mix(image, _damage(kind, image, ground, share, light, rng), share)
    return np.where(share[:, :, None] > 0.2, damaged, image), share


def _pixels(image: Array) -> Array:
    return (_ramp(image) * 255).round().astype(np.uint8)


def _grid(size: int) -> Array:
    """The centres of the pixels as x + iy, in [-1/2, 1/2]."""
    at = (np.arange(size) + 0.5) / size - 0.5
    return at + 1j * at[:, None]


def _mix(one: Array, other: Array, share: Array) -> Array:
    return one + share[:, :, None] * (other - one)


def _slope(height: Array, light: complex) -> Array:
    """How much a surface rises towards the light, in [-1, 1]."""
    down, right = np.gradient(height * len(height))
    return np.tanh(right * light.real + down * light.imag)


def _noise(u: Array, v: Array, rng: Generator) -> Array:
    """Smooth noise in [-1, 1]: random values at the integer points, interpolated; repeats after 64."""
    values, i, j = rng.uniform(-1, 1, 64 * 64), np.floor(u).astype(int), np.floor(v).astype(int)
    s, t = ((3 - 2 * x) * x * x for x in (u - i, v - j))
    left, right, up, low = i & 63, (i + 1) & 63, (j & 63) * 64, ((j + 1) & 63) * 64
    upper = values[up + left] * (1 - s) + values[up + right] * s
    return upper * (1 - t) + (values[low + left] * (1 - s) + values[low + right] * s) * t


def _palette(task: Generator, count: int, dark: float = 0.25, bright: float = 0.85) -> Array:
    """(count, 3): colours of equally spaced brightness in any order, from grey to vivid."""
    hue = task.uniform() + np.cumsum(task.uniform(0, 0.5, (count, 1)) ** 2, 0)
    vivid = task.uniform(0, 0.9) ** 1.5 * task.uniform(0.4, 1, (count, 1))
    value = task.permutation(np.linspace(dark, bright, count) + task.uniform(-0.1, 0.1))[:, None]
    return 0.03 + value * (1 - vivid * (0.5 - 0.5 * np.cos(2 * np.pi * (hue + np.arange(3) / 3))))


def _weave(u: Array, v: Array, task: Generator, part: Generator) -> Surface:
    bend, step = task.uniform(0.05, 0.3) * _noise(5 * u, 5 * v, part), task.integers(1, 4)
    a, b = u * task.uniform(6, 13) + bend, v * task.uniform(6, 13) - bend
    over = (np.floor(a) + step * np.floor(b)) % (step + 1) < 1
    across, along = np.sin(np.pi * (np.where(over, (a, b), (b, a)) % 1))
    behind, warp, weft = _palette(task, 3)
    height = task.uniform(0.01, 0.04) * across * (0.6 + 0.4 * along)
    return _mix(behind, _mix(weft, warp, over), _ramp(across / task.uniform(0.2, 0.6))), height, -1


def _grain(u: Array, v: Array, task: Generator, part: Generator) -> Surface:
    weight, (light, dark) = task.uniform(), _palette(task, 2, task.uniform(0.25, 0.55), 0.8)
    bend = task.uniform(0.3, 1.5) * _noise(task.uniform(0.5, 2) * u, 3 * v, part)
    ring = (0.5 + 0.5 * np.cos(2 * np.pi * (v * task.uniform(2, 9) + bend))) ** task.uniform(1, 4)
    fibre = _noise(task.uniform(1, 5) * u, task.uniform(16, 26) * v, part)
    return _mix(light, dark, _ramp(weight * ring + (0.5 - 0.35 * weight) * (1 + fibre))), 0.004 * fibre, -1


def _speckle(u: Array, v: Array, task: Generator, part: Generator) -> Surface:
    colours, count, largest = _palette(task, 5), task.uniform(3, 7), task.uniform(0.15, 0.5)
    colour, bend = colours[0] + 0 * u[:, :, None], 0.3 * _noise(2 * count * u, 2 * count * v, part)
    for a, b in ((u + 0.3 * v, v - 0.3 * u), (1.4 * v - 0.5 * u, 1.4 * u + 0.5 * v)):
        a, b = a * count + bend, b * count - bend  # each cell of each layer has a chip, or none
        cell = (np.floor(a).astype(int) & 63) * 64 + (np.floor(b).astype(int) & 63)
        x, y, radius = part.uniform(-0.1, 0.1, (3, 64 * 64))[:, cell]
        depth = largest * (0.4 + 6 * radius) - np.hypot(a % 1 - 0.5 - x, b % 1 - 0.5 - y)
        colour = _mix(colour, colours[part.integers(1, 5, 64 * 64)[cell]], _ramp(8 * depth))
    return colour, task.uniform(-0.03, 0.03) * colour.mean(2), -1


def _tiles(u: Array, v: Array, task: Generator, part: Generator) -> Surface:
    rows, long, (joint, one, other) = task.uniform(2.5, 7), task.uniform(1, 2.2), _palette(task, 3)
    a, b = u * rows / long + task.integers(2) / 2 * np.floor(v * rows), v * rows
    edge = np.minimum(long * (0.5 - abs(a % 1 - 0.5)), 0.5 - abs(b % 1 - 0.5)) / rows
    edge -= task.uniform(0.006, 0.02)
    i, j = np.floor(a).astype(int) & 63, np.floor(b).astype(int) & 63
    share = (i + j) % 2 * task.integers(2) + task.uniform(0, 0.25) * part.uniform(-1, 1, (64, 64))[i, j]
    height = task.uniform(0.005, 0.03) * _ramp(edge / task.uniform(0.01, 0.03))
    return _mix(joint, _mix(one, other, share), _ramp(0.5 + len(u) * edge)), height, -1


def _knit(u: Array, v: Array, task: Generator, part: Generator) -> Surface:
    bend, stripes = 0.1 * _noise(4 * u, 4 * v, part), task.integers(4, size=4) * task.integers(2)
    side = abs((u * task.uniform(5, 10) + bend) % 1 - 0.5) * 2
    row = v * task.uniform(6, 12) + task.uniform(-1.5, 1.5) * side + bend
    stitch = np.sin(np.pi * (row % 1)) * np.sin(np.pi * np.clip(side, 0.05, 0.95)) ** task.uniform(0.2, 1)
    yarn = _palette(task, 4)[stripes[np.floor(row / task.integers(1, 3)).astype(int) & 3]]
    return _mix(task.uniform(0.2, 0.6) * yarn, yarn, stitch), task.uniform(0.01, 0.04) * stitch, -1


def _disc(u: Array, v: Array, task: Generator, part: Generator, rim: Array | float = 1) -> Surface:
    outer, count, (metal, paint) = task.uniform(0.3, 0.44), task.integers(1, 7), _palette(task, 2, 0.35, 0.7)
    radius, angle, middle = np.hypot(u, v) / outer, np.arctan2(v, u), task.uniform(0.6, 0.7)
    arc = (angle * count / (2 * np.pi) % 1 - 0.5) * 2 * np.pi * middle / count
    slot = np.hypot(arc / task.uniform(1, 2), radius - middle) - task.uniform(-0.1, 0.15)  # or none
    distance = np.maximum.reduce([radius * rim - 1, task.uniform(0.1, 0.5) - radius, -slot])
    band = _ramp(30 * (task.uniform(-0.1, 0.1) - abs(radius - task.uniform(0.4, 0.9))))
    gloss = 1 + task.uniform(0, 0.25) * np.cos(2 * angle + task.uniform(0, 6))
    grooves = task.uniform(0, 0.004) * np.cos(2 * np.pi * task.uniform(3, 6) * radius)
    return _mix(metal, paint, band) * gloss[:, :, None], grooves, distance * outer


def _nut(u: Array, v: Array, task: Generator, part: Generator) -> Surface:
    count, angle = task.integers(4, 9), np.arctan2(v, u)
    facet = (angle * count / (2 * np.pi) % 1 - 0.5) * 2 * np.pi / count
    tooth = _ramp(0.5 + task.uniform(0.6, 2) * np.cos((count + task.integers(2, 12)) * angle))
    polygon, gear = np.cos(facet) / np.cos(np.pi / count), 1 + task.uniform(0.06, 0.15) * tooth
    return _disc(u, v, task, part, gear if task.integers(2) else polygon)


def _board(u: Array, v: Array, task: Generator, part: Generator) -> Surface:
    half, cells, colours = task.uniform(0.25, 0.38, 2), task.integers(2, 5, 2), _palette(task, 6)
    tracks = _ramp(1.5 - 12 * abs(_noise(5 * u, 5 * v, task)))
    colour, height = _mix(colours[0], colours[:2].mean(0), tracks), 0 * u
    for cell in task.permutation(cells[0] * cells[1])[: task.integers(3, 10)]:
        reach = half / cells * task.uniform(0.4, 0.85, 2)
        centre = (2 * np.array(divmod(cell, cells[1])) + 1) * half / cells - half + part.normal(0, 0.002, 2)
        x, y = abs(u - centre[0]), abs(v - centre[1])
        outline = np.maximum(x - reach[0], y - reach[1]) if task.integers(3) else np.hypot(x, y) - reach.min()
        for inner in (outline, outline + task.uniform(0.3, 2) * reach.min()):  # its top, perhaps
            colour = _mix(colour, colours[task.integers(1, 6)], _ramp(0.5 - len(u) * inner))
        height = np.maximum(height, 0.03 * _ramp(-outline / 0.02))
    return colour, height, np.maximum(abs(u) - half[0], abs(v) - half[1])


def _cap(u: Array, v: Array, task: Generator, part: Generator) -> Surface:
    outer, inner, colours = task.uniform(0.32, 0.44), task.uniform(0.7, 0.9), _palette(task, 4)
    radius, angle, letters = np.hypot(u, v) / outer, np.arctan2(v, u), task.integers(8, 20)
    text = task.integers(2, size=32)[(angle * letters / (2 * np.pi)).astype(int) + 16]
    text = text * _ramp(30 * (task.uniform(0.1, 0.17) - abs(radius / inner - 0.75)))
    star = task.uniform(0.2, 0.35) * (1 + task.uniform(0, 0.6) * np.cos(task.integers(2, 7) * angle))
    face = _mix(_mix(colours[0], colours[1], text), colours[2], _ramp(20 * (star - radius)))
    rim, teeth = _ramp((radius - inner) / (1 - inner)), np.cos(task.integers(14, 26) * angle)
    height = rim * (task.uniform(0.005, 0.015) * teeth - 0.08 * rim)
    return _mix(face, colours[task.integers(4)], _ramp(8 * rim)), height, (radius - 1 - 0.03 * teeth) * outer


def _shape(kind: str, place: Array, pixel: float, rng: Generator) -> Array:
    """How far a defect changes each pixel, in [0, 1]; `place` and `pixel` are in units of its reach."""
    if kind in ("scratch", "crack"):
        steps, crack = rng.normal(0, 0.25, 11), kind == "crack"
        walk = np.cumsum(steps if crack else 0.1 * np.cumsum(steps))
        fork = walk + crack * np.linspace(-1.2, 1.2, 11).clip(0)
        paths = [np.interp(place.real, np.linspace(-1.6, 1.6, 11), path - walk[5]) for path in (walk, fork)]
        half = max(0.04 if crack else 0.1, 0.75 * pixel) * _ramp(4 - 2.5 * abs(place.real))
        return _ramp((half - abs(place.imag - paths).min(0)) / pixel + 0.5) * (half > 0)
    outline = rng.uniform(0.7, 1) + np.cos(np.angle(place)[:, :, None] * [2, 3]) @ rng.uniform(0, 0.25, 2)
    sharpness = {"dent": 1.5, "missing": 1 / pixel}.get(kind, rng.uniform(2, 8))
    return _ramp((1 - abs(place) / outline) * sharpness)


def _damage(kind: str, image: Array, ground: Array, share: Array, light: complex, rng: Generator) -> Array:
    """The colours towards which a defect changes its share of each pixel."""
    relief = _slope(0.04 * share, light)[:, :, None]
    hue = np.cos(2 * np.pi * (rng.uniform() + np.arange(3) / 3))
    if kind == "missing":
        return ground * (0.8 + 0.2 * relief)
    if kind == "dent":
        return image + (0.2 + 0.8 * image) * (rng.choice([-1, 1]) * rng.uniform(0.3, 0.8) * relief - 0.06)
    if kind == "discolour":
        return image + rng.uniform(0.1, 0.3) * hue * (0.3 + image)
    if kind == "smear":
        step = (rng.uniform(-0.03, 0.03, 2) * len(image)).round().astype(int)
        return np.mean([np.roll(image, k * step, (0, 1)) for k in range(-2, 3)], 0) * rng.choice([0.8, 1.2])
    near = (share[:, :, None] * image).sum((0, 1)) / share.sum()
    change = rng.uniform(0.15, 0.4) * (1 if kind != "crack" and near.mean() < rng.uniform(0.3, 0.7) else -1)
    return near + change + rng.uniform(0, 0.1) * hue + 0.3 * (image - near)


_PAINTERS = {p.__name__[1:]: p for p in (_weave, _grain, _speckle, _tiles, _knit, _disc, _nut, _board, _cap)}
