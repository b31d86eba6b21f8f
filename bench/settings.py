"""What moves detection: one setting changed at a time, on the default backbone.

    python bench/settings.py elpv folders=MAGNETIC_TILE ... [--draws 3]

Data sets are named as for ``fsad evaluate``. The table is printed: image AUROC of each category, their mean,
and the mean pixel AP of those with masks.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from statistics import mean
from typing import Any
from unittest.mock import patch

import torch
from pictures import SHOTS, SIZE, default_backbone, default_layer
from product import features
from torch import Tensor

from fsad import frames
from fsad.baselines import Mahalanobis, SparseCoding
from fsad.datasets import Category, load, read_mask
from fsad.evaluate import drawn
from fsad.frames import score_maps
from fsad.metrics import PixelMetrics, image_metrics


@dataclass(frozen=True)
class Change:
    """What differs from the default."""

    layer: dict[str, Any] = field(default_factory=dict)  # settings of the sparse coding
    channels: tuple[int | None, int | None] = (None, None)  # what it sees, from and to
    pooling: dict[str, float] = field(default_factory=dict)  # constants of ``fsad.frames``
    baseline: bool = False  # Mahalanobis' distance in its place

    def energies(self, normal: Tensor, test: Tensor) -> Tensor:
        """After adapting to the features of normal pictures (K, c, h, w): (B, c, h, w) -> (B, h, w)."""
        seen = slice(*self.channels)
        normal, test = normal[:, seen], test[:, seen]
        method = Mahalanobis() if self.baseline else SparseCoding(default_layer(**self.layer))
        method.fit(normal)
        return torch.cat([method.score_map(part) for part in test.split(8)])


FIRST_LEVEL = 40  # channels of the backbone's block 4; the others are those of block 10
CHANGES = {
    "default": Change(),
    "no drift": Change({"drift": 0}),
    "no drift, ridge 100": Change({"drift": 0, "ridge": 100.0}),
    "drift 0.2": Change({"drift": 0.2}),
    "drift 0.5": Change({"drift": 0.5}),
    "drift 10": Change({"drift": 10}),
    "neither drift nor centre": Change({"drift": 0, "center": False}),
    "ridge 1": Change({"ridge": 1.0}),
    "ridge 5": Change({"ridge": 5.0}),
    "ridge 20": Change({"ridge": 20.0}),
    "ridge 100": Change({"ridge": 100.0}),
    "not whitened, η = 1/‖D‖₂²": Change({"step": "lipschitz"}),
    "1,024 atoms": Change({"max_atoms": 1024}),
    "64 atoms": Change({"max_atoms": 64}),
    "receptive field 3": Change({"receptive_field": 3}),
    "1 step": Change({"iterations": 1}),
    "3 steps": Change({"iterations": 3}),
    "6 steps": Change({"iterations": 6}),
    "λ from 0.8 to 0.3": Change({"lambda_max": 0.8, "lambda_min": 0.3}),
    "soft shrinkage": Change({"shrinkage": "soft"}),
    "no shrinkage": Change({"shrinkage": "none"}),
    "block 4 alone": Change(channels=(None, FIRST_LEVEL)),
    "block 10 alone": Change(channels=(FIRST_LEVEL, None)),
    "Gaussian of 2 px": Change(pooling={"SMOOTHING": 2 / 256}),
    "Gaussian of 8 px": Change(pooling={"SMOOTHING": 8 / 256}),
    "score: mean of the top 0.1 %": Change(pooling={"TOP_SHARE": 0.001}),
    "score: mean of the top 10 %": Change(pooling={"TOP_SHARE": 0.1}),
    "Mahalanobis' distance": Change(baseline=True),
    "Mahalanobis' distance, Gaussian of 2 px": Change(baseline=True, pooling={"SMOOTHING": 2 / 256}),
    "Mahalanobis' distance, Gaussian of 8 px": Change(baseline=True, pooling={"SMOOTHING": 8 / 256}),
    "Mahalanobis' distance, block 4 alone": Change(baseline=True, channels=(None, FIRST_LEVEL)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", metavar="NAME[=ROOT]", help="as for `fsad evaluate`")
    parser.add_argument("--draws", type=int, default=3)
    chosen = parser.parse_args()
    categories = [category for given in chosen.datasets for category in load(given)]
    found = {category.name: judge(category, chosen.draws) for category in categories}
    masked = [category.name for category in categories if category.has_masks]
    print(f"| setting | {' | '.join(found)} | mean | pixel AP |\n{'|---' * (len(found) + 3)}|")
    for name in CHANGES:
        auroc = [found[category][name]["image AUROC"] for category in found]
        precision = [found[category][name]["pixel AP"] for category in masked]
        cells = [*auroc, mean(auroc), *([mean(precision)] if masked else [])]
        print(f"| {name} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")


@torch.no_grad()
def judge(category: Category, draws: int) -> dict[str, dict[str, float]]:
    """Metrics of each setting, means over draws."""
    backbone, truth = default_backbone(), [picture.anomalous for picture in category.test]
    normal = features(backbone, category.normal)
    test = features(backbone, [picture.source for picture in category.test])
    results = {}
    for name, change in CHANGES.items():
        each = []
        for draw in range(draws):
            energies = change.energies(normal[drawn(category, SHOTS, draw)], test)
            with patch.dict(vars(frames), change.pooling):
                each.append(metrics(category, energies, truth))
        results[name] = {metric: mean(one[metric] for one in each) for metric in each[0]}
        print(f"  {category.name}, {name}: {results[name]['image AUROC']:.4f}", flush=True)
    return results


def metrics(category: Category, energies: Tensor, truth: list[bool]) -> dict[str, float]:
    pixels, scores = PixelMetrics(), list[float]()
    for picture, energy in zip(category.test, energies, strict=True):
        (anomaly_map,), (score,) = score_maps(energy[None], SIZE)
        scores.append(float(score))
        if category.has_masks:
            pixels.add(anomaly_map.numpy(), read_mask(picture.mask, SIZE))
    return image_metrics(truth, scores) | (pixels.compute() if category.has_masks else {})


if __name__ == "__main__":
    main()
