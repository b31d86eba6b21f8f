"""What one episode costs: the loss of Algorithm 1 (eqs. 10 to 12), as a module to differentiate once more."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsad.energy import AdaptiveEnergyModel
from fsad.errors import InputError
from fsad.langevin import LangevinSampler


class EpisodeLoss(nn.Module):
    """Support and query to loss: η₀·L_rec + η₁·L_cd + ρ·(E(q)² + E(LD(q̂))²).

    L_rec (eq. 11) is the mean squared error of the sample LD(q̂) against the query q and flows through the
    last steps of the sampling; L_cd = E(q) − E(LD(q̂)) (eq. 10) takes the sample as it is and flows through
    the dictionary too. The last term keeps energies from drifting apart without end (arXiv 1903.08689).

    Args:
        model: backbone and sparse coding layer; the layer's own dictionary is not used.
        sampler: its noise comes from a generator seeded by the episode's number.
        reconstruction, contrast, restraint: η₀, η₁ and ρ, none below 0.
        differentiable: steps of the sampling that L_rec flows through, all by default.
    """

    def __init__(
        self,
        model: AdaptiveEnergyModel,
        sampler: LangevinSampler,
        *,
        reconstruction: float = 1.0,
        contrast: float = 1.0,
        restraint: float = 0.0,
        differentiable: int | None = None,
    ) -> None:
        super().__init__()
        weights = {"reconstruction": reconstruction, "contrast": contrast, "restraint": restraint}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise InputError(f"the loss cannot weigh {name} by {weight}; expected a number of 0 or more")
        if sampler.steps < 1:
            raise InputError("training needs a sampler of one step or more")
        self.model, self.sampler, self.weights = model, sampler, weights
        self.differentiable = sampler.steps if differentiable is None else differentiable

    def forward(self, support: Tensor, query: Tensor, corrupted: Tensor, number: int) -> dict[str, Tensor]:
        """One episode.

        Args:
            support: (K, 3, H, W).
            query, corrupted: q and q̂, (M, 3, H, W).
            number: the episode's; seeds the noise.

        Returns:
            ``"loss"``, to be differentiated, and detached: ``"reconstruction"``, ``"contrast"``, the mean
            energies ``"normal"``, ``"sampled"`` and ``"corrupted"``, ``"start"``, the error of q̂ itself, and
            ``"sample"``, LD(q̂).
        """
        energy = self._energy_over(support)
        generator = torch.Generator(query.device).manual_seed(number)
        sample = self.sampler(energy, corrupted, generator, self.differentiable)
        error = (sample - query).square().mean()
        sample = sample.detach()
        normal, sampled = energy(torch.cat([query, sample])).split(len(query))
        contrast = normal.mean() - sampled.mean()
        restraint = normal.square().mean() + sampled.square().mean()
        parts = {"reconstruction": error, "contrast": contrast, "restraint": restraint}
        loss = sum(self.weights[name] * part for name, part in parts.items())
        with torch.no_grad():
            damaged = energy(corrupted)
        seen = {"reconstruction": error, "start": F.mse_loss(corrupted, query), "contrast": contrast}
        seen |= {"normal": normal.mean(), "sampled": sampled.mean(), "corrupted": damaged.mean()}
        return {"loss": loss, "sample": sample, **{name: value.detach() for name, value in seen.items()}}

    @torch.no_grad()
    def scores(self, support: Tensor, images: Tensor) -> Tensor:
        """Energies by a dictionary of the support: (K, 3, H, W) and (B, 3, H, W) -> (B,)."""
        return self._energy_over(support)(images)

    def _energy_over(self, support: Tensor) -> Callable[[Tensor], Tensor]:
        layer, features = self.model.sparse_coding, self.model.features
        dictionary = layer.dictionary(features(support)[None])
        return lambda images: layer(features(images)[None], dictionary).energy[0].mean((1, 2))
