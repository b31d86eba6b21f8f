"""Problems for the tests of the operators, and the checks that are the same on every device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from fsad import arguments, functional

LAMBDAS = [0.3, 0.22, 0.17, 0.13, 0.1, 0.08]
STEP = 0.3


@dataclass(frozen=True)
class Case:
    """Maps (T, B, c, h, w) coded over maps (T, K, c, H, W), of which `atoms` patches are kept."""

    queries: tuple[int, ...]
    support: tuple[int, ...]
    receptive_field: int = 1
    atoms: int | None = None
    iterations: int = 3
    shrinkage: str = "sigshrink"

    def __str__(self) -> str:
        kept = "" if self.atoms is None else f"-k{self.atoms}"
        return (
            f"{self.queries}-{self.support}{kept}-l{self.receptive_field}-N{self.iterations}-{self.shrinkage}"
        )

    def tensors(
        self, dtype: torch.dtype = torch.float64, seed: int = 0, device: str = "cpu"
    ) -> dict[str, Tensor]:
        """Queries, per-patch scale and support, all requiring grad; values at which codes are neither
        dense nor empty and the iteration converges."""
        generator = torch.Generator().manual_seed(seed)
        width = self.queries[2] * self.receptive_field**2
        queries = torch.randn(self.queries, generator=generator, dtype=torch.float64)
        support = torch.randn(self.support, generator=generator, dtype=torch.float64) / width**0.5
        tasks, images, _, height, columns = self.queries
        scale = 0.5 + torch.rand(tasks, images * height * columns, generator=generator, dtype=torch.float64)
        tensors = {"queries": queries, "scale": scale, "support": support}
        return {name: tensor.to(device, dtype).requires_grad_() for name, tensor in tensors.items()}

    @cache  # noqa: B019  (cases are few; capturing a CUDA graph allows no copy from the host)
    def index(self, device: str = "cpu") -> Tensor | None:
        if self.atoms is None:
            return None
        tasks, maps, _, height, width = self.support
        generator = torch.Generator().manual_seed(1)
        chosen = [torch.randperm(maps * height * width, generator=generator) for _ in range(tasks)]
        return torch.stack([order[: self.atoms] for order in chosen]).to(device)

    def code(self, *arguments: Any, **named: Any) -> Tensor:
        """The residual of queries, scale and support, by a backend."""
        return self._run(functional.sparse_code, *arguments, **named)

    def energy(self, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Residual and energy."""
        return self._run(functional.sparse_energy, *arguments, **named)

    def _run(
        self,
        function: Callable[..., Any],
        queries: Tensor,
        scale: Tensor,
        support: Tensor,
        backend: str,
        step: float = STEP,
    ) -> Any:
        return function(
            queries,
            support,
            LAMBDAS[: self.iterations],
            receptive_field=self.receptive_field,
            atom_index=self.index(str(queries.device)),
            scale=scale,
            step=step,
            tau=10.0 if self.shrinkage == "sigshrink" else None,
            shrinkage=self.shrinkage,
            backend=backend,
        )


SHAPES = [
    # one of everything
    Case((1, 1, 1, 1, 1), (1, 1, 1, 1, 1)),
    # primes, several tasks, a thinned dictionary
    Case((2, 3, 7, 5, 3), (2, 2, 7, 5, 11), atoms=37),
    # one beyond a tile of 64 queries, of 48 atoms, of 16 columns
    Case((1, 1, 17, 5, 13), (1, 1, 17, 7, 7)),
    # exactly a tile
    Case((1, 1, 16, 8, 8), (1, 1, 16, 6, 8)),
    # receptive fields larger than the map
    Case((1, 2, 3, 2, 4), (1, 2, 3, 3, 2), receptive_field=5),
    Case((2, 1, 5, 6, 5), (2, 3, 5, 4, 7), receptive_field=3, atoms=41),
    # first inner products by diagonals, over borders of rows, of images and of tiles
    Case((2, 2, 17, 9, 11), (2, 3, 17, 7, 9), receptive_field=3),
    Case((1, 3, 16, 2, 13), (1, 2, 16, 9, 8), receptive_field=5),
    # few queries, many atoms: these are split; for single queries too
    Case((2, 1, 40, 5, 7), (2, 1, 40, 33, 34)),
    Case((1, 1, 160, 1, 2), (1, 1, 160, 59, 57)),
    # single queries whose rows end within a vector; half a vector of queries, of either dtype
    Case((1, 2, 37, 1, 1), (1, 1, 37, 9, 11)),
    Case((1, 1, 41, 1, 3), (1, 1, 41, 9, 11)),
    Case((2, 1, 5, 1, 7), (2, 1, 5, 9, 11), receptive_field=3),
    # too many patches to be packed at once
    Case((1, 1, 20, 2, 9), (1, 1, 20, 60, 56), receptive_field=3),
    # rows of whole KiB, which are packed; several parts of the depth
    Case((1, 1, 256, 3, 4), (1, 1, 256, 9, 11)),
    Case((1, 1, 512, 3, 7), (1, 1, 512, 5, 11)),
    # wide features, many parts of the dictionary gradient
    Case((1, 9, 150, 8, 8), (1, 1, 150, 7, 8)),
]
GRID = [
    Case((2, 1, 3, 4, 5), (2, 2, 3, 4, 4), receptive_field=field, iterations=n, shrinkage=shrinkage)
    for field, n, shrinkage in product((1, 3, 5), range(1, 7), arguments.SHRINKAGES)
]


def derivatives(
    case: Case,
    backend: str,
    dtype: torch.dtype,
    device: str = "cpu",
    stored: torch.dtype | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Residual and energy, their first and second derivatives along fixed random cotangents, on the CPU.

    Computed in ``dtype``, from values that are first rounded to ``stored``.
    """
    stored = stored or dtype
    tensors = {
        name: tensor.detach().to(dtype).requires_grad_()
        for name, tensor in case.tensors(stored, seed, device).items()
    }

    def random_like(tensor: Tensor, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(stored).to(tensor)

    inputs = list(tensors.values())
    step = torch.tensor(STEP, dtype=stored).item()
    results = {}
    residual = case.code(**tensors, backend=backend, step=step)
    # At a step that no iteration grows with: squares of what grew would all be of one patch.
    small_step = step / 8 if case.receptive_field == 1 else step
    _, energy = case.energy(**tensors, backend=backend, step=small_step)
    for kind, output in (("residual", residual), ("energy", energy)):
        results[kind] = output
        gradient = random_like(output, 2).requires_grad_()
        first = torch.autograd.grad(output, inputs, gradient, create_graph=True)
        results |= {f"{kind} d {name}": tensor for name, tensor in zip(tensors, first, strict=True)}
        cotangents = [random_like(tensor, 3 + i) for i, tensor in enumerate(first)]
        names = ["gradient", *tensors]
        second = torch.autograd.grad(first, [gradient, *inputs], cotangents, retain_graph=True)
        results |= {f"{kind} dd {name}": tensor for name, tensor in zip(names, second, strict=True)}
        # A cotangent of the queries' gradient alone, as Langevin steps have it: another path in the kernels.
        # Without shrinkage the residual's gradient is linear in G and does not contain the queries.
        options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
        partial = torch.autograd.grad(first[0], [gradient, *inputs], cotangents[0], **options)
        results |= {f"{kind} dd queries {name}": tensor for name, tensor in zip(names, partial, strict=True)}
    return {name: tensor.detach().cpu() for name, tensor in results.items()}


def relative_error(value: Tensor, truth: Tensor, at_least: float = 1e-300) -> float:
    """‖value − truth‖ / ‖truth‖ in float64; 0 for two zeros."""
    distance = (value.double() - truth.double()).norm()
    return float(distance / truth.double().norm().clamp_min(at_least))


def size_of_terms(quantity: str, truth: dict[str, Tensor]) -> float:
    """The energy's derivatives by the scale are differences of multiples of the energy, and may be zero."""
    is_difference = quantity.startswith("energy") and quantity.endswith("scale")
    return float(truth["energy"].double().norm()) if is_difference else 1e-300


# ---- checks ------------------------------------------------------------------------------------------


def check_float64(case: Case, device: str = "cpu") -> None:
    """The native operators' values and derivatives are the reference's."""
    native = derivatives(case, "native", torch.float64, device)
    truth = derivatives(case, "reference", torch.float64)
    for quantity, value in truth.items():
        error = relative_error(native[quantity], value, size_of_terms(quantity, truth))
        assert error < 1e-12, f"{quantity}: {error:.2e}"


def check_precision(case: Case, dtype: torch.dtype, device: str = "cpu") -> None:
    """The native operators err at most twice as much as plain PyTorch does in the same dtype.

    Both against float64, on the same device.
    """
    # 16 bits are too few for the difference between the inputs and what is stored of them to be small.
    stored = torch.float64 if dtype == torch.float32 else dtype
    # Of a handful of numbers a single rounding would decide: several draws of them, taken together.
    seeds = range(min(50, 1 + 600 // prod(case.queries)))
    truth = together(derivatives(case, "reference", torch.float64, "cpu", stored, seed) for seed in seeds)
    plain = together(derivatives(case, "reference", dtype, device, seed=seed) for seed in seeds)
    native = together(derivatives(case, "native", dtype, device, seed=seed) for seed in seeds)
    for quantity, value in truth.items():
        size = size_of_terms(quantity, truth)
        # Where plain PyTorch happens to be exact, a few roundings are allowed.
        allowed = max(2 * relative_error(plain[quantity], value, size), 4 * torch.finfo(dtype).eps)
        error = relative_error(native[quantity], value, size)
        assert error <= allowed, f"{quantity}: {error:.2e} > {allowed:.2e}"


def together(runs: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    runs = list(runs)
    return {quantity: torch.cat([run[quantity].flatten() for run in runs]) for quantity in runs[0]}


def check_derivatives(case: Case, device: str = "cpu") -> None:
    """First and second derivatives against finite differences, with the case's settings on small maps."""
    small = Case(
        (1, 1, 2, 2, 2), (1, 1, 2, 2, 3), case.receptive_field, None, case.iterations, case.shrinkage
    )
    inputs = tuple(small.tensors(seed=4, device=device).values())

    def native(*tensors: Tensor) -> Tensor:
        return small.code(*tensors, backend="native")

    def together(*tensors: Tensor) -> Tensor:
        residual, energy = small.energy(*tensors, backend="native")
        return residual.pow(3).sum() + energy.sum()

    for function in (native, together, lambda *tensors: small.energy(*tensors, backend="native")[1]):
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs)


def check_contract(case: Case, dtype: torch.dtype, device: str = "cpu") -> None:
    """What torch.library demands of every operator."""
    tensors = case.tensors(dtype, device=device)
    queries, support = (
        functional.channels_last(tensors[key].detach()).requires_grad_() for key in ("queries", "support")
    )
    index = case.index(device)
    settings = ([0.3, 0.2], [5.0, 5.0], 2, case.receptive_field, False)
    step = torch.full((len(queries),), STEP, dtype=dtype, device=device)
    dictionary = (tensors["scale"], support, index, step)
    opcheck(torch.ops.fsad.istc, (queries, *dictionary, *settings))
    constants = [v.detach() if isinstance(v, Tensor) else v for v in (queries, *dictionary)]
    opcheck(torch.ops.fsad.istc_residual, (*constants, *settings))
    alone, besides = (
        operator(*constants, *settings) for operator in (torch.ops.fsad.istc_residual, torch.ops.fsad.istc)
    )
    assert torch.equal(alone, besides[0])
    opcheck(torch.ops.fsad.istc_energy, (queries, *dictionary, *settings, None, None))
    if device == "cpu":
        bare = (queries.detach(), support.detach(), index, step, *settings[:-1])
        opcheck(torch.ops.fsad.istc_relative, bare)
        known = torch.ops.fsad.istc_relative(*bare)[:2]
        opcheck(torch.ops.fsad.istc_energy, (queries, *dictionary, *settings, *known))
    opcheck(torch.ops.fsad.peak_atom, (queries.detach(), support.detach(), index, case.receptive_field))
    residual, history, energy = torch.ops.fsad.istc_energy(queries, *dictionary, *settings, None, None)
    gradient, grad_energy = (torch.randn_like(each).requires_grad_() for each in (residual, energy))
    energy_factors = torch.stack([grad_energy.detach(), energy.detach()]) if device == "cpu" else None
    for need_atoms in (True, False):
        saved = (gradient, history.detach(), queries, *dictionary, *settings, need_atoms)
        opcheck(torch.ops.fsad.istc_backward, saved)
        opcheck(torch.ops.fsad.istc_energy_backward, (grad_energy, residual.detach(), *saved[1:]))
        cotangents = [torch.randn_like(queries), torch.randn_like(tensors["scale"]), None]
        if need_atoms:
            cotangents[2] = torch.randn_like(support)
        for factors in (None, energy_factors):
            arguments = (*cotangents, factors, *saved)
            detached = [v.detach() if isinstance(v, Tensor) else v for v in arguments]
            opcheck(torch.ops.fsad.istc_double_backward, tuple(detached))


def check_no_queries(device: str = "cpu") -> None:
    """Maps of no image have no residual, and no gradient of the dictionary."""
    case = Case((1, 0, 4, 3, 3), (1, 1, 4, 3, 3), receptive_field=3)
    for backend in ("native", "reference"):
        results = derivatives(case, backend, torch.float64, device)
        assert results["residual"].shape == (1, 0, 36, 3, 3)
        assert results["energy"].shape == (1, 0, 3, 3)
        assert results["residual d support"].count_nonzero() == 0


def check_layouts(case: Case, device: str = "cpu") -> None:
    """The caller's memory layout does not matter."""
    tensors = {key: tensor.detach() for key, tensor in case.tensors(device=device).items()}
    expected = case.code(**tensors, backend="native")
    strided = {key: tensor.repeat_interleave(2, -1)[..., ::2] for key, tensor in tensors.items()}
    strided["queries"] = tensors["queries"].movedim(2, -1).contiguous().movedim(-1, 2)
    assert torch.equal(case.code(**strided, backend="native"), expected)


def check_relative_energy(case: Case) -> None:
    """One pass that finds the scale and begins the iteration is a search, and the iteration at its scale."""
    tensors = case.tensors()
    queries, support = tensors["queries"], tensors["support"]
    with torch.no_grad():
        queries[0, 0, :, 0, 0] = 0
    width = queries.shape[2] * case.receptive_field**2
    generator = torch.Generator().manual_seed(2)
    # Thresholds that follow the queries do not end an iteration that diverges.
    rows = functional.dictionary_rows(support.detach(), case.index(), case.receptive_field)
    step = 1 / torch.linalg.matrix_norm(rows, 2).square()
    tangents = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (queries, support)]

    def results(backend: str, parts: bool) -> list[Tensor]:
        where = {"receptive_field": case.receptive_field, "atom_index": case.index()}
        rule = {"step": step, "shrinkage": case.shrinkage, "backend": backend}
        rule["tau"] = 10.0 if case.shrinkage == "sigshrink" else None
        if parts:
            peak = step[:, None] * functional.peak_correlation(queries, support, **where, backend=backend)
            peak = torch.where(peak > 0, peak, torch.ones_like(peak))
            options = {**where, **rule, "scale": 1 / peak}
            residual, energy = functional.sparse_energy(queries, support, LAMBDAS, **options)
            residual = residual * peak.view(*residual.shape[:2], 1, *residual.shape[3:])
        else:
            residual, energy, peak = functional.relative_energy(queries, support, LAMBDAS, **where, **rule)
        total = energy.sum() + residual.pow(3).sum() / width + peak.square().sum()
        first = torch.autograd.grad(total, (queries, support), create_graph=True)
        along = sum((one * other).sum() for one, other in zip(first, tangents, strict=True))
        second = torch.autograd.grad(along, (queries, support))
        return [each.detach() for each in (residual, energy, peak, *first, *second)]

    expected = results("reference", parts=True)
    for backend, parts in (("native", True), ("native", False), ("reference", False)):
        for mine, theirs in zip(results(backend, parts), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)


def check_peak_correlation(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> None:
    """peak_correlation and its derivatives are those of the largest of all inner products.

    In 16 bits the values alone: several atoms round to the same peak, and torch sums derivatives in 16 bits.
    """
    tensors = case.tensors(dtype, device=device)
    arguments = (tensors["queries"], tensors["support"])
    field, index = case.receptive_field, case.index(device)
    rows = functional.dictionary_rows(arguments[1].double(), index, field)
    every = functional.reference.im2col(arguments[0].double(), field) @ rows.mT
    truth = every.abs().amax(-1)
    gradients = torch.autograd.grad(truth.sum(), arguments)
    for backend in ("native", "reference"):
        peak = functional.peak_correlation(
            *arguments, receptive_field=field, atom_index=index, backend=backend
        )
        assert peak.dtype == dtype
        torch.testing.assert_close(peak, truth.to(dtype))
        if dtype.itemsize == 2:
            continue
        for mine, theirs in zip(torch.autograd.grad(peak.sum(), arguments), gradients, strict=True):
            torch.testing.assert_close(mine, theirs)
