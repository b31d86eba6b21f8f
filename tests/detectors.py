"""A detector with a tiny backbone, and pictures for it."""

import numpy as np
import torch
from torch import nn

from fsad import FewShotDetector, SparseCodingLayer

SIDE = 48


DEFECT = slice(16, 26), slice(28, 38)


class TinyBackbone(nn.Module):
    """One convolution that ignores flat colour, and ReLU: 3 x 48 x 48 -> 48 x 12 x 12."""

    def __init__(self, seed=0):
        super().__init__()
        weights = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        self.weights = nn.Parameter(weights - weights.mean((2, 3), keepdim=True))

    def forward(self, images):
        return nn.functional.conv2d(images, self.weights, stride=4, padding=2).relu()


def picture(seed, defect=None, shape=(SIDE, SIDE), period=3.0):
    """uint8 (H, W, 3): stripes of random phase and a little noise, pure noise at ``defect``."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(shape[1]) / period + rng.uniform(0, 6))[None, :, None]
    pixels = 0.5 + 0.2 * wave * np.array([1, 0.8, 0.6]) + rng.normal(0, 0.02, (*shape, 3))
    if defect is not None:
        pixels[defect] = rng.uniform(0, 1, pixels[defect].shape)
    return (pixels.clip(0, 1) * 255).astype(np.uint8)


def make(**parameters):
    """Few atoms, so that adapting takes no time."""
    settings = {"input_size": SIDE, "sparse_coding": SparseCodingLayer(max_atoms=100)}
    return FewShotDetector(TinyBackbone(), **(settings | parameters))


NORMAL = [picture(seed) for seed in range(10)]


GOOD = [picture(100 + seed) for seed in range(12)]


BAD = [picture(200 + seed, DEFECT) for seed in range(6)]


def odd(seed):
    """A good part with wider stripes than any in the support."""
    return picture(seed, period=7.0)
