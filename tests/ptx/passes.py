"""The passes of ``csrc/cuda`` on the interpreter, and the same in plain PyTorch."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
    *("atom_images", "atom_height", "atom_width", "atoms", "iterations", "shrinkage", "allow_tf32"),
    "limit_divisor",
]
_POINTERS = [
    *("queries", "atom_map", "atom_index", "scale", "step", "residual", "history"),
    *("grad_residual", "grad_queries", "grad_scale", "grad_atoms"),
    *("tangent_queries", "tangent_scale", "tangent_atoms", "grad_grad", "peak"),
]
_ALLOCATE = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)


class _Case(ctypes.Structure):
    """``Case`` of kernels_host.cpp."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in _SIZES]
        + [(name, ctypes.c_double * _MAX_ITERATIONS) for name in ("lambda_", "tau")]
        + [(name, ctypes.c_void_p) for name in _POINTERS]
        + [("allocate", _ALLOCATE)]
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _case(problem: Problem) -> _Case:
    """What the library is told of a problem, but for its memory."""
    case = _Case()
    sizes = [problem.tasks, *problem.query_shape, problem.channels, problem.receptive_field]
    sizes += [*problem.atom_shape, problem.kept_atoms, problem.iterations]
    sizes += [SHRINKAGES.index(problem.shrinkage), problem.allow_tf32, problem.limit_divisor]
    for name, size in zip(_SIZES, sizes, strict=True):
        setattr(case, name, size)
    case.lambda_[: problem.iterations] = problem.lambdas
    case.tau[: problem.iterations] = problem.taus
    return case


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
    allow_tf32: bool = False
    limit_divisor: int = 1  # the bounds of workspaces are divided by it
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(7)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        positions, k = int(np.prod(self.atom_shape)), self.kept_atoms
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
        # Sharper than the fourth, SigShrink's second derivative would leave the range of float16.
        self.lambdas = [0.4 * 0.6 ** min(m, 3) for m in range(self.iterations)]
        if self.shrinkage == "soft":
            self._put_thresholds_in_gaps()
        self.taus = [10 / lam for lam in self.lambdas]

    def _put_thresholds_in_gaps(self) -> None:
        """Soft shrinkage's derivative jumps at λ: let no rounding decide on which side of it a code lies."""
        t = self.tensors
        z = patches(t["queries"], self.receptive_field) * t["scale"][..., None]
        atoms = dictionary(self, t)
        code = torch.zeros(())
        for m in range(self.iterations):
            residual = z if m == 0 else z - code @ atoms
            u = code + t["step"][:, None, None] * (residual @ atoms.mT)
            size = u.abs().flatten().sort().values
            middle = size[len(size) // 3 : max(len(size) // 3 + 2, 2 * len(size) // 3)]
            if len(middle) > 1:
                widest = int(middle.diff().argmax())
                self.lambdas[m] = float(middle[widest : widest + 2].mean())
            code = reference.soft_shrink(u, self.lambdas[m])

    @property
    def kept_atoms(self) -> int:
        return int(np.prod(self.atom_shape)) if self.atoms is None else self.atoms

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


def dictionary(problem: Problem, t: dict[str, Tensor]) -> Tensor:
    """The atoms (T, k, d)."""
    atoms = patches(t["atom_map"], problem.receptive_field)
    if "atom_index" in t:
        atoms = atoms.gather(1, t["atom_index"][..., None].expand(-1, -1, atoms.shape[-1]))
    return atoms


def torch_forward(problem: Problem, t: dict[str, Tensor]) -> Tensor:
    """r_N (T, n, d) by plain PyTorch in the dtype of ``t``."""
    queries = patches(t["queries"], problem.receptive_field) * t["scale"][..., None]
    atoms = dictionary(problem, t)
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


def _array(tensor: Tensor) -> NDArray[Any]:
    """The tensor's memory as numpy sees it; bfloat16, which it does not know, as 16-bit integers."""
    tensor = tensor.detach().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


class Kernels:
    """The compiled passes on one interpreted device.

    Of the last pass: ``library.launches`` and ``workspace_bytes``.
    """

    def __init__(
        self, arch: str = "sm_80", *, shared_kib: int = 164, seed: int = 0, csrc: Path = CSRC
    ) -> None:
        self.gpu = Gpu()
        sources = sorted((csrc / "cuda").glob("*.cu"))
        self.library = HostLibrary(
            self.gpu, sources, [HARNESS], arch=arch, include=[csrc], seed=seed, shared_kib=shared_kib
        )
        self.workspace_bytes = 0

    def _run(
        self,
        function: str,
        problem: Problem,
        t: dict[str, Tensor],
        results: dict[str, tuple[int, ...]],
        kind: torch.dtype | None = None,
    ) -> list[Tensor]:
        """Call one pass, whose results have these shapes and the dtype of the queries, or ``kind``."""
        dtype = t["queries"].dtype
        numpy_dtype = _array(torch.empty(0, dtype=kind or dtype)).dtype
        buffers = {name: self.gpu.array(_array(v), name) for name, v in t.items()}
        out = {name: self.gpu.empty(tuple(shape), numpy_dtype, name) for name, shape in results.items()}
        workspaces: list[Buffer] = []

        def allocate(size: int) -> int:
            workspaces.append(self.gpu.empty(size, np.uint8, f"workspace {len(workspaces)}"))
            return workspaces[-1].ptr

        case = _case(problem)
        case.allocate = _ALLOCATE(allocate)
        for name, buffer in (buffers | out).items():
            setattr(case, name, buffer.ptr)
        self.library.launches.clear()  # counters are large: those of one pass at a time
        try:
            self.library.call(f"{function}_{_name(dtype)}", ctypes.byref(case))
            return [torch.from_numpy(buffer.numpy()).view(kind or dtype) for buffer in out.values()]
        finally:
            self.workspace_bytes = sum(buffer.nbytes for buffer in workspaces)
            for buffer in (*buffers.values(), *out.values(), *workspaces):
                buffer.free()

    def forward(self, problem: Problem, t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """r_N (T, n, d) and the history r_1 … r_{N−1}."""
        rows = problem.rows
        shapes = {"residual": rows, "history": (problem.iterations - 1, *rows)}
        residual, history = self._run("forward", problem, t, shapes)
        return residual, history

    def backward(self, problem: Problem, t: dict[str, Tensor]) -> list[Tensor]:
        """What ``torch_backward`` gives; ``t`` needs the history too."""
        return self._run("backward", problem, t, self._gradients(t))

    def double_backward(self, problem: Problem, t: dict[str, Tensor]) -> list[Tensor]:
        """What ``torch_double_backward`` gives; ``t`` needs the history too."""
        return self._run("double_backward", problem, t, {"grad_grad": problem.rows} | self._gradients(t))

    def _gradients(self, t: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
        names = {"grad_queries": "queries", "grad_scale": "scale", "grad_atoms": "atom_map"}
        return {name: tuple(t[of].shape) for name, of in names.items()}

    def peak_atom(self, problem: Problem, t: dict[str, Tensor]) -> Tensor:
        """Position of the most correlated atom of every query (T, n)."""
        return self._run("peak_atom", problem, t, {"peak": problem.rows[:2]}, torch.int64)[0]

    def path(self, of: str, problem: Problem, dtype: torch.dtype) -> str:
        """How the library says that it computes the "forward", "backward" or "peak"."""
        return self.library.ask(f"{of}_path_{_name(dtype)}", ctypes.byref(_case(problem)))
