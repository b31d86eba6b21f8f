"""What the benches time: one problem of sparse coding, the work on it, and the floor below that work.

The floor is the matrix products that bounded memory needs at least, timed as torch.mm into a preallocated
result, for N steps:

* forward, 2N: each step multiplies the residual with all atoms, and the codes with all atoms;
* backward to the queries, 3N more: a step's inner products once more, and the gradient both ways;
* to the dictionary too, 2N more: a step adds two outer products;
* double backward to both, 16N in all: beside the 5N of the first gradient, inner products of primal and
  tangent and the tangent's codes (3N), the reverse pass of both (4N), and its outer products (4N). That is
  with a fixed gradient of the residual; an energy, whose gradient depends on the residual, adds one more
  backward pass (5N).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fsad import functional, reference

PRODUCTS = {"forward": 2, "backward": 5, "dictionary": 7, "second": 16}  # a step
WORKS = {
    "forward": "forward",
    "backward": "forward + backward in features",
    "dictionary": "+ dictionary gradient",
    "second": "double backward",
}
# Quantiles of |ηDᵀz| at the first, middle and last step: codes are then neither dense nor empty.
QUANTILES = (0.98, 0.9, 0.8)

Code = Callable[[Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    """d, k, n, l and N."""

    width: int
    atoms: int
    queries: int
    field: int = 1
    steps: int = 3

    @property
    def label(self) -> str:
        return f"({self.width}, {self.atoms}, {self.queries})" + (
            f", l = {self.field}" if self.field > 1 else ""
        )


COLUMNS = [Shape(64, 10240, 1024), Shape(152, 10240, 1024), Shape(576, 5120, 1024, field=3)]


class Problem:
    """Unit vectors with a common mean (normal + 0.5, normalised), a stable step, and fitting thresholds.

    For l = 1 ``queries`` are rows (n, d) and ``atoms`` rows (k, d), coded by ``functional.istc``. Otherwise
    they are maps (B, c, h, w) with d = c·l², a unit vector at each position, for ``functional.sparse_code``.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)
        channels, rest = divmod(shape.width, shape.field**2)
        if rest:
            raise ValueError(f"{shape}: d must be a multiple of l² = {shape.field**2}")

        def unit(count: int) -> Tensor:
            vectors = torch.randn(count, channels, generator=generator) + 0.5
            vectors = torch.nn.functional.normalize(vectors, dim=1)
            return vectors if shape.field == 1 else as_maps(vectors)

        self.shape = shape
        queries, atoms = unit(shape.queries), unit(shape.atoms)
        z, d = self._rows(queries), self._rows(atoms)
        self.step = 1 / torch.linalg.eigvalsh((d.T @ d).double())[-1].item()
        sample = z[:: max(1, len(z) // 64)]
        correlations = (self.step * sample @ d.T).abs().flatten().numpy()
        # N = 1 takes the last threshold, N = 3 all three, other N what lies between them.
        levels = np.interp(np.linspace(1, 0, shape.steps)[::-1], (0, 0.5, 1), QUANTILES)
        self.lambdas = np.quantile(correlations, levels).tolist()
        self.tau = 10 / self.lambdas[-1]
        self.queries, self.atoms = queries.to(device, dtype), atoms.to(device, dtype)
        self._cotangent = self.queries.new_ones(())

    def code(self, backend: str) -> Code:
        """A function from queries and atoms to the residual."""
        options: dict[str, Any] = {"step": self.step, "tau": self.tau, "backend": backend}
        if self.shape.field == 1:
            return lambda queries, atoms: functional.istc(queries, atoms, self.lambdas, **options)
        options["receptive_field"] = self.shape.field
        return lambda queries, atoms: functional.sparse_code(queries, atoms, self.lambdas, **options)

    def run(self, work: str, code: Code) -> None:
        """One of ``WORKS``; the gradient of the residual, and that of the gradient, are fixed."""
        queries = self.queries.detach().requires_grad_(work != "forward")
        atoms = self.atoms.detach().requires_grad_(work in ("dictionary", "second"))
        residual = code(queries, atoms)
        cotangent = self._cotangent.expand_as(residual)
        if work == "second":
            (gradient,) = torch.autograd.grad(residual, queries, cotangent, create_graph=True)
            gradient.backward(self.queries)
        elif work != "forward":
            residual.backward(cotangent)

    def floor(self, work: str) -> Callable[[], None]:
        return products(self._rows(self.queries), self._rows(self.atoms), PRODUCTS[work] * self.shape.steps)

    def _rows(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.dim() == 2 else reference.im2col(tensor[None], self.shape.field)[0]


def products(queries: Tensor, atoms: Tensor, count: int) -> Callable[[], None]:
    """``count`` matrix products of rows (n, d) with rows (k, d), into one preallocated result."""
    left, right = queries, atoms.T.contiguous()
    product = left @ right

    def multiply() -> None:
        for _ in range(count):
            torch.mm(left, right, out=product)

    return multiply


def as_maps(vectors: Tensor) -> Tensor:
    """Rows (count, c) -> maps (B, c, h, w) of 32×32 positions if that goes, else one, as square as can be."""
    count = len(vectors)
    height = 32 if count % 1024 == 0 else next(h for h in range(int(count**0.5), 0, -1) if count % h == 0)
    width = 32 if count % 1024 == 0 else count // height
    return vectors.view(-1, height, width, vectors.shape[1]).permute(0, 3, 1, 2).contiguous()
