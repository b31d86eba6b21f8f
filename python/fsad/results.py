"""The output folder of a run: scores.csv, scores.json, overlays/ and report.html, complete or not at all.

Everything is written into a hidden folder inside the output folder and takes its final name in the
end. A run that is interrupted leaves what was there before.
"""

import dataclasses
import json
import os
import platform
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, report
from .errors import InputError
from .images import display_name, load_image
from .model_file import replace_csv

if TYPE_CHECKING:
    from .detector import FewShotDetector, PictureResult


OUTPUTS = ("scores.json", "scores.csv", "overlays", "report.html")


class ResultFolder:
    """A context manager around one run.

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
        self.folder, self.root, self._many = folder, root, count > report.MANY
        self.rows: list[dict[str, Any]] = []
        self.unreadable: list[tuple[str, str]] = []
        self._items: list[report.ReportItem] = []
        self._overlays: set[Path] = set()

    def __enter__(self) -> "ResultFolder":
        foreign = [name for name in OUTPUTS if (self.folder / name).exists()]
        if foreign and not _ours(self.folder / "scores.json"):
            raise InputError(
                f"{display_name(self.folder)} holds {', '.join(foreign)}, not of an earlier run (there is no "
                "scores.json of fsad), which would be replaced; choose another output folder."
            )
        self._created = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._staging = Path(tempfile.mkdtemp(prefix=".fsad-", dir=self.folder))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._staging, ignore_errors=True)
        for folder in self._created:  # the innermost first
            if not any(folder.iterdir()):
                folder.rmdir()

    def add(self, detector: "FewShotDetector", result: "PictureResult") -> None:
        """One result of `detector.iter_results` for a picture file, with an anomaly map of energies."""
        image = result.source.relative_to(self.root)
        name, threshold, anomaly_map = display_name(image), detector.threshold_.value, result.anomaly_map
        if result.error is not None:
            self.unreadable.append((name, result.error))
            return
        assert anomaly_map is not None and result.score is not None  # readable pictures have everything
        picture = load_image(result.source, detector.max_pixels)
        height, width = picture.shape[:2]
        regions = report.find_regions(anomaly_map, threshold, (height, width)) if result.anomalous else []
        overlay = Path("overlays", self._overlay_name(image))
        (self._staging / overlay).parent.mkdir(parents=True, exist_ok=True)
        report.overlay_image(picture, anomaly_map, threshold, regions).save(self._staging / overlay, "PNG")
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
        shown = report.thumbnails(picture, anomaly_map, threshold, self._many)
        self._items.append(report.ReportItem(row, *shown))

    def _overlay_name(self, image: Path) -> Path:
        """A name of its own for each overlay, also beside a folder or another overlay of that name."""
        name, tries = image.with_suffix(".png"), 0
        while name in self._overlays or (self.root / name).is_dir():
            name, tries = image.with_name(f"{image.name}{tries or ''}.png"), tries + 1
        self._overlays.add(name)
        return name

    def publish(self, detector: "FewShotDetector", source: str) -> None:
        """Write tables and report and give all files their names; they replace an earlier run's.

        source: where the detector comes from, in words. Raises `InputError` if no picture could be read.
        """
        if not self.rows:
            reason = self.unreadable[0][1] if self.unreadable else "There are none."
            raise InputError(f"None of the {len(self.unreadable)} pictures can be read. {reason}")
        rounded = ({**row, "score": f"{row['score']:.9g}"} for row in self.rows)
        table = (row | {"anomalous": int(row["anomalous"])} for row in rounded)
        replace_csv(self._staging / "scores.csv", ("image", "score", "anomalous"), table)
        summary = _summary(detector, source) | {
            "images": self.rows,
            "unreadable": [{"image": name, "reason": reason} for name, reason in self.unreadable],
        }
        text = json.dumps(summary, indent=1, allow_nan=False)
        (self._staging / "scores.json").write_text(text + "\n", encoding="utf-8")
        model = summary["model"]
        side, tile = model["input_size"], model["tile"]
        inputs = f"tiles of {tile}" if tile else f"{side} × {side}"
        about = {
            "Model": source,
            "Normal pictures": f"{model['normal_pictures']:,}, kept as {model['atoms']:,} atoms",
            "Backbone": f"{model['backbone']}, {inputs} pixels",
            "Boxes": "around pixels where the anomaly map is above the threshold",
        }
        page = self._staging / "report.html"
        report.write_report(page, self._items, summary["threshold"], about, self.unreadable)
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


def _summary(detector: "FewShotDetector", source: str) -> dict[str, Any]:
    """What scores rest on: versions, model and threshold."""
    layer, backbone = detector.model_.sparse_coding, detector.model_.backbone
    packages = ("torch", "numpy", "scikit-learn", "pillow", "safetensors")
    own = {"fsad": __version__, "python": platform.python_version()}
    threshold = detector.threshold_
    return {
        "versions": own | {name: version(name) for name in packages},
        "model": {
            "source": source,
            "backbone": backbone.name,
            "weights_hash": backbone.weights_hash,
            "normal_pictures": detector.n_support_,
            "atoms": layer.num_atoms,
            "input_size": detector.input_size,
            "tile": detector.tile,
            "sparse_coding": layer.config(),
        },
        "threshold": dataclasses.asdict(threshold) | {"sentence": str(threshold)},
    }
