"""Feature extractors: images (B, 3, H, W), float, RGB in [0, 1] -> feature maps (B, c, h, w).

Each normalises its own input. ``load_backbone`` turns a name, or any ``nn.Module``, into a ``Backbone``,
which knows what a saved model needs to find the same features again.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsad.errors import FsadError, InputError, ModelFileError
from fsad.model_file import digest
from fsad.networks import SHIPPED, EfficientNetLite0, SmallResNet, load_network, merge_levels
from fsad.sparse_coding import DEFAULT_SETTINGS, SparseCodingLayer


class Backbone(nn.Module):
    """A feature extractor with a name and a fingerprint of its weights.

    ``sparse_coding`` are the settings of the layer it was trained with, ``input_size`` is the side of the
    pictures of that training; None where there was none.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        sparse_coding: dict[str, Any] | None = None,
        input_size: int | None = None,
    ) -> None:
        super().__init__()
        self.module, self.name = module, name
        self.sparse_coding, self.input_size = sparse_coding, input_size

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)

    def layer(self) -> SparseCodingLayer:
        """A layer of the settings it was trained with, or ``DEFAULT_SETTINGS``."""
        return SparseCodingLayer(**(self.sparse_coding or DEFAULT_SETTINGS))

    @property
    def weights_hash(self) -> str:
        """SHA-256 (hex) over keys, dtypes, shapes and bytes of the state dict; follows every change of it."""
        return digest("", self.module.state_dict())


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


def usable_device(name: str) -> str:
    """``"cpu"``, ``"cuda"`` or what ``"auto"`` means here; InputError where there is no such GPU."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError(f"torch {torch.__version__} finds no usable GPU here; take the device cpu or auto")
    return "cuda" if name == "auto" else name


def load_backbone(name: str | nn.Module, *, pretrained: bool = True) -> Backbone:
    """Build a backbone by name, or give a module a name and a fingerprint.

    Args:
        name: ``"efficientnet_lite0"``, ``"small_resnet"`` (random, seeded weights), ``"timm:<model>"``, the
            name of trained weights that fsad ships, ``"<file>.safetensors"`` written by ``fsad train``, or a
            module that maps images to feature maps.
        pretrained: load the published weights, where there are any.

    Raises:
        FsadError: a package is missing; the message names it.
        InputError: the name is unknown.
        ModelFileError: a file of weights that is damaged or foreign.
    """
    if isinstance(name, Backbone):
        return name
    if isinstance(name, nn.Module):
        return Backbone(name, f"module:{type(name).__qualname__}")
    if name == "efficientnet_lite0":
        return Backbone(EfficientNetLite0(imagenet=pretrained), name)
    if name == "small_resnet":
        return Backbone(SmallResNet(), name)
    shipped = SHIPPED / f"{name}.safetensors"
    if shipped.is_file() or name.endswith(".safetensors"):
        path = shipped if shipped.is_file() else Path(name).resolve()  # a saved model is used elsewhere too
        module, saved = load_network(path)
        size = saved.get("training", {}).get("episodes", {}).get("size")
        return Backbone(module, name if path == shipped else str(path), saved["sparse_coding"], size)
    if name.startswith("timm:"):
        return Backbone(_TimmLevels(name.removeprefix("timm:"), pretrained), name)
    ours = ", ".join(path.stem for path in SHIPPED.glob("*.safetensors"))
    raise InputError(
        f"unknown backbone {name!r}; expected 'efficientnet_lite0', 'small_resnet', 'timm:<model>', a file "
        f"of trained weights (.safetensors), an nn.Module, or what fsad ships: {ours}"
    )


def saved_backbone(path: str | Path, saved: Mapping[str, str], given: Any) -> Backbone:
    """The backbone that a model file speaks of, or the one ``given`` in its place.

    Raises ModelFileError where there is none, or its weights are not those the model was made with.
    """
    name, expected = saved["name"], saved["weights_hash"]
    if given is None and name.startswith("module:"):
        raise ModelFileError(
            f"{path} was made with a module of your own ({name.removeprefix('module:')}), which is "
            "not in the file: pass it, with the same weights, as load(path, backbone=module)"
        )
    backbone = load_backbone(name if given is None else copy.deepcopy(given))
    if backbone.weights_hash != expected:
        raise ModelFileError(
            f"{path} was made with the backbone {name} and weights {expected[:12]}, those of "
            f"{backbone.name} here are {backbone.weights_hash[:12]}: use the same, or adapt again"
        )
    return backbone
