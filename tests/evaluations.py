"""Categories and protocols small enough to be evaluated in a test."""

from __future__ import annotations

from PIL import Image

from fsad.datasets import Category, Picture
from fsad.evaluate import Protocol
from fsad.procedural import ProceduralTask

SIZE = 32


def make_category(seed=0, masks=True):
    product = ProceduralTask(seed, SIZE)
    bad = [product.defective(number) for number in range(20, 24)]
    test = [Picture(product.normal(number).image, False, None) for number in range(10, 14)]
    test += [Picture(part.image, True, part.mask if masks else None) for part in bad]
    return Category(product.name, [product.normal(number).image for number in range(6)], test)


def write_category(root, category):
    """As folders, without masks."""
    pictures = [("train/good", picture) for picture in category.normal]
    pictures += [("test/bad" if p.anomalous else "test/good", p.source) for p in category.test]
    for number, (kind, picture) in enumerate(pictures):
        path = root / category.name / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


def protocol(**changes):
    return Protocol(**{"backbones": ("small_resnet",), "shots": (3,), "draws": 2, "size": SIZE, **changes})
