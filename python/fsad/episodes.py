"""Episodes: few-shot tasks drawn from many categories of normal pictures (section 3.2, Algorithm 1).

Corruptions turn their queries into starting points of "learning from inpainting".
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fsad.datasets import DATASETS, folders, load, read_picture
from fsad.errors import InputError
from fsad.images import display_name, list_images, resize
from fsad.procedural import ProceduralTask, spoil

FRAMES = 500
SIDES = (0.1, 0.4)  # shortest and longest side of a patch of corruption, as a share of the picture's


class Category(Protocol):
    """Normal pictures of one product."""

    name: str

    def __len__(self) -> int: ...

    def picture(self, number: int, size: int) -> np.ndarray:
        """uint8 (size, size, 3), RGB."""


class PictureCategory:
    """Given pictures, for ``read_picture``; decoded once, and kept at the size that is asked for."""

    def __init__(self, name: str, pictures: Sequence[Any]) -> None:
        self.name, self._pictures = name, pictures
        self._decoded: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._pictures)

    def picture(self, number: int, size: int) -> np.ndarray:
        key = number, size
        if key not in self._decoded:
            picture = resize(read_picture(self._pictures[number]), size)
            self._decoded[key] = (picture * 255).round().astype(np.uint8)
        return self._decoded[key]


class ProceduralCategory:
    """A product of ``fsad.procedural``, of which there could be any number of normal pictures."""

    def __init__(self, seed: int) -> None:
        self.name, self._seed = f"procedural-{seed}", seed

    def __len__(self) -> int:
        return 1000

    def picture(self, number: int, size: int) -> np.ndarray:
        return ProceduralTask(self._seed, size).normal(number).image


def place_of(root: str | os.PathLike) -> tuple[str, str, Path | None]:
    """Data set, view of its videos and folder, if it has one, in "NAME:VIEW=ROOT"; of a folder, itself."""
    about, _, folder = str(root).partition("=")
    name, _, view = about.partition(":")
    if Path(root).is_dir() or name not in DATASETS:
        return "", "", Path(root)
    return name, view, Path(folder) if folder else None


def categories_of(root: str | os.PathLike) -> list[PictureCategory]:
    """Each folder in ``root``, or ``<category>/train/good`` where there is one; or of "NAME=ROOT".

    That is a data set of ``fsad.datasets``; of its videos, up to ``FRAMES`` frames a camera, evenly spread.
    Raises InputError where there are none, or one without pictures.
    """
    if str(root) == "procedural" and not Path(root).is_dir():
        what = "the products of the data set procedural are kept for evaluation"
        raise InputError(f"{what}; to train on others like them give --procedural NUMBER")
    name, _, folder = place_of(root)
    if name or folder is None:
        found, most = load(str(root)), FRAMES if DATASETS[name].video else math.inf
        return [PictureCategory(c.name, c.normal[:: math.ceil(len(c.normal) / most) or 1]) for c in found]
    good = {path: path / "train" / "good" for path in folders(folder)}
    if not good:
        expected = "one folder of normal pictures for each, or MVTec AD's layout, <category>/train/good"
        raise InputError(f"{display_name(root)} holds no categories; expected {expected}")
    return [PictureCategory(p.name, list_images(g if g.is_dir() else p)) for p, g in good.items()]


class Episode(NamedTuple):
    """One task: float32 pictures in [0, 1]; those of its category are flipped and turned alike."""

    support: Tensor  # (K, 3, size, size)
    query: Tensor  # (M, 3, size, size), normal
    corrupted: Tensor  # the query with a corruption each, where sampling starts
    defective: Tensor  # the query with what looks like a defect each
    foreign: Tensor  # (M, 3, size, size), normal pictures of other categories; none where there are no others
    number: int


@dataclass(eq=False)
class Episodes(Dataset[Episode]):
    """An endless list of episodes; number i depends on ``seed`` and i alone.

    Hence workers, processes and a resumed training need share nothing but a number.

    Raises InputError: no category, or one with too few pictures.
    """

    categories: Sequence[Category]  # at least ``shots + queries`` normal pictures in each
    _: KW_ONLY
    shots: int = 10  # K, the support's pictures
    queries: int = 4  # M, other pictures of the same category
    size: int = 64  # pictures are resized to this square
    corruptions: Sequence[str] = ("noise",)  # of ``CORRUPTIONS``; each query gets one of them
    defects: Sequence[str] = ("defect", "cut-paste")  # likewise
    augment: bool = True  # flip and turn by 90°, one transform an episode
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.categories:
            raise InputError("got no categories to draw episodes from")
        if min(self.shots, self.queries) < 1 or self.size < 16 or self.seed < 0:
            expected = "expected shots and queries of 1 or more, a size of 16 or more and a seed of 0 or more"
            raise InputError(f"{expected}; got {self.shots}, {self.queries}, {self.size} and {self.seed}")
        short = [f"{c.name} ({len(c)})" for c in self.categories if len(c) < self.shots + self.queries]
        if short:
            shown = ", ".join(short[:5]) + (" …" if len(short) > 5 else "")
            raise InputError(
                f"an episode takes {self.shots} + {self.queries} different pictures of a category; too few "
                f"are in {shown}: add pictures, leave these out, or ask for fewer shots or queries"
            )
        for kinds in (self.corruptions, self.defects):
            corrupt(torch.empty(0, 3, 1, 1), kinds, torch.Generator())  # knows the names

    def describe(self) -> dict[str, Any]:
        """All that episodes depend on but the pictures themselves, as JSON can hold it."""
        settings = {each.name: getattr(self, each.name) for each in fields(self)}
        # In their order, by which they are drawn.
        return settings | {"categories": [[category.name, len(category)] for category in self.categories]}

    def __getitem__(self, number: int) -> Episode:
        rng = np.random.default_rng([self.seed, number])
        category = self.categories[int(rng.integers(len(self.categories)))]
        drawn = rng.choice(len(category), self.shots + self.queries, replace=False)
        pictures = self._pictures((category, int(i)) for i in drawn)
        if self.augment:
            pictures = torch.rot90(pictures, int(rng.integers(4)), (2, 3))
            pictures = pictures.flip(3) if rng.integers(2) else pictures
        support, query = pictures.contiguous().split([self.shots, self.queries])
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        corrupted, defective = (corrupt(query, k, generator) for k in (self.corruptions, self.defects))
        others = [other for other in self.categories if other is not category]
        strangers = [others[int(rng.integers(len(others)))] for _ in range(self.queries) if others]
        foreign = self._pictures((other, int(rng.integers(len(other)))) for other in strangers)
        return Episode(support, query, corrupted, defective, foreign, number)

    def _pictures(self, drawn: Iterable[tuple[Category, int]]) -> Tensor:
        pictures = [category.picture(number, self.size) for category, number in drawn]
        pixels = np.array(pictures, np.uint8).reshape(len(pictures), self.size, self.size, 3)
        return torch.from_numpy(pixels).movedim(3, 1).contiguous().float() / 255


def numbers(updates: Sequence[int], per_process: int, rank: int, world: int) -> list[int]:
    """Episodes of one of ``world`` processes: those of each update are dealt out among them."""
    firsts = ((update * world + rank) * per_process for update in updates)
    return [first + i for first in firsts for i in range(per_process)]


def corrupt(images: Tensor, kinds: Sequence[str], generator: torch.Generator) -> Tensor:
    """A copy of the images (B, C, H, W), each with one of the corruptions, drawn in turn.

    Raises InputError for a kind that is not one of ``CORRUPTIONS``.
    """
    unknown = sorted(set(kinds) - set(CORRUPTIONS))
    if unknown or not kinds:
        raise InputError(f"corruptions are of {', '.join(CORRUPTIONS)}; got {', '.join(unknown) or 'none'}")
    drawn = torch.randint(len(kinds), (len(images),), generator=generator).tolist()
    corrupted = images.clone()
    for image, kind in zip(corrupted, drawn, strict=True):
        CORRUPTIONS[kinds[kind]](image, generator)
    return corrupted


def _noise(image: Tensor, generator: torch.Generator) -> None:
    image.copy_(torch.rand(image.shape, generator=generator))


def _cut_paste(image: Tensor, generator: torch.Generator) -> None:
    """A patch moved elsewhere, its brightness changed a little (CutPaste, arXiv 2104.04015)."""
    patch = _patch(image, generator)
    source = _somewhere(image, patch.shape[1], patch.shape[2], generator)
    gain = 0.8 + 0.4 * torch.rand((), generator=generator)
    patch.copy_((gain * source).clamp(0, 1))


def _defect(image: Tensor, generator: torch.Generator) -> None:
    """A scratch, spot, dent … as on the procedural products."""
    rng = np.random.default_rng(_below(2**62, generator))
    image.copy_(torch.from_numpy(spoil(image.permute(1, 2, 0).numpy(), rng)).permute(2, 0, 1))


def _patch(image: Tensor, generator: torch.Generator) -> Tensor:
    """A view of a random rectangle of the image (C, H, W)."""
    shortest, longest = SIDES
    shares = shortest + (longest - shortest) * torch.rand(2, generator=generator)
    height, width = (max(1, int(s * n)) for s, n in zip(shares.tolist(), image.shape[1:], strict=True))
    return _somewhere(image, height, width, generator)


def _somewhere(image: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    top = _below(image.shape[1] - height + 1, generator)
    left = _below(image.shape[2] - width + 1, generator)
    return image[:, top : top + height, left : left + width]


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


CORRUPTIONS: dict[str, Callable[[Tensor, torch.Generator], None]] = {
    # Independent uniform noise in a patch (section 3.3).
    "noise": lambda image, generator: _noise(_patch(image, generator), generator),
    "cut-paste": _cut_paste,
    "defect": _defect,
    # Nothing but noise, where sampling usually starts: what section 3.3 does better than.
    "noise-start": _noise,
}
