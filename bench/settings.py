"""What moves detection: one setting of the sparse coding changed at a time, on the default backbone.

    python bench/settings.py elpv folders=MAGNETIC_TILE ... [--draws 3]

Data sets are named as for ``fsad evaluate``. The table is printed: image AUROC of each category, their mean,
and the mean pixel AP of those with masks.
"""

from __future__ import annotations

import argparse
from statistics import mean
from typing import Any

import torch
from pictures import SHOTS, SIZE, default_backbone, default_layer
from product import features
from torch import Tensor

from fsad.datasets import Category, load, read_mask
from fsad.evaluate import drawn
from fsad.frames import score_maps
from fsad.metrics import PixelMetrics, image_metrics

CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "ridge 1": {"ridge": 1.0},
    "ridge 5": {"ridge": 5.0},
    "ridge 100": {"ridge": 100.0},
    "not whitened, η = 1/‖D‖₂²": {"step": "lipschitz"},
    "1,024 atoms": {"max_atoms": 1024},
    "64 atoms": {"max_atoms": 64},
    "receptive field 3": {"receptive_field": 3},
    "1 step": {"iterations": 1},
    "6 steps": {"iterations": 6},
    "λ from 0.8 to 0.3": {"lambda_max": 0.8, "lambda_min": 0.3},
    "λ from 0.3 to 0.03": {"lambda_max": 0.3, "lambda_min": 0.03},
    "soft shrinkage": {"shrinkage": "soft"},
    "no shrinkage": {"shrinkage": "none"},
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
    for name, changes in CHANGES.items():
        each = []
        for draw in range(draws):
            layer = default_layer(**changes).adapt(normal[drawn(category, SHOTS, draw)])
            each.append(metrics(category, torch.cat([layer(part).energy for part in test.split(8)]), truth))
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
