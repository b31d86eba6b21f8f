"""What people look at: heat maps, boxes around defects, overlay pictures, the report, and their folder.

One rule holds everywhere. The score of a picture is the mean of the top 1 % of its anomaly map, so the
threshold of the scores is also a level of the map: **a pixel counts as defective where the map is above
the threshold of the scores**. Every picture called anomalous then has at least one such pixel. Their
8-connected regions become the boxes; pictures called normal have none.
"""

import base64
import io
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array
from PIL import Image, ImageDraw
from scipy import ndimage

from fsad import __version__
from fsad.detector import FewShotDetector, PictureResult
from fsad.errors import InputError, display_name
from fsad.images import load_image, resize
from fsad.model_file import replace_csv

# From transparent yellow to dense red, for values of a map from half the threshold to twice it.
HEAT_FROM, HEAT_TO = 0.5, 2.0
HEAT_STOPS = ((255, 221, 51), (255, 128, 0), (224, 0, 76))
HEAT_LEVELS = 32
OVERLAY_SIDE = 1024  # overlay PNGs are no larger than this: they are for looking at
Facts = dict[str, Any]
Pairs = Sequence[tuple[str, str]]
MANY = 300  # in a report of more pictures than this they are smaller, to bound its size
OUTPUTS = ("scores.json", "scores.csv", "overlays", "report.html")


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

    row: Facts
    picture: bytes
    heat: bytes


def find_regions(anomaly_map: Array, threshold: float, size: tuple[int, int]) -> list[Region]:
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


def heat_image(anomaly_map: Array, threshold: float) -> Image.Image:
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
    picture: Array, anomaly_map: Array, threshold: float, regions: Sequence[Region]
) -> Image.Image:
    """The picture, float32 (H, W, 3), under its heat map and boxes; neither side above `OVERLAY_SIDE`."""
    base, shrink = _shrunk(picture, OVERLAY_SIDE)
    heat = heat_image(resize(anomaly_map, (base.height, base.width)), threshold).convert("RGBA")
    base.paste(heat, (0, 0), heat)
    draw = ImageDraw.Draw(base)
    for r in regions:
        x, y = r.x * shrink, r.y * shrink
        corner = max(x, (r.x + r.width) * shrink - 1), max(y, (r.y + r.height) * shrink - 1)
        draw.rectangle((x, y, *corner), outline=(255, 212, 0))
    return base


def thumbnails(picture: Array, anomaly_map: Array, threshold: float, many: bool) -> tuple[bytes, bytes]:
    """For the report: a JPEG of the picture, float32 (H, W, 3), and a PNG of its heat; smaller if `many`."""
    jpeg, png = io.BytesIO(), io.BytesIO()
    _shrunk(picture, 176 if many else 384)[0].save(jpeg, "JPEG", quality=72 if many else 82)
    cells = tuple(min(n, 64 if many else 128) for n in anomaly_map.shape)
    heat = heat_image(resize(anomaly_map, cells), threshold)
    heat.save(png, "PNG", optimize=True, transparency=heat.info["transparency"])
    return jpeg.getvalue(), png.getvalue()


def write_report(
    path: Path, items: Sequence[ReportItem], threshold: Facts, about: Facts, unreadable: Pairs = ()
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


def _shrunk(picture: Array, side: int) -> tuple[Image.Image, float]:
    """The picture, float32 (H, W, 3), neither side above ``side``, and the factor of its sides."""
    height, width = picture.shape[:2]
    shrink = min(1.0, side / max(height, width))
    small = resize(picture, (max(1, round(height * shrink)), max(1, round(width * shrink))))
    return Image.fromarray((small.clip(0, 1) * 255).round().astype(np.uint8)), shrink


class ResultFolder:
    """A context manager around one run: scores.csv, scores.json, overlays/ and report.html, or none of them.

    Everything is written into a hidden folder inside the output folder and takes its final name in the
    end. A run that is interrupted leaves what was there before.

    Entering it makes sure, before anything is computed, that the folder can be written (OSError if not)
    and that nothing of another origin would be replaced (`InputError`).

    Args:
        folder: made if it is missing.
        root: the folder of the pictures; they are named by their path in it.
        count: how many pictures there will be.

    Attributes:
        rows: a dictionary for each scored picture, as in scores.json.
        unreadable: (name, reason) of the others.
    """

    def __init__(self, folder: Path, root: Path, count: int) -> None:
        self.folder, self.root, self._many = folder, root, count > MANY
        self.rows: list[Facts] = []
        self.unreadable: list[tuple[str, str]] = []
        self._items: list[ReportItem] = []
        self._overlays: set[Path] = set()

    def __enter__(self) -> "ResultFolder":
        foreign = [name for name in OUTPUTS if (self.folder / name).exists()]
        if foreign and not _ours(self.folder / "scores.json"):
            what = f"{', '.join(foreign)}, not of an earlier run (there is no scores.json of fsad)"
            advice = "which would be replaced; choose another output folder."
            raise InputError(f"{display_name(self.folder)} holds {what}, {advice}")
        self._created = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._staging = Path(tempfile.mkdtemp(prefix=".fsad-", dir=self.folder))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._staging, ignore_errors=True)
        for folder in self._created:  # the innermost first
            if not any(folder.iterdir()):
                folder.rmdir()

    def add(self, detector: FewShotDetector, result: PictureResult) -> None:
        """One result of `detector.iter_results` for a picture file, with an anomaly map of energies."""
        image = result.source.relative_to(self.root)
        name, threshold, anomaly_map = display_name(image), detector.threshold_.value, result.anomaly_map
        if result.error is not None:
            self.unreadable.append((name, result.error))
            return
        assert anomaly_map is not None and result.score is not None  # readable pictures have everything
        picture = load_image(result.source, detector.max_pixels)
        height, width = picture.shape[:2]
        regions = find_regions(anomaly_map, threshold, (height, width)) if result.anomalous else []
        overlay = Path("overlays", self._overlay_name(image))
        (self._staging / overlay).parent.mkdir(parents=True, exist_ok=True)
        overlay_image(picture, anomaly_map, threshold, regions).save(self._staging / overlay, "PNG")
        row = {
            "image": name,
            "score": result.score,
            "anomalous": bool(result.anomalous),
            "width": width,
            "height": height,
            "defect_area": sum(region.area for region in regions),
            "regions": [region._asdict() for region in regions],
            "overlay": display_name(overlay),
        }
        self.rows.append(row)
        shown = thumbnails(picture, anomaly_map, threshold, self._many)
        self._items.append(ReportItem(row, *shown))

    def _overlay_name(self, image: Path) -> Path:
        """A name of its own for each overlay, also beside a folder or another overlay of that name."""
        name, tries = image.with_suffix(".png"), 0
        while name in self._overlays or (self.root / name).is_dir():
            name, tries = image.with_name(f"{image.name}{tries or ''}.png"), tries + 1
        self._overlays.add(name)
        return name

    def publish(self, detector: FewShotDetector, source: str) -> None:
        """Write tables and report and give all files their names; they replace an earlier run's.

        source: where the detector comes from, in words. Raises `InputError` if no picture could be read.
        """
        if not self.rows:
            reason = self.unreadable[0][1] if self.unreadable else "There are none."
            raise InputError(f"None of the {len(self.unreadable)} pictures can be read. {reason}")
        rounded = ({**row, "score": f"{row['score']:.9g}"} for row in self.rows)
        table = (row | {"anomalous": int(row["anomalous"])} for row in rounded)
        replace_csv(self._staging / "scores.csv", ("image", "score", "anomalous"), table)
        layer, backbone = detector.model_.sparse_coding, detector.model_.backbone
        normal, side, tile = detector.n_support_, detector.input_size_, detector.tile
        threshold = asdict(detector.threshold_) | {"sentence": str(detector.threshold_)}
        packages = ("torch", "numpy", "scikit-learn", "pillow", "safetensors")
        own = {"fsad": __version__, "python": platform.python_version()}
        summary = {
            "versions": own | {name: version(name) for name in packages},
            "model": {
                "source": source,
                "backbone": backbone.name,
                "weights_hash": backbone.weights_hash,
                "normal_pictures": normal,
                "atoms": layer.num_atoms,
                "input_size": side,
                "tile": tile,
                "sparse_coding": layer.config(),
            },
            "threshold": threshold,
            "images": self.rows,
            "unreadable": [{"image": name, "reason": reason} for name, reason in self.unreadable],
        }
        text = json.dumps(summary, indent=1, allow_nan=False)
        (self._staging / "scores.json").write_text(text + "\n", encoding="utf-8")
        inputs = f"tiles of {tile}" if tile else f"{side} × {side}"
        about = {
            "Model": source,
            "Normal pictures": f"{normal:,}, kept as {layer.num_atoms:,} atoms",
            "Backbone": f"{backbone.name}, {inputs} pixels",
            "Boxes": "around pixels where the anomaly map is above the threshold",
        }
        write_report(self._staging / "report.html", self._items, threshold, about, self.unreadable)
        # scores.json goes first: it marks `overlays` as ours to replace.
        for name in OUTPUTS:
            if name == "overlays" and (self.folder / name).exists():
                os.rename(self.folder / name, self._staging / "old")
            os.replace(self._staging / name, self.folder / name)


def _ours(summary: Path) -> bool:
    """Whether this is the scores.json of an earlier run."""
    try:
        return "fsad" in json.loads(summary.read_text(encoding="utf-8"))["versions"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
