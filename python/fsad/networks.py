"""Trained feature extractors: an architecture by name, and files that hold its weights.

A file names its architecture and the settings of the sparse coding that it was trained with. What fsad ships
lies in ``weights/`` inside the package.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsad.efficientnet import EfficientNetLite0
from fsad.errors import InputError, ModelFileError
from fsad.maml import Autoencoder
from fsad.model_file import read_model, write_model

KIND = "network"
SHIPPED = Path(__file__).parent / "weights"


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
    support and query. The weights depend on ``seed`` alone, not on torch's global random state. With a
    ``temperature`` features are multiplied by a learned number that starts there, for sparse coding with a
    fixed step, which large ones make diverge.
    """

    def __init__(
        self, width: int = 32, stride: int = 8, seed: int = 0, temperature: float | None = None
    ) -> None:
        super().__init__()
        if temperature is not None and not 0 < temperature < math.inf:
            raise InputError(f"expected a temperature above 0, or None, got {temperature}")
        if width < 8 or width % 8 or type(stride) is not int or stride not in (4, 8):
            raise InputError(f"expected a width divisible by 8 and stride 4 or 8, got {width} and {stride}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            blocks = ((width, width, 2), (width, 2 * width, stride // 4), (2 * width, 2 * width, 1))
            stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
            residual = [_ResidualBlock(*block) for block in blocks]
            self.layers = nn.Sequential(stem, *residual, nn.GroupNorm(8, 2 * width))
        # Its logarithm: steps of the optimizer are then in proportion.
        self.scale = None if temperature is None else nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, images: Tensor) -> Tensor:
        features = self.layers(images * 4 - 2)
        return features if self.scale is None else features * self.scale.exp()


class Adapter(nn.Module):
    """A frozen backbone, and a small residual network on each of its feature vectors, which is trained.

    (B, 3, H, W) -> (B, c, h, w), as the backbone's. It starts as the identity.
    """

    def __init__(self, backbone: nn.Module, channels: int, hidden: int = 256) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outward = nn.Conv2d(hidden, channels, 1, bias=False)
            self.head = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.SiLU(), outward)
        nn.init.zeros_(outward.weight)

    def train(self, mode: bool = True) -> "Adapter":
        super().train(mode)
        self.backbone.eval()  # its batch statistics are those of ImageNet
        return self

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        return features + self.head(features)


def build(name: str, **arguments: Any) -> nn.Module:
    """An untrained network: ``"small_resnet"``, ``"adapter"`` on the ImageNet one, ``"autoencoder"``."""
    if name == "small_resnet":
        return SmallResNet(**arguments)
    if name == "adapter":
        return Adapter(EfficientNetLite0(imagenet=True), EfficientNetLite0.CHANNELS, **arguments)
    if name == "autoencoder":
        return Autoencoder(**arguments)
    raise InputError(f"unknown network {name!r}; expected 'small_resnet', 'adapter' or 'autoencoder'")


def save_network(path: str | Path, module: nn.Module, architecture: Mapping[str, Any], **rest: Any) -> None:
    """Write the trained weights, whole or not at all; ``rest`` is JSON-able and describes the training."""
    description = {"kind": KIND, "architecture": dict(architecture), **rest}
    write_model(path, _trained(module), description)


def _trained(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def load_network(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network with its weights, frozen, and the file's description.

    Raises ModelFileError for a file that is damaged, foreign or does not fit its architecture.
    """
    tensors, saved = read_model(path, KIND)
    module = build(**saved["architecture"])
    own, stored = ({name: t.shape for name, t in each.items()} for each in (_trained(module), tensors))
    if own != stored:
        raise ModelFileError(f"{path} does not hold the weights of {saved['architecture']}")
    module.load_state_dict(tensors, strict=False)
    return module.requires_grad_(False).eval(), saved
