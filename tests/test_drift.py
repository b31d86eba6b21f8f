"""The drift of a sparse coding layer: what a picture differs in as a whole."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from features import maps
from torch import Tensor

import fsad
from fsad.errors import InputError


def test_drift_picture_by_picture() -> None:
    """Against the formula written out, of support and queries alike."""
    support, features = (
        unit(maps(3, 6, 4, 5, seed=i).double() + 2 * maps(3, 6, 1, 1, seed=i + 2)) for i in (0, 1)
    )
    centred = support - support.mean((0, 2, 3))[:, None, None]
    less = torch.stack([without_drift(picture, centred, 0.5) for picture in centred])
    queries = features - support.mean((0, 2, 3))[:, None, None]
    queries = torch.stack([without_drift(picture, less, 0.5) for picture in queries])
    expected = fsad.SparseCodingLayer(normalize=False).adapt(less)(queries, reconstruction=True)
    layer = fsad.SparseCodingLayer(center=True, drift=0.5).adapt(support)
    code = layer(features, reconstruction=True)
    torch.testing.assert_close(code.energy, expected.energy)
    # What was taken off is put back: a reconstruction is in the units of the features.
    torch.testing.assert_close(features - code.reconstruction, queries - expected.reconstruction)


def unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features, dim=1)


def without_drift(picture: Tensor, support: Tensor, drift: float) -> Tensor:
    """A centred picture (c, h, w), by the spread of a centred support (K, c, h, w)."""
    mean = picture.mean((1, 2))
    bound = drift**2 * support.square().sum(1).mean()
    return picture - (mean * bound / (bound + mean @ mean))[:, None, None]


def test_a_small_drift_is_forgiven_and_a_large_one_is_not() -> None:
    support, query = maps(4, 8, 6, 6), maps(1, 8, 6, 6, seed=1)
    query = query - query.mean((2, 3), keepdim=True) + support.mean((0, 2, 3))[:, None, None]
    support[:, 0] = query[:, 0] = 0.5  # a direction that no atom has
    settings = {"normalize": False, "center": True, "ridge": 20.0}
    for size, forgiven in ((0.3, True), (10.0, False)):
        moved = query + size * torch.eye(8)[0, :, None, None]
        rises = []
        for drift in (0.0, 0.35):
            layer = fsad.SparseCodingLayer(drift=drift, **settings).adapt(support)
            rises.append(layer(moved).energy.mean() - layer(query).energy.mean())
        assert bool(rises[1] < 0.5 * rises[0]) is forgiven
        assert forgiven or rises[1] > 0.95 * rises[0]


def test_what_is_masked_does_not_count_for_the_drift() -> None:
    """Neither of the support nor of a query; a layer of its inside alone gives the same energies there."""
    support, query = maps(2, 6, 6, 6), maps(1, 6, 6, 6, seed=1)
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[1:5, 2:5] = True
    layer = fsad.SparseCodingLayer(center=True, drift=0.35).adapt(support, inside)
    cropped = fsad.SparseCodingLayer(center=True, drift=0.35).adapt(support[:, :, 1:5, 2:5])
    energy = layer(query, mask=inside[None]).energy
    torch.testing.assert_close(energy[:, 1:5, 2:5], cropped(query[:, :, 1:5, 2:5]).energy)
    nowhere = layer(query, mask=torch.zeros_like(inside)[None]).energy  # no position tells of a drift
    plain = dataclasses.replace(layer, drift=0).load_compact(layer.compact(torch.float32))
    torch.testing.assert_close(nowhere, plain(query).energy)
    for wrong in (inside, inside[None].float(), inside[None, :5]):
        with pytest.raises(InputError, match=r"mask must be bool \(1, 6, 6\)"):
            layer(query, mask=wrong)


def test_extend_takes_off_the_drift_of_the_new() -> None:
    first, second, features = (maps(2, 6, 5, 5, seed=i).double() for i in range(3))
    second = second + 0.5 * maps(2, 6, 1, 1, seed=4)
    layer = fsad.SparseCodingLayer(center=True, drift=0.5, normalize=False).adapt(first)
    centred = second - first.mean((0, 2, 3))[:, None, None]
    less = torch.stack([without_drift(picture, layer.support, 0.5) for picture in centred])
    torch.testing.assert_close(
        layer.extend(second).support[-50:].flatten(1), less.movedim(1, -1).flatten(0, 2)
    )
    assert layer(features).energy.isfinite().all()


def test_each_task_has_a_mask_of_its_own() -> None:
    support, queries = maps(2, 3, 6, 4, 4), maps(2, 2, 6, 5, 5, seed=1)
    masks = maps(2, 2, 5, 5, seed=2) > 0
    layer = fsad.SparseCodingLayer(center=True, drift=0.35)
    together = layer(queries, support, mask=masks).energy
    for task in range(2):
        alone = layer(queries[task], support[task], mask=masks[task]).energy
        torch.testing.assert_close(alone, together[task])
        assert not torch.allclose(alone, layer(queries[task], support[task]).energy)


def test_constant_pictures_leave_no_rounding_to_whiten() -> None:
    """Different ones, whose drift is all that they have."""
    support = maps(3, 8, 1, 1).expand(-1, -1, 5, 5)
    layer = fsad.SparseCodingLayer(center=True, drift=10, ridge=0.1).adapt(support)
    assert layer(maps(1, 8, 5, 5, seed=1)).energy.max() < 1e6
