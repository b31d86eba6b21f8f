"""The adaptive energy model (section 3.1, eq. 8): a backbone and a sparse coding layer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsad.errors import InputError
from fsad.sparse_coding import SparseCodingLayer

MAP_KINDS = ("gradient", "energy")


class AdaptiveEnergyModel(nn.Module):
    """E(x; D) = mean square of what the dictionary of normal features cannot rebuild of Ψ(x).

    Args:
        backbone: Ψ, any module from images (B, 3, H, W) in [0, 1] to feature maps (B, c, h, w).
        sparse_coding: the layer that holds the dictionary D.
    """

    def __init__(self, backbone: nn.Module, sparse_coding: SparseCodingLayer) -> None:
        super().__init__()
        self.backbone = backbone
        self.sparse_coding = sparse_coding

    def features(self, images: Tensor) -> Tensor:
        """Ψ(images): (B, 3, H, W) -> (B, c, h, w).

        Raises InputError: images are not (B, 3, H, W) floats, or the backbone gives no (B, c, h, w) map.
        """
        if images.dim() != 4 or not images.is_floating_point():
            given = f"{images.dtype} {tuple(images.shape)}"
            raise InputError(f"images must be floating (B, 3, H, W) in [0, 1], got {given}")
        features = self.backbone(images)
        if not isinstance(features, Tensor) or features.dim() != 4 or len(features) != len(images):
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise InputError(f"the backbone must give one feature map (B, c, h, w); got {got}")
        return features

    def adapt(self, images: Tensor, augment: bool = False) -> "AdaptiveEnergyModel":
        """Make the dictionary from normal images (K, 3, H, W): one forward pass, no training.

        Args:
            augment: also take the seven other flips and 90° rotations of each (square) image. Not for
                parts whose orientation matters: there a flipped part is a defect.
        """
        with torch.no_grad():
            self.sparse_coding.adapt(self.features(augmented(images) if augment else images))
        return self

    def extend(self, images: Tensor, augment: bool = False) -> "AdaptiveEnergyModel":
        """Add more normal images to the dictionary; arguments as in ``adapt``."""
        with torch.no_grad():
            self.sparse_coding.extend(self.features(augmented(images) if augment else images))
        return self

    def forward(self, images: Tensor) -> Tensor:
        """E(x; D) of each image, the mean of its energy map: (B, 3, H, W) -> (B,)."""
        return self.energy_map(images).mean((1, 2))

    energy = forward

    def energy_map(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Energy of each position of the feature map: (B, 3, H, W) -> (B, h, w); mask as of the layer."""
        return self.sparse_coding(self.features(images), mask=mask).energy

    def anomaly_map(self, images: Tensor, kind: str = "gradient", mask: Tensor | None = None) -> Tensor:
        """Where an image is anomalous: (B, 3, H, W) -> (B, H, W), detached, higher is worse.

        Args:
            kind: ``"gradient"`` is ‖∂E/∂x‖₂ over the colour channels (section 3.1), with D held
                constant; ``"energy"`` is the energy map, upsampled bilinearly.
            mask: bool (B, h, w), the positions of the feature map that count, for a drift and for E.
        """
        if kind not in MAP_KINDS:
            raise InputError(f"kind must be one of {MAP_KINDS}, got {kind!r}")
        if kind == "energy":
            with torch.no_grad():
                maps = self.energy_map(images, mask)
            size = images.shape[-2:]
            return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        with torch.inference_mode(False), torch.enable_grad():
            inputs = images.detach().clone().requires_grad_()
            energies = self.energy_map(inputs, mask)
            counted = energies if mask is None else energies * mask.to(energies)
            (gradient,) = torch.autograd.grad(counted.mean((1, 2)).sum(), inputs)
        return gradient.norm(dim=1)


def augmented(images: Tensor) -> Tensor:
    """All eight flips and 90° rotations, (K, 3, H, W) -> (8K, 3, H, W)."""
    if images.shape[-1] != images.shape[-2]:
        raise InputError(f"augment needs square images, got {tuple(images.shape[-2:])}")
    turned = [torch.rot90(images, turns, (2, 3)) for turns in range(4)]
    return torch.cat(turned + [image.flip(3) for image in turned])
