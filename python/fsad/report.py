"""What people look at: heat maps, boxes around defects, overlay pictures and the report in one HTML file.

One rule holds everywhere. The score of a picture is the mean of the top 1 % of its anomaly map, so the
threshold of the scores is also a level of the map: **a pixel counts as defective where the map is above
the threshold of the scores**. Every picture called anomalous then has at least one such pixel. Their
8-connected regions become the boxes; pictures called normal have none.
"""

import base64
import io
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from .images import resize

# From transparent yellow to dense red, for values of a map from half the threshold to twice it.
HEAT_FROM, HEAT_TO = 0.5, 2.0
HEAT_STOPS = ((255, 221, 51), (255, 128, 0), (224, 0, 76))
HEAT_LEVELS = 32
OVERLAY_SIDE = 1024  # overlay PNGs are no larger than this: they are for looking at
MANY = 300  # in a report of more pictures than this they are smaller, to bound its size


class Region(NamedTuple):
    """A box around connected defective pixels, in pixels of the picture; `area` counts the pixels."""

    x: int
    y: int
    width: int
    height: int
    area: int
    peak: float  # the largest value of the map inside


class ReportItem(NamedTuple):
    """One picture of the report: its row of scores.json, the bytes of a small JPEG and of its heat's PNG."""

    row: dict[str, Any]
    picture: bytes
    heat: bytes


def find_regions(anomaly_map: np.ndarray, threshold: float, size: tuple[int, int]) -> list[Region]:
    """The defective regions of a map (h, w) of a picture of `size` (H, W) pixels, the largest first."""
    labels, _ = ndimage.label(anomaly_map > threshold, structure=np.ones((3, 3)))
    down, right = size[0] / anomaly_map.shape[0], size[1] / anomaly_map.shape[1]
    regions = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[rows, columns] == label
        top, left = int(rows.start * down), int(columns.start * right)
        bottom, end = int(np.ceil(rows.stop * down)), int(np.ceil(columns.stop * right))
        area = max(1, round(inside.sum() * down * right))
        peak = float(anomaly_map[rows, columns][inside].max())
        regions.append(Region(left, top, end - left, bottom - top, area, peak))
    return sorted(regions, key=lambda region: -region.area)


def heat_image(anomaly_map: np.ndarray, threshold: float) -> Image.Image:
    """A map (h, w) as a palette picture of the same size whose colours carry their own transparency."""
    scale = max(threshold, np.finfo(np.float32).tiny)
    level = (anomaly_map / scale - HEAT_FROM) / (HEAT_TO - HEAT_FROM)
    image = Image.fromarray((level.clip(0, 1) * (HEAT_LEVELS - 1)).round().astype(np.uint8), "P")
    at = np.linspace(0, 1, HEAT_LEVELS)
    stops = np.array(HEAT_STOPS)
    colours = [np.interp(at, np.linspace(0, 1, len(stops)), stops[:, c]) for c in range(3)]
    image.putpalette(np.stack(colours, 1).round().astype(np.uint8).tobytes())
    image.info["transparency"] = (190 * np.minimum(1, 2 * at)).astype(np.uint8).tobytes()
    return image


def overlay_image(
    picture: np.ndarray, anomaly_map: np.ndarray, threshold: float, regions: Sequence[Region]
) -> Image.Image:
    """The picture, float32 (H, W, 3), under its heat map and boxes; neither side above `OVERLAY_SIDE`."""
    base, shrink = _shrunk(picture, OVERLAY_SIDE)
    shape = (base.height, base.width)
    heat = heat_image(resize(anomaly_map[:, :, None], shape)[:, :, 0], threshold).convert("RGBA")
    base.paste(heat, (0, 0), heat)
    draw = ImageDraw.Draw(base)
    for r in regions:
        x, y = r.x * shrink, r.y * shrink
        corner = max(x, (r.x + r.width) * shrink - 1), max(y, (r.y + r.height) * shrink - 1)
        draw.rectangle((x, y, *corner), outline=(255, 212, 0))
    return base


def thumbnails(
    picture: np.ndarray, anomaly_map: np.ndarray, threshold: float, many: bool
) -> tuple[bytes, bytes]:
    """For the report: a JPEG of the picture, float32 (H, W, 3), and a PNG of its heat; smaller if `many`."""
    jpeg, png = io.BytesIO(), io.BytesIO()
    _shrunk(picture, 176 if many else 384)[0].save(jpeg, "JPEG", quality=72 if many else 82)
    cells = tuple(min(n, 64 if many else 128) for n in anomaly_map.shape)
    heat = heat_image(resize(anomaly_map[:, :, None], cells)[:, :, 0], threshold)
    heat.save(png, "PNG", optimize=True, transparency=heat.info["transparency"])
    return jpeg.getvalue(), png.getvalue()


def write_report(
    path: Path,
    items: Sequence[ReportItem],
    threshold: dict[str, Any],
    about: dict[str, str],
    unreadable: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the report: one HTML file that needs no other file and no network.

    threshold: its "value" and a "sentence" on it. about: facts for the header, by name. unreadable: (name,
    reason) of pictures that are not in `items`.
    """
    data = {
        "threshold": threshold["value"],
        "threshold_sentence": threshold["sentence"],
        "about": about,
        "unreadable": list(unreadable),
        "heat_colours": ", ".join(f"rgb{stop}" for stop in HEAT_STOPS),
        "items": [
            item.row | {name: base64.b64encode(getattr(item, name)).decode() for name in ("picture", "heat")}
            for item in sorted(items, key=lambda item: -item.row["score"])
        ],
    }
    # "<" only occurs inside strings; escaped, no file name can end the script element that holds the JSON.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    template = resources.files("fsad").joinpath("report.html").read_text(encoding="utf-8")
    before, after = template.split("__DATA__")
    path.write_text(before + text + after, encoding="utf-8")


def _shrunk(picture: np.ndarray, side: int) -> tuple[Image.Image, float]:
    """The picture, float32 (H, W, 3), neither side above ``side``, and the factor of its sides."""
    height, width = picture.shape[:2]
    shrink = min(1.0, side / max(height, width))
    small = resize(picture, (max(1, round(height * shrink)), max(1, round(width * shrink))))
    return Image.fromarray((small.clip(0, 1) * 255).round().astype(np.uint8)), shrink
