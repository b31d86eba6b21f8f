"""Problems for the tests of the operators: shapes that could trip a tile, all derivatives at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fsad import functional

LAMBDAS = [0.3, 0.22, 0.17, 0.13, 0.1, 0.08]


@dataclass(frozen=True)
class Case:
    """Maps (T, B, c, h, w) coded over maps (T, K, c, H, W), of which `atoms` patches are kept."""

    queries: tuple[int, ...]
    support: tuple[int, ...]
    receptive_field: int = 1
    atoms: int | None = None
    iterations: int = 3
    shrinkage: str = "sigshrink"

    def tensors(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
        """Queries, per-patch scale and support, all requiring grad; values at which codes are neither
        dense nor empty and the iteration converges."""
        generator = torch.Generator().manual_seed(seed)
        width = self.queries[2] * self.receptive_field**2
        queries = torch.randn(self.queries, generator=generator, dtype=torch.float64)
        support = torch.randn(self.support, generator=generator, dtype=torch.float64) / width**0.5
        tasks, images, _, height, columns = self.queries
        scale = 0.5 + torch.rand(tasks, images * height * columns, generator=generator, dtype=torch.float64)
        tensors = {"queries": queries, "scale": scale, "support": support}
        return {name: tensor.to(dtype).requires_grad_() for name, tensor in tensors.items()}

    def index(self) -> Tensor | None:
        if self.atoms is None:
            return None
        tasks, maps, _, height, width = self.support
        generator = torch.Generator().manual_seed(1)
        chosen = [torch.randperm(maps * height * width, generator=generator) for _ in range(tasks)]
        return torch.stack([order[: self.atoms] for order in chosen])

    def code(self, queries: Tensor, scale: Tensor, support: Tensor, backend: str) -> Tensor:
        return functional.sparse_code(
            queries,
            support,
            LAMBDAS[: self.iterations],
            receptive_field=self.receptive_field,
            atom_index=self.index(),
            scale=scale,
            step=0.3,
            tau=10.0 if self.shrinkage == "sigshrink" else None,
            shrinkage=self.shrinkage,
            backend=backend,
        )


def derivatives(case: Case, backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The residual, its first and its second derivatives along fixed random cotangents."""
    tensors = case.tensors(dtype)
    inputs = list(tensors.values())
    residual = case.code(**tensors, backend=backend)
    results = {"residual": residual}
    gradient = _like(residual, 2).requires_grad_()
    first = torch.autograd.grad(residual, inputs, gradient, create_graph=True)
    results |= {f"d {name}": tensor for name, tensor in zip(tensors, first, strict=True)}
    cotangents = [_like(tensor, 3 + i) for i, tensor in enumerate(first)]
    names = ["gradient", *tensors]
    second = torch.autograd.grad(first, [gradient, *inputs], cotangents, retain_graph=True)
    results |= {f"dd {name}": tensor for name, tensor in zip(names, second, strict=True)}
    # A cotangent of the queries' gradient alone, as Langevin steps have it: another path in the kernels.
    # Without shrinkage that gradient is linear in G and does not contain the queries.
    partial = torch.autograd.grad(
        first[0], [gradient, *inputs], cotangents[0], allow_unused=True, materialize_grads=True
    )
    results |= {f"dd queries {name}": tensor for name, tensor in zip(names, partial, strict=True)}
    return {name: tensor.detach() for name, tensor in results.items()}


def _like(tensor: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """‖value − truth‖ / ‖truth‖ in float64; 0 for two zeros."""
    distance = (value.double() - truth.double()).norm()
    return float(distance / truth.double().norm().clamp_min(torch.finfo(torch.float64).tiny))
