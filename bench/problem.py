"""What the benches time: one problem of sparse coding, the work on it, and the floor below that work.

The floor is the matrix products that bounded memory needs at least, timed as torch.mm into a preallocated
result, for N steps: 2N for the forward pass, 5N with the backward pass to the queries, 7N with that to the
dictionary too, 16N with second derivatives to both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fsad import functional

SHAPES = [(64, 10240, 1024), (152, 2048, 1024), (152, 10240, 1024)]  # d, k, n
ITERATIONS = 3
PRODUCTS = {
    "forward": 2 * ITERATIONS,
    "backward": 5 * ITERATIONS,
    "dictionary": 7 * ITERATIONS,
    "second": 16 * ITERATIONS,
}


class Problem:
    """Unit vectors with a common mean, and thresholds at which codes are neither dense nor empty."""

    def __init__(
        self, width: int, atoms: int, queries: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        generator = torch.Generator().manual_seed(0)

        def unit(count: int) -> Tensor:
            vectors = torch.randn(count, width, generator=generator) + 0.5
            return torch.nn.functional.normalize(vectors, dim=1)

        z, d = unit(queries), unit(atoms)
        self.step = 1 / torch.linalg.matrix_norm(d, 2).item() ** 2
        correlations = (self.step * z[:64] @ d.T).abs().flatten()
        self.lambdas = [torch.quantile(correlations, q).item() for q in (0.98, 0.9, 0.8)]
        self.tau = 10 / self.lambdas[-1]
        self.queries, self.atoms = z.to(device, dtype), d.to(device, dtype)

    def code(self, backend: str) -> Callable[[Tensor, Tensor], Tensor]:
        """Queries and atoms to the residual."""

        def residual(queries: Tensor, atoms: Tensor) -> Tensor:
            return functional.istc(
                queries, atoms, self.lambdas, step=self.step, tau=self.tau, backend=backend
            )

        return residual

    def run(self, work: str, code: Callable[[Tensor, Tensor], Tensor]) -> None:
        queries = self.queries.detach().requires_grad_(work != "forward")
        atoms = self.atoms.detach().requires_grad_(work in ("dictionary", "second"))
        energy = code(queries, atoms).square().sum()
        if work == "second":
            (gradient,) = torch.autograd.grad(energy, queries, create_graph=True)
            gradient.square().sum().backward()
        elif work != "forward":
            energy.backward()

    def floor(self, work: str) -> Callable[[], None]:
        left, right = self.queries, self.atoms.T.contiguous()
        product = left @ right

        def multiply() -> None:
            for _ in range(PRODUCTS[work]):
                torch.mm(left, right, out=product)

        return multiply
