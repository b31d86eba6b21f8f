"""What one episode costs: the loss of Algorithm 1 (eqs. 10 to 12), as a module to differentiate once more."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsad.energy import AdaptiveEnergyModel
from fsad.errors import InputError
from fsad.langevin import LangevinSampler

VISIBLE = 0.05  # a defect is where it changes a pixel by more
SMALL = 1e-4  # added to energies, so that ratios of what is nearly 0 do not count


class EpisodeLoss(nn.Module):
    """Support and query to loss: η₀·L_rec + η₁·L_cd + ρ·(E(q)² + E(LD(q̂))²) + η₂·L_sep.

    L_rec (eq. 11) is the mean squared error of the sample LD(q̂) against the query q and flows through the
    last steps of the sampling; L_cd = E(q) − E(LD(q̂)) (eq. 10) takes the sample as it is and flows through
    the dictionary too. The next term keeps energies from drifting apart without end (arXiv 1903.08689).

    L_sep is ours, the mean of softplus(1 − 2·log(E⁻/E⁺)) over positions: E⁺ is the energy of a query's
    position, E⁻ that of the same position of a negative: of the query with a defect where that shows, or of
    another product's picture. Algorithm 1 alone is content once energies of whole pictures part, and patches
    of noise are soon told apart; this asks for ratios, of each position, that pictures of a line may have.

    Args:
        model: backbone and sparse coding layer; the layer's own dictionary is not used.
        sampler: its noise comes from a generator seeded by the episode's number.
        reconstruction, contrast, restraint, separation: η₀, η₁, ρ and η₂, none below 0.
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
        separation: float = 0.0,
        differentiable: int | None = None,
    ) -> None:
        super().__init__()
        weights = {"reconstruction": reconstruction, "contrast": contrast}
        weights |= {"restraint": restraint, "separation": separation}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise InputError(f"the loss cannot weigh {name} by {weight}; expected a number of 0 or more")
        if sampler.steps < 1:
            raise InputError("training needs a sampler of one step or more")
        self.model, self.sampler, self.weights = model, sampler, weights
        self.differentiable = sampler.steps if differentiable is None else differentiable

    def forward(
        self,
        support: Tensor,
        query: Tensor,
        corrupted: Tensor,
        defective: Tensor,
        foreign: Tensor,
        number: int,
    ) -> dict[str, Tensor]:
        """One episode.

        Args:
            support: (K, 3, H, W).
            query, corrupted: q and q̂, (M, 3, H, W).
            defective: q with defects, (M, 3, H, W).
            foreign: pictures of other products, (M, 3, H, W), or none.
            number: the episode's; seeds the noise.

        Returns:
            ``"loss"``, to be differentiated, and detached: ``"reconstruction"``, ``"contrast"``,
            ``"separation"``, the mean energies ``"normal"``, ``"sampled"`` and ``"corrupted"``, ``"start"``,
            the error of q̂ itself, and ``"sample"``, LD(q̂).
        """
        energy_map = self._energy_map_over(support)
        generator = torch.Generator(query.device).manual_seed(number)
        start = corrupted, generator, self.differentiable
        sample = self.sampler(lambda images: energy_map(images).mean((1, 2)), *start)
        error = (sample - query).square().mean()
        sample = sample.detach()
        maps = energy_map(torch.cat([query, sample]))
        normal, sampled = maps.mean((1, 2)).split(len(query))
        contrast = normal.mean() - sampled.mean()
        restraint = normal.square().mean() + sampled.square().mean()
        separation = torch.zeros_like(contrast)
        if self.weights["separation"]:
            negatives = energy_map(torch.cat([defective, foreign])).split([len(query), len(foreign)])
            shown = (defective - query).abs().amax(1) > VISIBLE
            for negative, where in zip(negatives, (shown, torch.ones_like(shown)), strict=True):
                if len(negative):
                    separation = separation + _separation(maps[: len(query)], negative, where)
        parts = {"reconstruction": error, "contrast": contrast}
        parts |= {"restraint": restraint, "separation": separation}
        loss = sum(self.weights[name] * part for name, part in parts.items())
        seen = {"reconstruction": error, "start": F.mse_loss(corrupted, query), "contrast": contrast}
        seen |= {"separation": separation, "normal": normal.mean(), "sampled": sampled.mean()}
        with torch.no_grad():
            seen["corrupted"] = energy_map(corrupted).mean()
        return {"loss": loss, "sample": sample, **{name: value.detach() for name, value in seen.items()}}

    @torch.no_grad()
    def scores(self, support: Tensor, images: Tensor) -> Tensor:
        """Energies by a dictionary of the support: (K, 3, H, W) and (B, 3, H, W) -> (B,)."""
        return self._energy_map_over(support)(images).mean((1, 2))

    def _energy_map_over(self, support: Tensor) -> Callable[[Tensor], Tensor]:
        layer, features = self.model.sparse_coding, self.model.features
        dictionary = layer.dictionary(features(support)[None])
        return lambda images: layer(features(images)[None], dictionary).energy[0]


def _separation(normal: Tensor, negative: Tensor, where: Tensor) -> Tensor:
    """Energy maps (M, h, w) of pairs to L_sep over the positions that hold a marked pixel of (M, H, W)."""
    ratio = torch.log(negative + SMALL) - torch.log(normal + SMALL)
    weight = F.adaptive_max_pool2d(where[:, None].to(ratio), ratio.shape[1:])[:, 0]
    return (F.softplus(1 - 2 * ratio) * weight).sum() / weight.sum().clamp_min(1)
