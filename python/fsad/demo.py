"""`fsad demo`: ten normal solar cells against baselines, and a report of the first draw.

The cells are the monocrystalline ones of the PyPI package `elpv-dataset`, split as `fsad.datasets` says.
"""

import hashlib
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fsad.backbones import Backbone, load_backbone
from fsad.datasets import load
from fsad.detector import FewShotDetector
from fsad.evaluate import Protocol, drawn, run_evaluation
from fsad.evaluation_tables import spread
from fsad.images import display_name
from fsad.report import ResultFolder

Progress = Callable[[str, int], AbstractContextManager[Callable[[], object]]]

SHOTS = 10
METHODS = ("fsad", "nearest-neighbour", "mahalanobis", "ridge")


class _Remembering(Backbone):
    """A backbone that computes the features of each picture once: report and evaluation ask for the same."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone.module, backbone.name)
        self._known: dict[bytes, torch.Tensor] = {}

    def __deepcopy__(self, memo: dict) -> "_Remembering":
        return self  # detectors work on a copy of their backbone; the memory is to be shared

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        keys = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        if new:
            self._known |= zip(new, self.module(images[list(new.values())]), strict=True)
        return torch.stack([self._known[key] for key in keys])


def run_demo(folder: Path, draws: int, out: Console, progress: Progress) -> None:
    """Compare the methods over `draws` draws of ten normal pictures, print a table, write a report.

    folder: gets the report of the first draw. progress: gives a function that advances a named bar. Raises
    `FsadError` if a package is missing.
    """
    cells, network = load("elpv")[0], _Remembering(load_backbone("efficientnet_lite0"))
    out.print("Solar cells of elpv-dataset, ImageNet features of EfficientNet-Lite0.")
    protocol = Protocol(METHODS, [network.name], shots=[SHOTS], draws=draws, loaded={network.name: network})
    test = [picture.source for picture in cells.test]
    bad = np.array([picture.anomalous for picture in cells.test])
    with ResultFolder(folder, test[0].parents[1], len(test)) as report:
        with tempfile.TemporaryDirectory() as scratch, progress("comparing", len(protocol.runs)) as advance:
            results = run_evaluation([cells], protocol, Path(scratch), lambda run: advance())
        detector = FewShotDetector(network, input_size=protocol.size)
        detector.fit([cells.normal[i] for i in drawn(cells, SHOTS, 0)])
        with progress("report", len(test)) as advance:
            for result in detector.iter_results(test):
                report.add(detector, result)
                advance()
        report.publish(detector, "Solar cells")
    table = Table("method", "image AUROC", "to adapt", "per picture", title="Solar cells")
    for method in METHODS:
        runs = [result for result in results if result["method"] == method]
        adapt, each = (mean(run["seconds"][name] for run in runs) for name in ("adapt", "picture"))
        auroc = spread([run["metrics"]["image AUROC"] for run in runs])
        table.add_row(method, auroc, f"{adapt:.2f} s", f"{1000 * each:.0f} ms")
    out.print(table)
    called = np.array([row["anomalous"] for row in report.rows])
    out.print(
        f"{draws} x {SHOTS} normal pictures drawn; {bad.sum()} anomalous and {(~bad).sum()} normal "
        "ones to tell apart; same features and pooling for all. In the first draw, the detector's threshold "
        f"called {called[bad].mean():.0%} of the anomalous and {called[~bad].mean():.0%} of the normal "
        f"pictures anomalous.\nReport: {display_name(folder / 'report.html')}",
        soft_wrap=True,
    )
