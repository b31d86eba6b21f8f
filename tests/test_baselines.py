"""The baselines against their definitions written out plainly."""

import pytest
import torch
from torch.nn import functional as F

from fsad.baselines import Mahalanobis, NearestNeighbour, Ridge
from fsad.errors import InputError, NotAdaptedError

ALL = [NearestNeighbour, Mahalanobis, Ridge]


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
