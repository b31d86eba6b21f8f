"""Autoencoders of one category, trained from scratch on all of its normal pictures: the paper's upper bounds.

The error of their reconstruction, which training makes small, is the anomaly: squared, or 1 - SSIM (Bergmann
et al., *Improving Unsupervised Defect Segmentation by Applying Structural Similarity to Autoencoders*, 2018).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fsad.errors import NotAdaptedError
from fsad.networks import Autoencoder


@dataclass(eq=False)
class TrainedAutoencoder:
    """A baseline on pictures (N, 3, S, S), S a multiple of 16."""

    structural: bool  # the error is 1 - SSIM, not squared
    updates: int = 2000  # of Adam
    batch: int = 8
    rate: float = 1e-3

    def fit(self, pictures: Tensor) -> "TrainedAutoencoder":
        """Train; the same pictures give the same network, on the same machine."""
        self._network = Autoencoder().to(pictures)
        optimizer = torch.optim.Adam(self._network.parameters(), self.rate)
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.updates):
            taken = torch.randint(len(pictures), (self.batch,), generator=generator)
            optimizer.zero_grad()
            self._errors(pictures[taken.to(pictures.device)]).mean().backward()
            optimizer.step()
        return self

    @torch.no_grad()
    def score_map(self, pictures: Tensor) -> Tensor:
        """Error of each pixel: (B, 3, S, S) -> (B, S, S)."""
        if not hasattr(self, "_network"):
            raise NotAdaptedError("TrainedAutoencoder has no normal pictures: call fit first")
        return self._errors(pictures)

    def _errors(self, pictures: Tensor) -> Tensor:
        output = self._network(pictures)
        return 1 - ssim(output, pictures) if self.structural else (output - pictures).square().mean(1)


def _window(side: int, like: Tensor) -> Tensor:
    """The Gaussian window as a matrix (side, side), mirrored at both ends: with single channels a product is
    several times as fast as a convolution."""
    grid = torch.arange(-5, 6).to(like)
    window = torch.exp(-grid.square() / (2 * 1.5**2))
    padded = F.pad(torch.eye(side).to(like)[:, None], (5, 5), mode="reflect")
    return F.conv1d(padded, (window / window.sum())[None, None])[:, 0].mT


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity of pictures in [0, 1], mean over channels: twice (B, C, H, W) -> (B, H, W).

    Wang et al., *Image Quality Assessment: From Error Visibility to Structural Similarity*, 2004: a Gaussian
    window of 11 pixels (σ = 1.5), constants 0.01² and 0.03². Pictures are mirrored at their borders.
    """
    values = torch.stack([one, other, one * one, other * other, one * other])
    down, across = (_window(side, one) for side in one.shape[-2:])
    x, y, xx, yy, xy = down @ values @ across.mT
    alike = (2 * x * y + 0.01**2) * (2 * (xy - x * y) + 0.03**2)
    return (alike / ((x * x + y * y + 0.01**2) * (xx - x * x + yy - y * y + 0.03**2))).mean(1)
