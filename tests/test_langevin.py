"""Langevin sampling where the answer is known, and its derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fsad
from fsad.errors import DivergedError, InputError

A = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64)
CENTRE = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def quadratic(x: Tensor) -> Tensor:
    """½(x − c)ᵀA(x − c) of each row."""
    return torch.einsum("bi,ij,bj->b", x - CENTRE, A, x - CENTRE) / 2


def test_samples_of_a_quadratic_energy_follow_the_stationary_law() -> None:
    """Mean c and covariance (A − βA²/4)⁻¹, of the discretised chain; not A⁻¹, the continuous one's."""
    beta, chains = 0.8, 200_000
    generator = torch.Generator().manual_seed(0)
    sampler = fsad.LangevinSampler(steps=60, step_size=beta)
    samples = sampler(quadratic, torch.zeros(chains, 3, dtype=torch.float64), generator)
    expected = torch.linalg.inv(A - beta * A @ A / 4)
    variances = expected.diagonal()
    # Five standard errors: of a mean √(s/n), of a covariance √((s_ii·s_jj + s_ij²)/n).
    assert ((samples.mean(0) - CENTRE).abs() < 5 * (variances / chains).sqrt()).all()
    error = (torch.outer(variances, variances) + expected.square()).div(chains).sqrt()
    assert ((samples.T.cov() - expected).abs() < 5 * error).all()
    assert ((torch.linalg.inv(A) - expected).abs() > 5 * error).any()  # the test can tell the two apart


def test_without_noise_it_is_gradient_descent() -> None:
    start = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sample = fsad.LangevinSampler(steps=3, step_size=0.5, noise=0)(quadratic, start)
    expected = start
    for _ in range(3):
        expected = expected - 0.25 * (expected - CENTRE) @ A
    torch.testing.assert_close(sample, expected)
    assert not sample.requires_grad


def test_noise_is_that_of_the_equation_its_own_or_none() -> None:
    def spread(noise: float | None) -> float:
        sampler = fsad.LangevinSampler(steps=1, step_size=0.09, noise=noise)
        start, generator = torch.zeros(100_000, 1), torch.Generator().manual_seed(0)
        return float(sampler(lambda x: 0 * x.sum(1), start, generator).std())

    assert spread(None) == pytest.approx(0.3, rel=0.01)
    assert spread(0.02) == pytest.approx(0.02, rel=0.01)
    assert spread(0) == 0


def test_a_generator_makes_it_reproducible_and_limits_hold() -> None:
    sampler = fsad.LangevinSampler(steps=4, step_size=0.5, limits=(-0.1, 0.2))
    start = torch.zeros(5, 3, dtype=torch.float64)
    one, same, other = (sampler(quadratic, start, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert (one == same).all() and (one != other).any()
    assert one.min() == -0.1 and one.max() == 0.2


def chain_of_the_native_operator(start: Tensor, support: Tensor) -> Tensor:
    # A fixed η: the others depend on the support, which derivatives leave out.
    layer = fsad.SparseCodingLayer(iterations=2, step=0.1, backend="native")
    dictionary = layer.dictionary(support[None])
    sampler = fsad.LangevinSampler(steps=2, step_size=0.5, noise=0)
    return sampler(lambda z: layer(z[None], dictionary).energy[0].mean((1, 2)), start, differentiable=2)


def test_derivatives_through_the_chain_over_the_native_operator() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 4, 2, 3, dtype=torch.float64, generator=generator).requires_grad_()
    support = torch.randn(2, 4, 3, 2, dtype=torch.float64, generator=generator).requires_grad_()
    torch.autograd.gradcheck(chain_of_the_native_operator, (start, support))


def test_second_derivatives_through_the_chain_over_an_analytic_energy() -> None:
    def chain(start: Tensor, weight: Tensor) -> Tensor:
        def energy(x: Tensor) -> Tensor:
            return (torch.tanh(x @ weight) ** 2).sum(1) + (x**4).sum(1) / 8

        return fsad.LangevinSampler(steps=2, step_size=0.3, noise=0)(energy, start, differentiable=2)

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(3, 2, dtype=torch.float64, generator=generator).requires_grad_()
    torch.autograd.gradcheck(chain, (start, weight))
    torch.autograd.gradgradcheck(chain, (start, weight))


def test_the_last_steps_alone_can_be_differentiated() -> None:
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    start = torch.full((1, 1), 3.0, dtype=torch.float64)
    sampler = fsad.LangevinSampler(steps=3, step_size=0.5, noise=0)

    def energy(x: Tensor) -> Tensor:
        return weight * x.square().sum(1) / 2

    (gradient,) = torch.autograd.grad(sampler(energy, start, differentiable=1).sum(), weight)
    # x₃ = x₂·(1 − β/2·w), x₂ = 3·(1 − β/2·w)² a constant.
    assert float(gradient) == pytest.approx(-0.25 * 3 * (1 - 0.25 * 0.7) ** 2)
    with pytest.raises(InputError, match="0 to 3"):
        sampler(energy, start, differentiable=4)


def test_it_runs_where_gradients_are_off() -> None:
    start = torch.ones(1, 3, dtype=torch.float64)
    expected = fsad.LangevinSampler(noise=0)(quadratic, start)
    with torch.no_grad():
        torch.testing.assert_close(fsad.LangevinSampler(noise=0)(quadratic, start), expected)
    with torch.inference_mode():
        inside = fsad.LangevinSampler(noise=0)(quadratic, torch.ones(1, 3, dtype=torch.float64))
    torch.testing.assert_close(inside.clone(), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"step_size": 0},
        {"step_size": "a"},
        {"noise": -1},
        {"noise": float("nan")},
        {"limits": (1, 0)},
        {"limits": (0,)},
        {"limits": 3},
    ],
)
def test_settings_that_cannot_be_used(wrong: dict) -> None:
    with pytest.raises(InputError, match="LangevinSampler takes"):
        fsad.LangevinSampler(**wrong)


def test_no_steps_give_the_start_detached() -> None:
    start = torch.ones(1, 3, requires_grad=True)
    assert not fsad.LangevinSampler(steps=0)(quadratic, start).requires_grad


def test_limits_do_not_hide_a_step_to_infinity() -> None:
    sampler = fsad.LangevinSampler(steps=1, step_size=1.0, noise=0, limits=(0.0, 1.0))
    with pytest.raises(DivergedError, match="step_size=1"):
        sampler(lambda x: x.square().sum(1) * 1e300 * 1e300, torch.ones(1, 3).double())


def test_divergence_is_an_error() -> None:
    with pytest.raises(DivergedError, match="step_size=1000"):
        fsad.LangevinSampler(steps=200, step_size=1000, noise=0)(quadratic, torch.ones(1, 3).double())
