"""The baselines against their definitions written out plainly."""

import pytest
import torch
from torch.nn import functional as F

from fsad.baselines import GradientMap, Mahalanobis, NearestNeighbour, Ridge, Subspace
from fsad.errors import InputError, NotAdaptedError
from fsad.networks import SmallResNet
from fsad.sparse_coding import SparseCodingLayer
from fsad.trained_autoencoder import TrainedAutoencoder, ssim

ALL = [NearestNeighbour, Mahalanobis, Ridge, Subspace]


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    support, query = (
        torch.einsum("ij,bjhw->bihw", mix, torch.randn(n, 6, 5, 4, generator=generator, dtype=torch.float64))
        for n in (3, 2)
    )
    return support, query


def rows(maps):
    return F.normalize(maps, dim=1).movedim(1, -1).reshape(-1, maps.shape[1])


def test_nearest_neighbour_is_the_distance_to_the_bank(maps):
    support, query = maps
    expected = torch.cdist(rows(query), rows(support)).amin(1).view(2, 5, 4)
    torch.testing.assert_close(NearestNeighbour().fit(support).score_map(query), expected)


def test_a_thinned_bank_keeps_real_vectors_and_can_only_be_farther(maps):
    support, query = maps
    full, thinned = (NearestNeighbour(n).fit(support).score_map(query) for n in (None, 7))
    assert (thinned >= full - 1e-9).all() and (thinned > full + 1e-3).any()
    at_support = NearestNeighbour(7).fit(support).score_map(support)
    assert (at_support < 1e-5).sum() == 7


def test_mahalanobis_is_the_regularised_distance(maps):
    support, query = maps
    bank = rows(support)
    centred = bank - bank.mean(0)
    covariance = centred.T @ centred / len(bank)
    covariance += 0.1 * covariance.trace() / 6 * torch.eye(6)
    difference = rows(query) - bank.mean(0)
    expected = (difference * torch.linalg.solve(covariance, difference.T).T).mean(1)
    torch.testing.assert_close(Mahalanobis(0.1).fit(support).score_map(query), expected.view(2, 5, 4))


def test_ridge_is_the_residual_of_the_penalised_reconstruction(maps):
    support, query = maps
    bank, z = rows(support), rows(query)  # atoms are rows
    penalty = 0.1 * bank.square().mean() * len(bank)
    codes = torch.linalg.solve(bank @ bank.T + penalty * torch.eye(len(bank)), bank @ z.T)
    expected = (z - codes.T @ bank).square().mean(1).view(2, 5, 4)
    torch.testing.assert_close(Ridge(0.1).fit(support).score_map(query), expected)


def test_subspace_is_the_residual_of_the_projection(maps):
    support, query = maps
    bank, z = rows(support), rows(query)
    _, strengths, directions = torch.linalg.svd(bank, full_matrices=False)
    share = strengths.square().cumsum(0) / strengths.square().sum()
    first = directions[: int((share < 0.8).sum()) + 1]  # as many as it takes
    assert 0 < len(first) < 6
    expected = (z - z @ first.T @ first).square().mean(1).view(2, 5, 4)
    torch.testing.assert_close(Subspace(0.8).fit(support).score_map(query), expected)


def test_the_gradient_map_is_the_energys_derivative():
    generator = torch.Generator().manual_seed(0)
    support, query = (torch.rand(n, 3, 16, 16, generator=generator) for n in (3, 1))
    network, layer = SmallResNet(8, 4).requires_grad_(False), SparseCodingLayer(ridge=1.0)
    scores = GradientMap(network, layer).fit(support).score_map(query)
    query.requires_grad_()
    layer(network(query)).energy.mean().backward()
    torch.testing.assert_close(scores, query.grad.norm(dim=1))


def test_ssim_by_its_definition():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 1, 2, 14, 13, generator=generator, dtype=torch.float64)
    one[0, 1, :, :6] = 0.4  # flat in one of them
    window = torch.tensor([[-(y * y + x * x) / 4.5 for x in range(-5, 6)] for y in range(-5, 6)]).exp()
    window = (window / window.sum()).double()

    def at(channel, y, x):
        a, b = (
            F.pad(p, (5, 5, 5, 5), mode="reflect")[0, channel, y : y + 11, x : x + 11] for p in (one, other)
        )
        ma, mb = (window * a).sum(), (window * b).sum()
        va, vb, ab = (
            (window * (a - ma) ** 2).sum(),
            (window * (b - mb) ** 2).sum(),
            (window * (a - ma) * (b - mb)).sum(),
        )
        return (2 * ma * mb + 1e-4) * (2 * ab + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))

    result = ssim(one, other)
    for y, x in ((0, 0), (7, 2), (13, 12)):
        torch.testing.assert_close(result[0, y, x], (at(0, y, x) + at(1, y, x)) / 2)
    torch.testing.assert_close(ssim(one, one), torch.ones(1, 14, 13, dtype=torch.float64))


@pytest.mark.parametrize("structural", [False, True])
def test_a_trained_autoencoder_rebuilds_what_it_was_trained_on(structural):
    pictures = torch.rand(2, 3, 1, 4, generator=torch.Generator().manual_seed(0)).repeat(1, 1, 16, 4)
    pictures = pictures.repeat_interleave(2, 3)[:, :, :16, :16].contiguous()
    model = TrainedAutoencoder(structural, updates=60)
    with pytest.raises(NotAdaptedError):
        model.score_map(pictures)
    odd = pictures.flip(2).transpose(2, 3).contiguous()
    before = TrainedAutoencoder(structural, updates=0).fit(pictures)
    after = model.fit(pictures)
    assert after.score_map(pictures).mean() < 0.5 * before.score_map(pictures).mean()
    assert after.score_map(pictures).mean() < 0.5 * after.score_map(odd).mean()
    assert after.score_map(odd).shape == (2, 16, 16)


@pytest.mark.parametrize("method", ALL)
def test_an_odd_position_stands_out_whatever_its_length(method, maps):
    support, _ = maps
    support[:, 0] = 0.0  # a direction that no normal vector has
    query = support[:1].clone()
    query[0, :, 2, 1] = torch.tensor([1.0, 0, 0, 0, 0, 0])
    model = method().fit(support)
    score = model.score_map(query)
    assert score.flatten().argmax() == 2 * 4 + 1
    torch.testing.assert_close(model.score_map(7 * query), score, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", ALL)
def test_misuse_is_named(method, maps):
    support, query = maps
    with pytest.raises(NotAdaptedError, match="call fit first"):
        method().score_map(query)
    with pytest.raises(InputError, match=r"\(B, 6, h, w\), got \(2, 5, 5, 4\)"):
        method().fit(support).score_map(query[:, :5])
    for empty in (support[:0], support[0]):
        with pytest.raises(InputError, match="expected features"):
            method().fit(empty)
