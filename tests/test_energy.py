"""fsad.AdaptiveEnergyModel: energies and maps, with a backbone small enough to see through."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fsad
from fsad.errors import InputError


class Pool(nn.Module):
    """Means of 4×4 blocks, mixed into six channels."""

    def forward(self, images: Tensor) -> Tensor:
        pooled = nn.functional.avg_pool2d(images, 4)
        return torch.cat([pooled, pooled.square()], 1)


def images(count: int, seed: int = 0, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def adapted(**settings) -> fsad.AdaptiveEnergyModel:
    return fsad.AdaptiveEnergyModel(Pool(), fsad.SparseCodingLayer(**settings)).adapt(images(3))


def test_energy_is_the_mean_of_its_map() -> None:
    model = adapted()
    queries = images(2, seed=1)
    energies = model.energy_map(queries)
    assert energies.shape == (2, 4, 4)
    torch.testing.assert_close(model.energy(queries), energies.mean((1, 2)))
    torch.testing.assert_close(model(queries), model.energy(queries))


def test_gradient_map_is_the_length_of_the_gradient() -> None:
    """Against central differences of the image's energy, D held constant."""
    model = adapted().double()
    query = images(1, seed=1).double()
    expected = torch.zeros(16, 16, dtype=torch.float64)
    for y, x in ((0, 0), (5, 9), (15, 15)):
        slopes = []
        for channel in range(3):
            moved = query.repeat(2, 1, 1, 1)
            moved[0, channel, y, x] += 1e-6
            moved[1, channel, y, x] -= 1e-6
            high, low = model.energy(moved)
            slopes.append((high - low) / 2e-6)
        expected[y, x] = torch.stack(slopes).norm()
        found = model.anomaly_map(query)[0, y, x]
        torch.testing.assert_close(found, expected[y, x], rtol=1e-4, atol=1e-9)


def test_gradient_map_does_not_mix_images() -> None:
    model = adapted()
    queries = images(3, seed=1)
    together = model.anomaly_map(queries, kind="gradient")
    alone = torch.cat([model.anomaly_map(query[None]) for query in queries])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-7)
    assert together.shape == (3, 16, 16) and not together.requires_grad


def test_maps_do_not_disturb_the_caller() -> None:
    model = adapted()
    query = images(1, seed=1)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            model.anomaly_map(query, kind="gradient")
    assert not query.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_energy_map_is_upsampled() -> None:
    model = adapted()
    maps = model.anomaly_map(images(2, seed=1), kind="energy")
    assert maps.shape == (2, 16, 16)
    with pytest.raises(InputError, match="kind must be one of"):
        model.anomaly_map(images(1), kind="heat")


def test_augmentation_adds_the_eight_symmetries() -> None:
    model = fsad.AdaptiveEnergyModel(Pool(), fsad.SparseCodingLayer(receptive_field=3))
    model.adapt(images(2), augment=True)
    assert model.sparse_coding.num_atoms == 2 * 8 * 16
    original, turned = images(1), torch.rot90(images(1), 1, (2, 3))
    torch.testing.assert_close(model.energy(original), model.energy(turned), rtol=1e-4, atol=1e-7)
    different = torch.rand(8, 3, 4, 4).unique(dim=0)
    assert len(different) == 8
    with pytest.raises(InputError, match="square"):
        model.adapt(images(1)[..., :8], augment=True)


def test_extend_adds_normal_images() -> None:
    model = adapted()
    strange = 1 - images(1, seed=4).square()
    before = model.energy(strange)
    assert model.extend(strange).energy(strange) < before
    assert model.sparse_coding.num_atoms == 4 * 16


def test_what_is_no_image_or_no_feature_map_is_refused() -> None:
    model = adapted()
    with pytest.raises(InputError, match=r"floating \(B, 3, H, W\)"):
        model.energy(images(1)[0])
    with pytest.raises(InputError, match=r"torch\.uint8"):
        model.energy((255 * images(1)).byte())
    flat = fsad.AdaptiveEnergyModel(nn.Flatten(), fsad.SparseCodingLayer())
    with pytest.raises(InputError, match=r"one feature map \(B, c, h, w\); got \(1, 768\)"):
        flat.adapt(images(1))
