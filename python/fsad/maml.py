"""MAML-AE, the paper's baseline: an autoencoder meta-learned to reconstruct a product after a few steps.

Model-agnostic meta-learning (Finn et al., arXiv 1703.03400) with the mean squared error of reconstruction as
the loss inside and outside.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fsad.errors import InputError


class Autoencoder(nn.Module):
    """Convolutional autoencoder with a bottleneck of stride 16: (B, 3, H, W) -> (B, 3, H, W), sides ÷ 16."""

    def __init__(self, width: int = 32, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            down = [3, width, 2 * width, 4 * width, 4 * width]
            stages = [self._stage(nn.Conv2d(a, b, 4, 2, 1), b) for a, b in pairwise(down)]
            self.encoder = nn.Sequential(*stages)
            stages = [self._stage(nn.ConvTranspose2d(a, b, 4, 2, 1), b) for a, b in pairwise(down[:0:-1])]
            self.decoder = nn.Sequential(*stages, nn.ConvTranspose2d(width, 3, 4, 2, 1))

    @staticmethod
    def _stage(convolution: nn.Module, width: int) -> nn.Module:
        return nn.Sequential(convolution, nn.GroupNorm(8, width), nn.SiLU())

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] % 16 or images.shape[-2] % 16:
            sides = tuple(images.shape[-2:])
            raise InputError(f"the autoencoder takes pictures of sides divisible by 16, got {sides}")
        return torch.sigmoid(self.decoder(self.encoder(images * 4 - 2)))


class MamlLoss(nn.Module):
    """The error on the query of an autoencoder adapted to the support, derived through the adaptation.

    Args:
        autoencoder: what is meta-learned.
        steps: gradient steps of the adaptation.
        rate: their learning rate.
    """

    def __init__(self, autoencoder: nn.Module, steps: int = 5, rate: float = 0.1) -> None:
        super().__init__()
        if steps < 1 or not rate > 0:
            raise InputError(f"adaptation takes steps ≥ 1 and a rate > 0, got {steps} and {rate}")
        self.autoencoder, self.steps, self.rate = autoencoder, steps, rate

    def forward(self, support: Tensor, query: Tensor, corrupted: Tensor, *_: Any) -> dict[str, Tensor]:
        """One episode, as ``fsad.episodic.EpisodeLoss`` takes it; ``"sample"`` is what becomes of q̂."""
        adapted = self.adapt(support, second_order=True)
        error = self._errors(adapted, query).mean()
        with torch.no_grad():
            sample = functional_call(self.autoencoder, adapted, corrupted)
            seen = {"reconstruction": F.mse_loss(sample, query), "start": F.mse_loss(corrupted, query)}
            seen |= {"normal": error.detach(), "corrupted": F.mse_loss(sample, corrupted)}
        return {"loss": error, "sample": sample, **seen}

    @torch.no_grad()
    def score_map(self, adapted: dict[str, Tensor], images: Tensor) -> Tensor:
        """Error of each pixel with what ``adapt`` gave: (B, 3, H, W) -> (B, H, W)."""
        return self._errors(adapted, images)

    def scores(self, support: Tensor, images: Tensor) -> Tensor:
        """Mean error after adapting to the support: (K, 3, H, W) and (B, 3, H, W) -> (B,)."""
        return self.score_map(self.adapt(support), images).mean((1, 2))

    def adapt(self, support: Tensor, second_order: bool = False) -> dict[str, Tensor]:
        """The autoencoder's parameters after the steps on the support (K, 3, H, W)."""
        parameters: dict[str, Tensor] = dict(self.autoencoder.named_parameters())
        with torch.enable_grad():
            for _ in range(self.steps):
                error = self._errors(parameters, support).mean()
                gradients = torch.autograd.grad(error, list(parameters.values()), create_graph=second_order)
                moved = zip(parameters.items(), gradients, strict=True)
                parameters = {name: value - self.rate * gradient for (name, value), gradient in moved}
        return parameters

    def _errors(self, parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        output = functional_call(self.autoencoder, parameters, images)
        return F.mse_loss(output, images, reduction="none").mean(1)
