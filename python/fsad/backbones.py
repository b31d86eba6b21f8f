"""Feature extractors: images (B, 3, H, W), float, RGB in [0, 1] -> feature maps (B, c, h, w).

Each normalises its own input. ``load_backbone`` turns a name, or any ``nn.Module``, into a ``Backbone``,
which knows what a saved model needs to find the same features again.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsad.efficientnet import EfficientNetLite0, merge_levels
from fsad.errors import FsadError, InputError


class Backbone(nn.Module):
    """A feature extractor with a name and a fingerprint of its weights."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)

    @property
    def weights_hash(self) -> str:
        """SHA-256 (hex) over keys, dtypes, shapes and bytes of the state dict; follows every change of it."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


class _ResidualBlock(nn.Module):
    """Pre-activation residual block, (B, c_in, h, w) -> (B, c_out, ⌈h/stride⌉, ⌈w/stride⌉)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, c_in), nn.GroupNorm(8, c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class SmallResNet(nn.Module):
    """Small residual network for training on episodes: (B, 2·width, ⌈H/stride⌉, ⌈W/stride⌉).

    SiLU, because Langevin sampling differentiates it twice; GroupNorm, because batch statistics would mix
    support and query. The weights depend on ``seed`` alone, not on torch's global random state.
    """

    def __init__(self, width: int = 32, stride: int = 8, seed: int = 0) -> None:
        super().__init__()
        if width < 8 or width % 8 or stride not in (4, 8):
            raise InputError(f"expected a width divisible by 8 and stride 4 or 8, got {width} and {stride}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Conv2d(3, width, 3, stride=2, padding=1),
                _ResidualBlock(width, width, 2),
                _ResidualBlock(width, 2 * width, stride // 4),
                _ResidualBlock(2 * width, 2 * width, 1),
                nn.GroupNorm(8, 2 * width),
            )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images * 4 - 2)


class _TimmLevels(nn.Module):
    """The levels of stride 8 and 16 of a timm model, each of unit length per position."""

    _mean: Tensor
    _std: Tensor

    def __init__(self, model_name: str, pretrained: bool) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise FsadError(f"the backbone 'timm:{model_name}' needs timm; run: pip install timm") from error
        self.model = timm.create_model(model_name, pretrained=pretrained, features_only=True)
        strides = self.model.feature_info.reduction()
        self._levels = [strides.index(stride) for stride in (8, 16) if stride in strides]
        if not self._levels:
            raise InputError(f"{model_name} has no level of stride 8 or 16; its strides are {strides}")
        for key in ("mean", "std"):
            self.register_buffer(f"_{key}", torch.tensor(self.model.pretrained_cfg[key]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        features = self.model((images - self._mean) / self._std)
        return merge_levels([F.normalize(features[i], dim=1) for i in self._levels])


def load_backbone(name: str | nn.Module, *, pretrained: bool = True) -> Backbone:
    """Build a backbone by name, or give a module a name and a fingerprint.

    Args:
        name: ``"efficientnet_lite0"``, ``"small_resnet"`` (random, seeded weights), ``"timm:<model>"``, or a
            module that maps images to feature maps.
        pretrained: load the published weights, where there are any.

    Raises:
        FsadError: a package is missing; the message names it.
        InputError: the name is unknown.
    """
    if isinstance(name, Backbone):
        return name
    if isinstance(name, nn.Module):
        return Backbone(name, f"module:{type(name).__qualname__}")
    if name == "efficientnet_lite0":
        return Backbone(EfficientNetLite0(imagenet=pretrained), name)
    if name == "small_resnet":
        return Backbone(SmallResNet(), name)
    if name.startswith("timm:"):
        return Backbone(_TimmLevels(name.removeprefix("timm:"), pretrained), name)
    raise InputError(
        f"unknown backbone {name!r}; expected 'efficientnet_lite0', 'small_resnet', 'timm:<model>' or an "
        "nn.Module"
    )
