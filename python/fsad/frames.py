"""Pictures cut into the network's inputs, and what comes out put together again as maps and scores.

Tiles, the region of interest and pooling are here. Every score of this project, and of every
baseline beside it, is pooled in the same way (``score_maps``).
"""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fsad.errors import DivergedError, InputError
from fsad.images import ImageLike, display_name, list_images, load_image, resize

SMOOTHING = 4 / 256  # standard deviation of the Gaussian, as a share of the network's input size
TOP_SHARE = 0.01  # the score is the mean of this share of a map's pixels: a defect is small


@dataclass(frozen=True)
class Frame:
    """Where the tiles of a picture lie, and which of its pixels count."""

    size: tuple[int, int]  # (H, W) of the picture
    corners: tuple[tuple[int, int], ...]  # (top, left) of each tile
    tile: tuple[int, int]  # (height, width) of all of them
    roi: Tensor | None = None  # bool (H, W); None where every pixel counts

    @classmethod
    def of(cls, size: tuple[int, int], tile: int, roi: Tensor | None) -> "Frame":
        """Square tiles that overlap by a quarter or more and cover all that counts.

        Raises InputError for a picture smaller than one tile, or where nothing counts.
        """
        shown = f"{size[1]} x {size[0]} pixels"
        if min(size) < tile:
            advice = "choose smaller tiles, or none (tile=None), which resizes the pictures"
            raise InputError(f"{shown} are less than one tile of {tile} x {tile}; {advice}")
        # Evenly spread from the first pixel to the last: no tile reaches over the border.
        rows, columns = (
            np.linspace(0, n - tile, math.ceil((n - tile) / (0.75 * tile)) + 1).round().astype(int)
            for n in size
        )
        corners = tuple((int(y), int(x)) for y in rows for x in columns)
        if roi is not None:
            corners = tuple((y, x) for y, x in corners if roi[y : y + tile, x : x + tile].any())
            if not corners:
                raise InputError(f"the region of interest is empty at {shown}")
        return cls(size, corners, (tile, tile), roi)

    def cut(self, picture: Tensor) -> Tensor:
        """The tiles of a picture: (C, H, W) -> (T, C, tile height, tile width)."""
        h, w = self.tile
        return torch.stack([picture[:, y : y + h, x : x + w] for y, x in self.corners])

    def positions(self, grid: tuple[int, int]) -> Tensor | None:
        """Which feature positions hold a pixel that counts: bool (T, h, w), or None for all."""
        if self.roi is None:
            return None
        return F.adaptive_max_pool2d(self.cut(self.roi[None]).float(), grid)[:, 0] > 0

    def assemble(self, values: Tensor) -> Tensor:
        """Values at the feature positions of the tiles (T, h, w) -> one smoothed map (H, W).

        Upsampled bilinearly; where tiles overlap, blended with weights that fall towards their
        borders, since features there have seen padding. What does not count does not enter.
        """
        known = self.positions((values.shape[1], values.shape[2]))
        known = torch.ones_like(values) if known is None else known.to(values)
        parts = torch.stack([values * known, known], dim=1)
        parts = F.interpolate(parts, self.tile, mode="bilinear", align_corners=False)
        parts = parts * _hat(self.tile).to(values)
        total = values.new_zeros(2, *self.size)
        h, w = self.tile
        for part, (y, x) in zip(parts, self.corners, strict=True):
            total[:, y : y + h, x : x + w] += part
        sigma = SMOOTHING * math.sqrt(h * w)
        return _smooth(total[0] / total[1].clamp_min(1e-12), sigma, self.roi)

    def pool(self, values: Tensor) -> tuple[Tensor, float]:
        """The map (H, W) of ``assemble`` and the mean of the top 1 % of its pixels that count."""
        anomaly_map = self.assemble(values)
        pixels = anomaly_map.flatten() if self.roi is None else anomaly_map[self.roi]
        score = float(pixels.topk(max(1, round(TOP_SHARE * len(pixels)))).values.mean())
        if not math.isfinite(score):
            raise DivergedError(f"a picture's score is {score}: its features or energies diverged")
        return anomaly_map, score


def score_maps(energies: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """``Frame.pool`` of whole pictures: energies (B, h, w) -> maps (B, size, size), scores (B,)."""
    frame = Frame.of((size, size), size, None)
    maps, scores = zip(*(frame.pool(energy[None]) for energy in energies), strict=True)
    return torch.stack(maps), torch.tensor(scores)


class Picture(NamedTuple):
    """A decoded picture."""

    source: Any  # what it was given as
    frame: Frame
    size: tuple[int, int]  # (height, width) before resizing
    tiles: Tensor  # (T, 3, h, w)


def read(
    source: Any, input_size: int, tile: int | None, roi: np.ndarray | None, max_pixels: int | None
) -> Picture:
    """Decode a picture and resize it to ``input_size``, or cut it into tiles.

    ``roi`` is bool (H, W) of any size. Raises InputError, which names the picture.
    """
    pixels, inside = load_image(source, max_pixels), None
    original = (pixels.shape[0], pixels.shape[1])
    pixels = resize(pixels, input_size) if tile is None else pixels
    size = (pixels.shape[0], pixels.shape[1])
    if roi is not None:
        inside = torch.from_numpy(resize(roi.astype(np.float32), size) >= 0.5)
    try:
        frame = Frame.of(size, tile or input_size, inside)
    except InputError as error:
        name = display_name(source) if isinstance(source, (str, os.PathLike)) else "picture"
        raise InputError(f"{name}: {error}") from None
    return Picture(source, frame, original, frame.cut(torch.from_numpy(pixels).permute(2, 0, 1)))


class PictureResult(NamedTuple):
    """What there is to say about one picture; of an unreadable one only ``error``."""

    source: Any  # what it was given as
    score: float | None = None
    anomalous: bool | None = None
    anomaly_map: np.ndarray | None = None  # float32 (H, W), see ``FewShotDetector.anomaly_maps``
    size: tuple[int, int] | None = None  # (height, width) of the picture as it was given
    error: str | None = None


def read_each(images: Any, on_error: str, *how: Any) -> Iterator[Picture | PictureResult]:
    """``read(source, *how)`` for one picture after the other; ``on_error`` "raise" or "skip"."""
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    for source in sources(images):
        try:
            yield read(source, *how)
        except InputError as error:
            if on_error == "raise":
                raise
            yield PictureResult(source, error=str(error))


def sources(images: Any) -> Iterable[Any]:
    """The single pictures in whatever a caller calls ``images`` (see ``FewShotDetector``)."""
    if isinstance(images, (str, os.PathLike)) and Path(images).is_dir():
        return list_images(images)
    if isinstance(images, ImageLike) and getattr(images, "ndim", 0) != 4:
        return [images]
    if isinstance(images, Iterable):
        return images
    expected = "paths, a folder, PIL images, arrays or tensors"
    raise InputError(f"got {type(images).__name__} for pictures; expected {expected}")


def _smooth(pixels: Tensor, sigma: float, roi: Tensor | None) -> Tensor:
    """Gaussian over the pixels (H, W) that count, 0 elsewhere. A normalised convolution: neither the padding
    nor what does not count enters."""
    inside = torch.ones_like(pixels) if roi is None else roi.to(pixels)
    radius = math.ceil(3 * sigma)
    grid = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
    kernel = torch.exp(-grid.square() / (2 * sigma**2))
    pair = torch.stack([pixels * inside, inside])[:, None]
    pair = F.conv2d(pair, kernel.view(1, 1, -1, 1), padding=(radius, 0))
    pair = F.conv2d(pair, kernel.view(1, 1, 1, -1), padding=(0, radius))[:, 0]
    return pair[0] / pair[1].clamp_min(1e-12) * inside


def _hat(size: tuple[int, int]) -> Tensor:
    """Weights (h, w) that rise linearly from near 0 at the border to 1 in the middle."""
    rows, columns = (1 - (2 * (torch.arange(n) + 0.5) / n - 1).abs() * (1 - 1 / n) for n in size)
    return torch.outer(rows, columns)
