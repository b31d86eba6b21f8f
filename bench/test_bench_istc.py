"""Sparse coding, native against the pure-PyTorch reference and the floor: pytest bench/ --benchmark-only

The floor is the matrix products that bounded memory needs at least, timed as torch.mm into a preallocated
result: 2N for the forward pass, 5N with the backward pass to the queries, 7N with that to the dictionary too.
Compare times within one group of one run only.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fsad import functional

SHAPES = [(64, 10240, 1024), (152, 2048, 1024), (152, 10240, 1024)]  # d, k, n
ITERATIONS = 3
PRODUCTS = {"forward": 2 * ITERATIONS, "backward": 5 * ITERATIONS, "dictionary": 7 * ITERATIONS}


class Problem:
    """Unit vectors with a common mean, and thresholds at which codes are neither dense nor empty."""

    def __init__(self, width: int, atoms: int, queries: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def unit(count: int) -> Tensor:
            vectors = torch.randn(count, width, generator=generator) + 0.5
            return torch.nn.functional.normalize(vectors, dim=1)

        self.queries, self.atoms = unit(queries), unit(atoms)
        self.step = 1 / torch.linalg.matrix_norm(self.atoms, 2).item() ** 2
        correlations = (self.step * self.queries[:64] @ self.atoms.T).abs().flatten()
        self.lambdas = [torch.quantile(correlations, q).item() for q in (0.98, 0.9, 0.8)]
        self.tau = 10 / self.lambdas[-1]

    def run(self, work: str, backend: str) -> None:
        queries = self.queries.clone().requires_grad_(work != "forward")
        atoms = self.atoms.clone().requires_grad_(work == "dictionary")
        residual = functional.istc(
            queries, atoms, self.lambdas, step=self.step, tau=self.tau, backend=backend
        )
        if work != "forward":
            residual.square().sum().backward()

    def floor(self, work: str) -> Callable[[], None]:
        left, right = self.queries, self.atoms.T.contiguous()
        product = left @ right

        def multiply() -> None:
            for _ in range(PRODUCTS[work]):
                torch.mm(left, right, out=product)

        return multiply


@pytest.mark.parametrize("contender", ["native", "reference", "floor"])
@pytest.mark.parametrize("work", PRODUCTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_istc(benchmark, shape: tuple[int, int, int], work: str, contender: str) -> None:
    benchmark.group = f"{work}, d={shape[0]} k={shape[1]} n={shape[2]}"
    problem = Problem(*shape)
    if contender == "floor":
        benchmark.pedantic(problem.floor(work), rounds=5, warmup_rounds=1)
    else:
        benchmark.pedantic(problem.run, args=(work, contender), rounds=5, warmup_rounds=1)
