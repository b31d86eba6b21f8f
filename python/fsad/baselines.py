"""What is compared: sparse coding, and what it has to beat, on the same inputs and scored the same way.

Each method has ``fit`` and ``score_map``. On features, vectors are scaled to unit length first, as the sparse
coding layer does it. Another baseline is another class, and a line in ``METHODS``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fsad.backbones import Backbone
from fsad.dictionary import thin
from fsad.energy import AdaptiveEnergyModel
from fsad.episodic import MamlLoss
from fsad.errors import InputError, NotAdaptedError
from fsad.sparse_coding import SparseCodingLayer
from fsad.trained_autoencoder import TrainedAutoencoder
from fsad.whitening import second_moment, unit_length, whitening_matrix


class Method(Protocol):
    """A few-shot detector; its inputs are features (…, c, h, w) or pictures (…, 3, H, W)."""

    def fit(self, inputs: Tensor) -> object:
        """Adapt to those of K normal pictures."""

    def score_map(self, inputs: Tensor) -> Tensor:
        """Anomaly of each position, higher is worse: (B, …, h, w) -> (B, h, w)."""


class _Baseline(ABC):
    """Shared by all: unit length, checks, one vector a position; most score how long a matrix makes it."""

    _fitted: Tensor  # (anything, c), set by fit
    _mean: Tensor | float = 0.0

    def fit(self, features: Tensor) -> "_Baseline":
        """Adapt to features (K, c, h, w)."""
        if features.dim() != 4 or features.numel() == 0:
            raise InputError(f"expected features (K, c, h, w), K ≥ 1, got {tuple(features.shape)}")
        unit = unit_length(features.detach(), 1)
        self._fitted = self._learned(unit, second_moment(unit[None])[0])
        return self

    @abstractmethod
    def _learned(self, unit: Tensor, moment: Tensor) -> Tensor:
        """What ``_score`` needs, from unit-length maps (K, c, h, w) and their second moment (c, c)."""

    def _score(self, unit: Tensor) -> Tensor:
        """Unit vectors (B, h, w, c) -> (B, h, w)."""
        return ((unit - self._mean) @ self._fitted.mT).square().mean(-1)

    def score_map(self, features: Tensor) -> Tensor:
        """Anomaly of each position: (B, c, h, w) -> (B, h, w)."""
        if not hasattr(self, "_fitted"):
            raise NotAdaptedError(f"{type(self).__name__} has no normal features: call fit first")
        if features.dim() != 4 or features.shape[1] != self._fitted.shape[-1]:
            channels = self._fitted.shape[-1]
            raise InputError(f"expected features (B, {channels}, h, w), got {tuple(features.shape)}")
        return self._score(unit_length(features, 1).movedim(1, -1))


@dataclass(eq=False)
class NearestNeighbour(_Baseline):
    """Distance to the nearest normal vector of a memory bank (PatchCore, arXiv 2106.08265)."""

    max_atoms: int | None = None  # thins the bank by farthest-point selection, as PatchCore does

    def _learned(self, unit: Tensor, moment: Tensor) -> Tensor:
        vectors = unit.movedim(1, -1).flatten(0, 2)
        return vectors if self.max_atoms is None else vectors[thin(unit, None, self.max_atoms, 1)]

    def _score(self, unit: Tensor) -> Tensor:
        # ‖x − y‖² = 2 − 2⟨x, y⟩ for unit vectors; one map at a time bounds the memory.
        nearest = torch.stack([(vectors @ self._fitted.mT).amax(-1) for vectors in unit])
        return (2 - 2 * nearest).clamp_min(0).sqrt()


@dataclass(eq=False)
class Mahalanobis(_Baseline):
    """Squared Mahalanobis distance to the normal vectors' Gaussian, divided by c."""

    ridge: float = 0.1  # added to the covariance, in units of its mean eigenvalue

    def _learned(self, unit: Tensor, moment: Tensor) -> Tensor:
        self._mean = unit.mean((0, 2, 3))
        return whitening_matrix((moment - torch.outer(self._mean, self._mean))[None], self.ridge)[0]


@dataclass(eq=False)
class Ridge(_Baseline):
    """Mean squared residual of a reconstruction by all normal vectors under an ℓ2 penalty.

    With D the k normal vectors as columns, z − D(DᵀD + kμ)⁻¹Dᵀz = μ(C + μ)⁻¹z, where C = DDᵀ/k and
    μ = ``ridge`` · tr(C)/c: the dictionary enters through C alone.
    """

    ridge: float = 0.1

    def _learned(self, unit: Tensor, moment: Tensor) -> Tensor:
        penalty = self.ridge * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)
        return torch.linalg.solve(moment + penalty, penalty)


@dataclass(eq=False)
class Subspace(_Baseline):
    """Mean squared part of a vector outside the span of the normal vectors' first principal directions."""

    share: float = 0.95  # of the normal vectors' second moment, which these directions hold

    def _learned(self, unit: Tensor, moment: Tensor) -> Tensor:
        energies, directions = torch.linalg.eigh(moment)  # the smallest first
        outside = directions[:, energies.cumsum(0) <= (1 - self.share) * energies.sum()]
        return outside @ outside.mT


@dataclass(eq=False)
class SparseCoding:
    """fsad's own: the energy map of a ``SparseCodingLayer``."""

    layer: SparseCodingLayer

    def fit(self, features: Tensor) -> object:
        return self.layer.adapt(features)

    def score_map(self, features: Tensor) -> Tensor:
        return self.layer(features).energy


class GradientMap:
    """fsad as the paper localises: the norm of the energy's gradient at each pixel (section 3.1)."""

    def __init__(self, network: Backbone, layer: SparseCodingLayer) -> None:
        self._model = AdaptiveEnergyModel(network, layer)

    def fit(self, pictures: Tensor) -> "GradientMap":
        self._model.adapt(pictures)
        return self

    def score_map(self, pictures: Tensor) -> Tensor:
        return self._model.anomaly_map(pictures)


class MamlAutoencoder:
    """The paper's baseline: error of a meta-learned autoencoder after steps on the normal pictures."""

    def __init__(self, autoencoder: Backbone) -> None:
        self._loss = MamlLoss(autoencoder.module.requires_grad_())

    def fit(self, pictures: Tensor) -> None:
        self._adapted = self._loss.adapt(pictures)

    def score_map(self, pictures: Tensor) -> Tensor:
        return self._loss.score_map(self._adapted, pictures)


class Kind(NamedTuple):
    """How to make a method for a network, and what it sees."""

    make: Callable[[Any], Method]
    # "all pictures": of its own, without a network, and not K normal pictures but all.
    sees: Literal["features", "pictures", "all pictures"] = "features"
    sides: int = 1  # of pictures must be multiples of this


METHODS: dict[str, Kind] = {
    "fsad": Kind(lambda network: SparseCoding(network.layer())),
    "fsad-gradient": Kind(lambda network: GradientMap(network, network.layer()), "pictures"),
    "nearest-neighbour": Kind(lambda _: NearestNeighbour()),
    "nearest-neighbour-coreset": Kind(lambda _: NearestNeighbour(max_atoms=1024)),
    "mahalanobis": Kind(lambda _: Mahalanobis()),
    "ridge": Kind(lambda _: Ridge()),
    "subspace": Kind(lambda _: Subspace()),
    "maml-ae": Kind(MamlAutoencoder, "pictures", 16),
    "ae-mse": Kind(lambda _: TrainedAutoencoder(structural=False), "all pictures", 16),
    "ae-ssim": Kind(lambda _: TrainedAutoencoder(structural=True), "all pictures", 16),
}
