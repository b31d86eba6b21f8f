"""The iteration and its derivatives in 80-bit floats of numpy: the reference for what computes in float64.

Independent of PyTorch and of autograd: forward and tangent recursion as written, and their reverse passes by
the chain rule, with 64 bits of mantissa against float64's 53. Products of rows are numpy's ``@``, one task
after another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .passes import Problem, patches

Array = NDArray[np.longdouble]
assert np.finfo(np.longdouble).eps < 2e-19, "numpy's longdouble is no longer than float64 here"


def wide(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy().astype(np.longdouble)


def norm(array: Array) -> float:
    return float(np.sqrt((array * array).sum()))


def shrink(problem: Problem, m: int, u: Array) -> tuple[Array, Array, Array]:
    """σ(u) of step m and its first two derivatives."""
    lam, tau = np.longdouble(problem.lambdas[m]), np.longdouble(problem.taus[m])
    if problem.shrinkage == "none":
        return u, np.ones_like(u), np.zeros_like(u)
    if problem.shrinkage == "soft":
        kept = abs(u) > lam
        return np.where(kept, u - np.sign(u) * lam, 0), kept.astype(np.longdouble), np.zeros_like(u)
    g = 1 / (1 + np.exp(-tau * (abs(u) - lam)))
    steep = tau * g * (1 - g)
    return u * g, g + abs(u) * steep, np.sign(u) * steep * (2 + tau * abs(u) * (1 - 2 * g))


class Rows:
    """Im2Col of maps (T, images, h, w, c) as a gather, and its adjoint."""

    def __init__(self, maps: Tensor, receptive_field: int) -> None:
        self.shape = maps.shape
        numbers = torch.arange(1, maps[0].numel() + 1, dtype=torch.float64).view(1, *maps.shape[1:])
        # Of every entry of a patch its place in the map, counted from 1; 0 is padding.
        self.places = patches(numbers, receptive_field)[0].long().numpy()

    def gather(self, maps: Tensor) -> Array:
        flat = wide(maps).reshape(len(maps), -1)
        return np.pad(flat, ((0, 0), (1, 0)))[:, self.places]

    def scatter(self, rows: Array) -> Array:
        flat = np.zeros((len(rows), 1 + int(np.prod(self.shape[1:]))), np.longdouble)
        for task, values in zip(flat, rows, strict=True):
            np.add.at(task, self.places, values)
        return flat[:, 1:].reshape(self.shape)


@dataclass
class Inputs:
    """A problem's rows: queries x (T, n, d), their factors s, atoms (T, k, d); and the way back to maps."""

    x: Array
    s: Array
    atoms: Array
    step: Array
    from_rows: Callable[[Array], Array]
    from_atoms: Callable[[Array], Array]


def inputs(problem: Problem, t: dict[str, Tensor], prefix: str = "") -> Inputs:
    """Of the tensors, or with the prefix ``tangent_`` of their tangents."""
    names = ("queries", "scale", "tangent_atoms" if prefix else "atom_map")
    queries, scale, atom_map = (t[name if name.startswith(prefix) else prefix + name] for name in names)
    to_rows, to_atoms = (Rows(maps, problem.receptive_field) for maps in (queries, atom_map))
    every = to_atoms.gather(atom_map)
    index = t["atom_index"].numpy()[..., None] if "atom_index" in t else None

    def from_atoms(rows: Array) -> Array:
        if index is not None:
            kept, rows = rows, np.zeros_like(every)
            np.put_along_axis(rows, np.broadcast_to(index, kept.shape), kept, 1)
        return to_atoms.scatter(rows)

    return Inputs(
        to_rows.gather(queries),
        wide(scale)[..., None],
        every if index is None else np.take_along_axis(every, index, 1),
        wide(t["step"])[:, None, None],
        to_rows.scatter,
        from_atoms,
    )


def transposed(rows: Array) -> Array:
    return rows.swapaxes(-1, -2)


def codes(problem: Problem, z: Array, atoms: Array, step: Array) -> tuple[list[Array], ...]:
    """r_0 … r_N, α_0 … α_N, and σ'(u_m), σ''(u_m)."""
    residuals, alphas = [z], [np.zeros((*z.shape[:2], atoms.shape[1]), np.longdouble)]
    firsts, seconds = [], []
    for m in range(problem.iterations):
        u = alphas[-1] + step * (residuals[-1] @ transposed(atoms))
        alpha, first, second = shrink(problem, m, u)
        alphas.append(alpha)
        firsts.append(first)
        seconds.append(second)
        residuals.append(z - alpha @ atoms)
    return residuals, alphas, firsts, seconds


def forward(problem: Problem, t: dict[str, Tensor]) -> list[Array]:
    """What ``passes.torch_forward`` gives."""
    at = inputs(problem, t)
    return [codes(problem, at.s * at.x, at.atoms, at.step)[0][-1]]


def backward(problem: Problem, t: dict[str, Tensor]) -> list[Array]:
    """What ``passes.torch_backward`` gives."""
    at = inputs(problem, t)
    residuals, alphas, firsts, _ = codes(problem, at.s * at.x, at.atoms, at.step)
    h = wide(t["grad_residual"])
    z_bar, d_bar, alpha_bar = h, -transposed(alphas[-1]) @ h, -h @ transposed(at.atoms)
    for m in reversed(range(problem.iterations)):
        u_bar = firsts[m] * alpha_bar
        h = at.step * (u_bar @ at.atoms)
        z_bar = z_bar + h
        d_bar = d_bar + at.step * (transposed(u_bar) @ residuals[m]) - transposed(alphas[m]) @ h
        alpha_bar = u_bar - h @ transposed(at.atoms)
    return [at.from_rows(at.s * z_bar), (z_bar * at.x).sum(-1), at.from_atoms(d_bar)]


def double_backward(problem: Problem, t: dict[str, Tensor]) -> list[Array]:
    """What ``passes.torch_double_backward`` gives: the gradients of ⟨G, ṙ_N⟩."""
    at, tangents = inputs(problem, t), inputs(problem, t, "tangent_")
    atoms, step, d_dot = at.atoms, at.step, tangents.atoms
    residuals, alphas, firsts, seconds = codes(problem, at.s * at.x, atoms, step)
    z_dot = at.s * tangents.x + tangents.s * at.x
    r_dots, alpha_dots, u_dots = [z_dot], [np.zeros_like(alphas[0])], []
    for m in range(problem.iterations):
        u_dots.append(
            alpha_dots[m] + step * (residuals[m] @ transposed(d_dot) + r_dots[m] @ transposed(atoms))
        )
        alpha_dots.append(firsts[m] * u_dots[m])
        r_dots.append(z_dot - alphas[m + 1] @ d_dot - alpha_dots[m + 1] @ atoms)
    # Adjoints of ṙ_{m+1}, α̇_{m+1} and of r_{m+1}, α_{m+1}.
    h, second = wide(t["grad_residual"]), np.zeros_like(z_dot)
    z_bar, z_dot_bar, d_bar = second, h, np.zeros_like(atoms)
    alpha_bar, alpha_dot_bar = 0, 0
    for m in reversed(range(problem.iterations)):
        d_bar = d_bar - transposed(alphas[m + 1]) @ second - transposed(alpha_dots[m + 1]) @ h
        alpha_bar = alpha_bar - second @ transposed(atoms) - h @ transposed(d_dot)
        alpha_dot_bar = alpha_dot_bar - h @ transposed(atoms)
        u_bar = firsts[m] * alpha_bar + seconds[m] * u_dots[m] * alpha_dot_bar
        u_dot_bar = firsts[m] * alpha_dot_bar
        d_bar = d_bar + step * (transposed(u_bar) @ residuals[m] + transposed(u_dot_bar) @ r_dots[m])
        second, h = step * (u_bar @ atoms + u_dot_bar @ d_dot), step * (u_dot_bar @ atoms)
        z_bar, z_dot_bar = z_bar + second, z_dot_bar + h
        alpha_bar, alpha_dot_bar = u_bar, u_dot_bar
    return [
        r_dots[-1],
        at.from_rows(at.s * z_bar + tangents.s * z_dot_bar),
        (z_bar * at.x + z_dot_bar * tangents.x).sum(-1),
        at.from_atoms(d_bar),
    ]
