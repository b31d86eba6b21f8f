"""Langevin dynamics (eq. 4): pictures that move down the energy, the negatives of contrastive training."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fsad.errors import DivergedError, InputError


@dataclass(eq=False)
class LangevinSampler:
    """x ← x − (β/2)·∂E/∂x + noise, ``steps`` times (eq. 4 of the paper).

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
