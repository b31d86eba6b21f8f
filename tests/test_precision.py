"""Float32 where roundings grow: many steps, in each of which SigShrink's slope multiplies them.

The derivatives' passes compute the codes once more. Where they round otherwise than the forward pass did, the
difference grows too, until derivatives are wrong in all digits.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import numpy as np
import pytest
import torch
from torch import Tensor

from fsad import functional, reference

pytestmark = pytest.mark.usefixtures("two_threads")
DRAWS = 7
EPS = torch.finfo(torch.float32).eps


def check(results: Callable[[str, torch.dtype, int], list[Tensor]]) -> None:
    """In the median of several draws the native kernels err at most twice as much as plain PyTorch, in values
    and derivatives. (A single draw may be one whose roundings grow in one of them alone.)"""
    ratios = []
    for seed in range(DRAWS):
        truth = results("reference", torch.float64, seed)
        native, plain = (results(backend, torch.float32, seed) for backend in ("native", "reference"))
        errors = [
            [float((x - y).norm() / y.norm()) for x, y in zip(each, truth, strict=True)]
            for each in (native, plain)
        ]
        # Where plain PyTorch happens to be exact, a few roundings are allowed.
        ratios.append([error / max(usual, 2 * EPS) for error, usual in zip(*errors, strict=True)])
    medians = [median(each) for each in zip(*ratios, strict=True)]
    assert max(medians) <= 2, medians


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def both_orders(output: Tensor, inputs: tuple[Tensor, Tensor]) -> list[Tensor]:
    """First derivatives, and second ones along a fixed direction of the queries' gradient."""
    first = torch.autograd.grad(output, inputs, create_graph=True)
    along = draw(*first[0].shape, seed=5).to(first[0])
    second = torch.autograd.grad((first[0] * along).sum(), inputs)
    return [each.detach().double() for each in (*first, *second)]


def thresholds(correlations: Tensor, steps: int) -> list[float]:
    sizes = correlations.abs().flatten()
    return [float(sizes.quantile(float(share))) for share in torch.linspace(0.98, 0.8, steps)]


@pytest.mark.parametrize(("atoms", "width", "steps"), [(100, 256, 20), (100, 300, 20), (60, 577, 10)])
def test_float32_errs_little_over_many_steps(atoms: int, width: int, steps: int) -> None:
    """Orthonormal atoms, at whose step of 1 nothing is damped; widths of one and of several parts."""

    def results(backend: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
        dictionary = torch.linalg.qr(draw(width, atoms, seed=seed))[0].mT.contiguous()
        queries = draw(64, width, seed=seed + DRAWS)
        lambdas = thresholds(queries @ dictionary.mT, steps)
        inputs = tuple(each.to(dtype).requires_grad_() for each in (queries, dictionary))
        residual = functional.istc(*inputs, lambdas, step=1.0, tau=10 / lambdas[-1], backend=backend)
        return [residual.detach().double(), *both_orders(residual.square().sum(), inputs)]

    check(results)


@pytest.mark.parametrize(
    ("channels", "support", "steps"), [(16, (1, 8), 10), (16, (8, 8), 10), (32, (8, 8), 20)]
)
def test_float32_errs_little_over_many_steps_by_diagonals(
    channels: int, support: tuple[int, int], steps: int
) -> None:
    """All patches as atoms: the first inner products are sums along diagonals, in all passes."""

    def results(backend: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
        queries, maps = (
            draw(1, 1, channels, 8, 8, seed=seed),
            draw(1, 1, channels, *support, seed=seed + DRAWS),
        )
        rows = functional.dictionary_rows(maps, None, 3)
        step = float(1 / torch.linalg.matrix_norm(rows, 2) ** 2)
        lambdas = thresholds(step * (reference.im2col(queries, 3) @ rows.mT), steps)
        inputs = tuple(each.to(dtype).requires_grad_() for each in (queries, maps))
        settings = {"receptive_field": 3, "step": step, "tau": [10 / lam for lam in lambdas]}
        residual = functional.sparse_code(*inputs, lambdas, **settings, backend=backend)
        return [residual.detach().double(), *both_orders(residual.square().sum(), inputs)]

    check(results)


@pytest.mark.parametrize(
    ("atoms", "width", "steps"), [(1, 64, 10), (1, 600, 3), (2, 64, 3), (8, 64, 20), (256, 152, 3)]
)
def test_float32_errs_little_with_relative_thresholds(atoms: int, width: int, steps: int) -> None:
    """What is found and begun in one pass is differentiated as it was computed."""

    def results(backend: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
        queries, maps = draw(1, 1, width, 8, 25, seed=seed), draw(1, 1, width, 1, atoms, seed=seed + DRAWS)
        if 1 < atoms < width:
            maps = torch.linalg.qr(maps[0, 0, :, 0])[0].reshape(maps.shape)
        step = float(1 / torch.linalg.matrix_norm(maps[0, 0, :, 0], 2) ** 2)
        lambdas = torch.linspace(0.5, 0.1, steps).tolist()
        inputs = tuple(each.to(dtype).requires_grad_() for each in (queries, maps))
        settings = {"step": step, "tau": [10 / lam for lam in lambdas], "backend": backend}
        residual, energy, peak = functional.relative_energy(*inputs, lambdas, **settings)
        values = [each.detach().double() for each in (residual, energy, peak)]
        return [*values, *both_orders(energy.sum(), inputs)]

    check(results)


FEW_ATOMS = [(atoms, width, 3) for atoms in (1, 2, 5, 8) for width in (64, 152, 256)]
MANY_STEPS = [(17, 256, 10), (24, 200, 10), (24, 256, 10), (129, 256, 10), (200, 256, 4), (400, 256, 7)]


@pytest.mark.parametrize(("atoms", "width", "steps"), FEW_ATOMS + MANY_STEPS)
def test_float32_errs_little_over_vectors_of_one_sign(atoms: int, width: int, steps: int) -> None:
    """Sums of products of one sign, whose roundings grow with their length."""

    def results(backend: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
        queries, dictionary = draw(64, width, seed=seed).abs(), draw(atoms, width, seed=seed + DRAWS).abs()
        step = float(1 / torch.linalg.matrix_norm(dictionary, 2) ** 2)
        lambdas = thresholds(step * (queries @ dictionary.mT), steps)
        inputs = tuple(each.to(dtype).requires_grad_() for each in (queries, dictionary))
        residual = functional.istc(*inputs, lambdas, step=step, tau=10 / lambdas[-1], backend=backend)
        return [residual.detach().double(), *both_orders(residual.square().sum(), inputs)]

    check(results)


@pytest.mark.parametrize(
    ("atoms", "width", "steps"),
    [(200, 192, 3), (400, 208, 3), (200, 224, 3), (200, 256, 3), (600, 256, 3), (200, 256, 1), (400, 300, 3)],
)
def test_float32_errs_little_over_vectors_alike(atoms: int, width: int, steps: int) -> None:
    """Unit vectors with a large mean in common, at widths of one part of a product, just more, and two."""

    def results(backend: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
        drawn = draw(64, width, seed=seed), draw(atoms, width, seed=seed + DRAWS)
        queries, dictionary = ((each + 5) / (each + 5).norm(dim=1, keepdim=True) for each in drawn)
        step = float(1 / torch.linalg.matrix_norm(dictionary, 2) ** 2)
        lambdas = thresholds(step * (queries @ dictionary.mT), steps)
        inputs = tuple(each.to(dtype).requires_grad_() for each in (queries, dictionary))
        residual = functional.istc(*inputs, lambdas, step=step, tau=10 / lambdas[-1], backend=backend)
        along = draw(64, width, seed=seed + 2 * DRAWS).to(residual)
        return [residual.detach().double(), *both_orders((residual * along).sum(), inputs)]

    check(results)


@pytest.mark.parametrize(("atoms", "width", "steps"), [(16, 1024, 8), (32, 1024, 16), (64, 2048, 16)])
def test_float32_errs_little_without_shrinkage(atoms: int, width: int, steps: int) -> None:
    """Wide near-duplicates: codes far larger than what a step adds to them, in many parts."""

    def results(backend: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
        common = draw(1, width, seed=seed + 2 * DRAWS)
        queries = common + 0.1 * draw(64, width, seed=seed)
        dictionary = common + 0.01 * draw(atoms, width, seed=seed + DRAWS)
        queries, dictionary = (each / each.norm(dim=1, keepdim=True) for each in (queries, dictionary))
        step = float(1 / torch.linalg.matrix_norm(dictionary, 2) ** 2)
        inputs = tuple(each.to(dtype).requires_grad_() for each in (queries, dictionary))
        settings = {"step": step, "tau": None, "shrinkage": "none", "backend": backend}
        residual = functional.istc(*inputs, [0.0] * steps, **settings)
        along = draw(64, width, seed=seed + 3 * DRAWS).to(residual)
        first = torch.autograd.grad((residual * along).sum(), inputs)
        return [each.detach().double() for each in (residual, *first)]

    check(results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sigshrink_is_right_to_a_few_units_in_the_last_place(dtype: torch.dtype) -> None:
    """σ(u) alone: one atom (1, 1) codes (u, 0), whose residual then is −σ(u) in the second place.

    Exponents τ(λ − u) are exact here, from −101 to 27, so what errs is e^x, 1/(1 + e^x) and a product.
    (With λτ above 28 float32 leaves the smallest codes out.)
    """
    u = torch.arange(1, 128 * 64, dtype=torch.float64) / 64
    queries = torch.stack([u, torch.zeros_like(u)], 1)
    atom = torch.ones(1, 2, dtype=dtype)
    residual = functional.istc(queries.to(dtype), atom, [27.0], step=1.0, tau=1.0, backend="native")
    exponent = (27 - u).numpy().astype(np.longdouble)
    truth = u.numpy() / (1 + np.exp(exponent))
    errors = np.abs(-residual[:, 1].numpy().astype(np.longdouble) - truth) / truth
    assert errors.max() < 5 * torch.finfo(dtype).eps
