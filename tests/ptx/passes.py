"""The passes of ``csrc/cuda`` on the interpreter, and the same in plain PyTorch."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fsad import reference

from .gpu import Buffer, Gpu
from .host import HostLibrary

CSRC = Path(__file__).parents[2] / "csrc"
HARNESS = Path(__file__).parent / "kernels_host.cpp"
SHRINKAGES = ("none", "soft", "sigshrink")
_MAX_ITERATIONS = 32

_SIZES = [
    *("tasks", "images", "height", "width", "channels", "receptive_field"),
    *("atom_images", "atom_height", "atom_width", "atoms", "iterations", "shrinkage"),
]
_POINTERS = [
    *("queries", "atom_map", "atom_index", "scale", "step", "residual", "history"),
    *("grad_residual", "grad_queries", "grad_scale", "grad_atoms"),
    *("tangent_queries", "tangent_scale", "tangent_atoms", "grad_grad", "peak"),
    *("rows", "adjoints", "atom_rows", "row_of_position", "tangents", "seconds"),
]


class _Case(ctypes.Structure):
    """``Case`` of kernels_host.cpp."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in _SIZES]
        + [(name, ctypes.c_double * _MAX_ITERATIONS) for name in ("lambda_", "tau")]
        + [(name, ctypes.c_void_p) for name in _POINTERS]
    )


@dataclass
class Problem:
    """One problem in float64: maps (T, images, h, w, c), everything random but repeatable."""

    tasks: int = 1
    query_shape: tuple[int, int, int] = (1, 3, 5)  # images, height, width
    atom_shape: tuple[int, int, int] = (2, 2, 3)
    channels: int = 7
    receptive_field: int = 1
    iterations: int = 3
    shrinkage: str = "sigshrink"
    atoms: int | None = None  # thinned to that many; None: all positions, no index
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(7)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        positions = int(np.prod(self.atom_shape))
        k = positions if self.atoms is None else self.atoms
        queries = int(np.prod(self.query_shape))
        d = self.channels * self.receptive_field**2
        t = self.tensors
        t["queries"] = normal(self.tasks, *self.query_shape, self.channels)
        t["atom_map"] = normal(self.tasks, *self.atom_shape, self.channels) / (d * k) ** 0.5
        t["scale"] = 1 + 0.2 * normal(self.tasks, queries)
        t["step"] = 1 + 0.1 * torch.rand(self.tasks, generator=draw, dtype=torch.float64)
        t["grad_residual"] = normal(self.tasks, queries, d)
        t["tangent_queries"] = normal(*t["queries"].shape)
        t["tangent_scale"] = normal(*t["scale"].shape)
        t["tangent_atoms"] = normal(*t["atom_map"].shape)
        if self.atoms is not None:
            picks = [torch.randperm(positions, generator=draw)[:k] for _ in range(self.tasks)]
            t["atom_index"] = torch.stack(picks)
        self.lambdas = [0.4 * 0.6**m for m in range(self.iterations)]
        self.taus = [10 / lam for lam in self.lambdas]

    @property
    def rows(self) -> tuple[int, int, int]:
        """Shape of the query patches: (T, n, d)."""
        return self.tensors["grad_residual"].shape

    def rounded(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors in ``dtype``; their values in float64 are then the true problem."""
        return {k: v if v.dtype == torch.int64 else v.to(dtype) for k, v in self.tensors.items()}


def patches(maps: Tensor, receptive_field: int) -> Tensor:
    """(T, images, h, w, c) -> (T, positions, l²·c), the kernels' order within a patch."""
    rows = reference.im2col(maps.movedim(-1, 2), receptive_field)
    return rows.unflatten(-1, (maps.shape[-1], -1)).transpose(-1, -2).flatten(-2)


def torch_forward(problem: Problem, t: dict[str, Tensor]) -> Tensor:
    """r_N (T, n, d) by plain PyTorch in the dtype of ``t``."""
    queries = patches(t["queries"], problem.receptive_field) * t["scale"][..., None]
    atoms = patches(t["atom_map"], problem.receptive_field)
    if "atom_index" in t:
        atoms = atoms.gather(1, t["atom_index"][..., None].expand(-1, -1, atoms.shape[-1]))
    return reference.istc(queries, atoms, t["step"], problem.lambdas, problem.taus, problem.shrinkage)


def torch_backward(problem: Problem, t: dict[str, Tensor], graph: bool = False) -> list[Tensor]:
    """Gradients of ⟨G, r_N⟩ by queries, scale and atom map."""
    t = {**t, **{k: t[k].requires_grad_() for k in ("queries", "scale", "atom_map")}}
    total = (torch_forward(problem, t) * t["grad_residual"]).sum()
    inputs = [t["queries"], t["scale"], t["atom_map"]]
    return list(torch.autograd.grad(total, inputs, create_graph=graph))


def torch_double_backward(problem: Problem, t: dict[str, Tensor]) -> list[Tensor]:
    """Gradients of ⟨tangents, backward⟩ by grad_residual, queries, scale and atom map."""
    t["grad_residual"].requires_grad_()
    results = torch_backward(problem, t, graph=True)
    tangents = [t["tangent_queries"], t["tangent_scale"], t["tangent_atoms"]]
    total = sum((a * b).sum() for a, b in zip(results, tangents, strict=True))
    inputs = [t["grad_residual"], t["queries"], t["scale"], t["atom_map"]]
    return list(torch.autograd.grad(total, inputs))


class Kernels:
    """The compiled passes on one interpreted device."""

    def __init__(
        self, arch: str = "sm_80", seed: int = 0, max_blocks: int | None = None, csrc: Path = CSRC
    ) -> None:
        self.gpu = Gpu()
        sources = sorted((csrc / "cuda").glob("*.cu"))
        self.library = HostLibrary(
            self.gpu, sources, [HARNESS], arch=arch, include=[csrc], seed=seed, max_blocks=max_blocks
        )

    def _run(self, function: str, problem: Problem, t: dict[str, Tensor], out: dict[str, Buffer]) -> None:
        """Call one pass. ``out`` holds result buffers; inputs and workspaces are made here."""
        dtype = t["queries"].numpy(force=True).dtype
        tasks, n, d = problem.rows
        positions = int(np.prod(problem.atom_shape))
        k = problem.atoms or positions
        steps = problem.iterations
        buffers = {name: self.gpu.array(v.numpy(force=True), name) for name, v in t.items()}
        for name, shape in {
            "rows": (tasks, n, d),
            "adjoints": (steps, tasks, n, d),
            "atom_rows": (tasks, k, d),
            "tangents": (steps, tasks, n, d),
            "seconds": (steps, tasks, n, d),
        }.items():
            buffers[name] = self.gpu.empty(shape, dtype, name)
        if "atom_index" in t:
            buffers["row_of_position"] = self.gpu.empty((tasks, positions), np.int64, "row_of_position")
        buffers |= out
        case = _Case()
        sizes = [tasks, *problem.query_shape, problem.channels, problem.receptive_field]
        sizes += [*problem.atom_shape, k, steps, SHRINKAGES.index(problem.shrinkage)]
        for name, size in zip(_SIZES, sizes, strict=True):
            setattr(case, name, size)
        case.lambda_[:steps] = problem.lambdas
        case.tau[:steps] = problem.taus
        for name, buffer in buffers.items():
            setattr(case, name, buffer.ptr)
        try:
            suffix = "float" if dtype == np.float32 else "double"
            self.library.call(f"{function}_{suffix}", ctypes.byref(case))
        finally:
            for name, buffer in buffers.items():
                if name not in out:
                    buffer.free()

    def _collect(self, out: dict[str, Buffer], *names: str) -> list[Tensor]:
        results = [torch.from_numpy(out[name].numpy()) for name in names]
        for buffer in out.values():
            buffer.free()
        return results

    def _new(self, shape: tuple[int, ...], like: Tensor, name: str) -> Buffer:
        return self.gpu.empty(tuple(shape), like.numpy(force=True).dtype, name)

    def forward(self, problem: Problem, t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """r_N (T, n, d) and the history r_1 … r_{N−1}."""
        out = {
            "residual": self._new(problem.rows, t["queries"], "residual"),
            "history": self._new((problem.iterations - 1, *problem.rows), t["queries"], "history"),
        }
        self._run("forward", problem, t, out)
        residual, history = self._collect(out, "residual", "history")
        return residual, history

    def backward(self, problem: Problem, t: dict[str, Tensor]) -> list[Tensor]:
        """What ``torch_backward`` gives; ``t`` needs the history too."""
        out = self._gradients(t)
        self._run("backward", problem, t, out)
        return self._collect(out, "grad_queries", "grad_scale", "grad_atoms")

    def double_backward(self, problem: Problem, t: dict[str, Tensor]) -> list[Tensor]:
        """What ``torch_double_backward`` gives; ``t`` needs the history too."""
        out = self._gradients(t)
        out["grad_grad"] = self._new(problem.rows, t["queries"], "grad_grad")
        self._run("double_backward", problem, t, out)
        return self._collect(out, "grad_grad", "grad_queries", "grad_scale", "grad_atoms")

    def _gradients(self, t: dict[str, Tensor]) -> dict[str, Buffer]:
        names = {"grad_queries": "queries", "grad_scale": "scale", "grad_atoms": "atom_map"}
        return {name: self._new(t[of].shape, t["queries"], name) for name, of in names.items()}

    def peak_atom(self, problem: Problem, t: dict[str, Tensor]) -> Tensor:
        """Position of the most correlated atom of every query (T, n)."""
        out = {"peak": self.gpu.empty(tuple(problem.rows[:2]), np.int64, "peak")}
        self._run("peak_atom", problem, t, out)
        return self._collect(out, "peak")[0]
