"""One Langevin chain and one training episode over fsad's energy, as training will run them.

Pictures of 64×64, a small network of stride 4 and 64 channels with random weights, K = 10 support pictures,
M = 4 queries: d = 64, k = 2 560, n = 1 024, no thinning. The loss (eqs. 10-12) is written out, because a
contender leaves the coding out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from problem import products
from torch import Tensor, nn

import fsad
from fsad.dictionary import Dictionary
from fsad.procedural import ProceduralTask

SIZE, SHOTS, QUERIES, CHAIN = 64, 10, 4, 5
CHANNELS, STRIDE = 64, 4
STEP = 1.0  # β
NOISE = 0.005  # apart from β: the gradient of a mean energy is tiny
BACKENDS = {"native": "native", "eager": "reference"}

Energy = Callable[[Tensor], Tensor]


class Training:
    """Pictures and network. A contender is a backend, or ``"without coding"``: all but fsad's part."""

    def __init__(self) -> None:
        self.support = _pictures(range(SHOTS))
        self.normal = _pictures(range(SHOTS, SHOTS + QUERIES))
        generator = torch.Generator().manual_seed(0)
        self.corrupted = self.normal.clone()  # one patch of uniform noise
        self.corrupted[:, :, 24:40, 24:40] = torch.rand(QUERIES, 3, 16, 16, generator=generator)
        self.network = network()

    def chain(self, contender: str) -> Callable[[], Tensor]:
        """Five steps over a stored dictionary, and the derivative of where they end by the weights."""
        if contender == "without coding":
            energy: Energy = partial(self._without_coding, self.network(self.support).detach())
        else:
            layer = fsad.SparseCodingLayer(backend=BACKENDS[contender])
            energy = fsad.AdaptiveEnergyModel(self.network, layer).adapt(self.support).energy
        return partial(self._reconstruct, energy)

    def episode(self, contender: str) -> Callable[[], None]:
        """Support to gradients of the weights; the dictionary is part of what is differentiated."""
        return partial(self._train, contender)

    def floor(self, work: str) -> Callable[[], None]:
        """The coding's products: double backward in each step of the chain, without its 4N outer products
        where the dictionary is constant; in an episode also two energies with gradients to both."""
        count = 3 * {"chain": CHAIN * 12, "episode": CHAIN * 16 + 2 * 7}[work]
        positions = (SIZE // STRIDE) ** 2
        rows = torch.randn(QUERIES * positions, CHANNELS), torch.randn(SHOTS * positions, CHANNELS)
        return products(*rows, count)

    def _sample(self, energy: Energy) -> Tensor:
        sampler = fsad.LangevinSampler(CHAIN, STEP, NOISE)
        return sampler(energy, self.corrupted, torch.Generator().manual_seed(1), differentiable=CHAIN)

    def _reconstruct(self, energy: Energy) -> Tensor:
        self.network.zero_grad()
        sample = self._sample(energy)
        (sample - self.normal).square().mean().backward()
        return sample

    def _train(self, contender: str) -> None:
        self.network.zero_grad()
        support = self.network(self.support)
        if contender == "without coding":
            energy: Energy = partial(self._without_coding, support)
        else:
            layer = fsad.SparseCodingLayer(backend=BACKENDS[contender])
            energy = partial(self._coded, layer, layer.dictionary(support[None]))
        sample = self._sample(energy)
        reconstruction = (sample - self.normal).square().mean()
        contrast = energy(self.normal).mean() - energy(sample.detach()).mean()
        (reconstruction + contrast).backward()

    def _coded(self, layer: fsad.SparseCodingLayer, dictionary: Dictionary, images: Tensor) -> Tensor:
        return layer(self.network(images)[None], dictionary).energy[0].mean((1, 2))

    def _without_coding(self, support: Tensor, images: Tensor) -> Tensor:
        return (self.network(images) - support.mean(0)).square().mean((1, 2, 3))


def network() -> nn.Module:
    """(B, 3, H, W) -> (B, 64, H/4, W/4); GroupNorm, because batch statistics mix support and query."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1),
            nn.GroupNorm(8, 32),
            nn.SiLU(),
            nn.Conv2d(32, CHANNELS, 3, stride=2, padding=1),
            nn.GroupNorm(8, CHANNELS),
            nn.SiLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.GroupNorm(8, CHANNELS),
        )


def _pictures(numbers: range) -> Tensor:
    task = ProceduralTask(0, SIZE, "disc")
    images = np.stack([task.normal(number).image for number in numbers])
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255
