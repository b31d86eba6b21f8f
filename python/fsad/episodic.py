"""What is trained on episodes: the loss of Algorithm 1 (eqs. 10 to 12) by Langevin sampling, and MAML's."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fsad.energy import AdaptiveEnergyModel
from fsad.errors import DivergedError, InputError

TERMS = ("reconstruction", "contrast", "restraint", "separation")  # of the loss, each with its weight
VISIBLE = 0.05  # a defect is where it changes a pixel by more
SMALL = 1e-4  # added to energies, so that ratios of what is nearly 0 do not count


@dataclass(eq=False)
class LangevinSampler:
    """Moves pictures down the energy: x ← x − (β/2)·∂E/∂x + noise, ``steps`` times (eq. 4 of the paper).

    An energy that is a *mean* over pixels has gradients as small as one over their number: β is then large,
    and eq. 4's own noise √β·N(0, I) would drown the picture, which is why ``noise`` can be set apart.

    Args:
        steps: J ≥ 0.
        step_size: β > 0.
        noise: standard deviation of the Gaussian noise of a step, 0 for none; ``None`` for eq. 4's √β.
        limits: lowest and highest value of a pixel, to which each step is clamped; ``None`` for no limits.

    Raises InputError: for settings that cannot be used.
    """

    steps: int = 5
    step_size: float = 1.0
    noise: float | None = None
    limits: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        try:
            low, high = (-math.inf, math.inf) if self.limits is None else self.limits
            good = type(self.steps) is int and self.steps >= 0 and 0 < self.step_size < math.inf
            good = good and (self.noise is None or 0 <= self.noise < math.inf) and low < high
        except (TypeError, ValueError):  # no numbers, or not two limits
            good = False
        if not good:
            raise InputError(
                "LangevinSampler takes steps ≥ 0, step_size > 0, noise ≥ 0 or None, and limits (low, high) "
                f"or None; got {self}"
            )
        self.noise = math.sqrt(self.step_size) if self.noise is None else self.noise

    def __call__(
        self,
        energy: Callable[[Tensor], Tensor],
        start: Tensor,
        generator: torch.Generator | None = None,
        differentiable: int = 0,
    ) -> Tensor:
        """Run the chain on a batch.

        Args:
            energy: from pictures (B, …) to their energies (B,), one by one independent.
            start: where the chains start, (B, …), floating point.
            generator: of the noise, on the device of ``start``; torch's own by default.
            differentiable: the last so many steps can be differentiated, in what ``energy`` depends on and in
                ``start`` (if they are all of them), which needs second derivatives of the energy.

        Returns where the chains end, of the shape of ``start``; detached unless ``differentiable``.

        Raises DivergedError: a step is not finite, before it is clamped. (On a GPU nobody looks: NaN stays.)
        """
        if not 0 <= differentiable <= self.steps:
            raise InputError(f"differentiable counts steps, 0 to {self.steps}; got {differentiable}")
        sample = start if 0 < differentiable == self.steps else start.detach()
        for step in range(self.steps):
            keep_graph = step >= self.steps - differentiable
            with torch.inference_mode(False), torch.enable_grad():
                if not keep_graph or not sample.requires_grad:
                    sample = sample.detach().clone().requires_grad_()  # a clone can leave inference mode
                # The sum's gradient is each picture's own, whatever the batch.
                (gradient,) = torch.autograd.grad(energy(sample).sum(), sample, create_graph=keep_graph)
                moved = sample - self.step_size / 2 * gradient
            if moved.device.type == "cpu" and not moved.detach().isfinite().all():
                size = f"step_size={self.step_size:g}"
                raise DivergedError(f"Langevin sampling diverged: {size} is too large for this energy")
            if self.noise:
                moved = moved + self.noise * torch.empty_like(sample).normal_(generator=generator)
            if self.limits is not None:
                moved = moved.clamp(*self.limits)
            sample = moved if keep_graph else moved.detach()
        return sample


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
        weights = dict(zip(TERMS, (reconstruction, contrast, restraint, separation), strict=True))
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
        """One ``fsad.episodes.Episode``: its number seeds the noise.

        Args:
            support: (K, 3, H, W).
            query, corrupted, defective, foreign: q, q̂ and negatives, (M, 3, H, W); foreign ones may be none.

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
        parts = zip(TERMS, (error, contrast, restraint, separation), strict=True)
        loss = sum(self.weights[name] * part for name, part in parts)
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


class MamlLoss(nn.Module):
    """MAML-AE, the paper's baseline: the error on the query of an autoencoder adapted to the support.

    Model-agnostic meta-learning (Finn et al., arXiv 1703.03400): derived through the adaptation, with the
    mean squared error of reconstruction as the loss inside and outside.

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
        """One episode, as ``EpisodeLoss`` takes it; ``"sample"`` is what becomes of q̂."""
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
