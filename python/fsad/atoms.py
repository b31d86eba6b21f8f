"""From the feature maps of normal images to a dictionary that three iterations can code over.

Atoms are the l×l patches of maps, named by their flat position in K·h·w; nothing here forms them, except
for the few that a thinned dictionary keeps: those of a greedy coreset (farthest-point selection).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fsad import patches, whitening
from fsad.errors import DivergedError, InputError

PROJECTED_WIDTH = 32


class Dictionary(NamedTuple):
    """A dictionary ready for coding, of T independent tasks."""

    atoms: Tensor  # maps whose patches are the atoms, (T, K, c, h, w)
    kept: Tensor | None  # the patches that are atoms, int64 (T, k); None for all
    step: Tensor  # η, (T,)
    whitener: Tensor | None  # L⁻¹, (T, c, c); None if not whitened


def prepare(
    maps: Tensor, index: Tensor | None, moment: Tensor, step: str | float, ridge: float, receptive_field: int
) -> Dictionary:
    """Whiten, scale and choose η as ``step`` says (see ``SparseCodingLayer``).

    Args:
        maps: (T, K, c, h, w) in feature units.
        index: (T, k) or None for all patches.
        moment: (T, c, c), second moment of the support's vectors; read for ``step="whiten"`` only, as is
            ``ridge``.
    """
    tasks = maps.shape[0]
    if isinstance(step, float | int):
        return Dictionary(maps, index, maps.new_full((tasks,), step), None)
    if step == "whiten":
        whitener = whitening.whitening_matrix(moment, ridge)
        maps = whitening.apply(whitener, maps)
        maps = maps / _norm(maps, index, receptive_field)[:, None, None, None, None]
        return Dictionary(maps, index, maps.new_ones(tasks), whitener)
    eta = _norm(maps, index, receptive_field).square().reciprocal()
    return Dictionary(maps, index, eta, None)


def check_step(dictionary: Dictionary, receptive_field: int) -> None:
    """Refuse a fixed η that cannot converge over this dictionary: η‖D‖₂² < 2 is needed."""
    square = _norm(dictionary.atoms, dictionary.kept, receptive_field).square()
    growth = float((dictionary.step * square).max())
    if growth >= 2:
        raise DivergedError(
            f"step={float(dictionary.step[0]):g} diverges: step·‖D‖₂² = {growth:.4g} must be below 2 for "
            "this dictionary; use step='whiten' (default) or 'lipschitz'"
        )


def thin(
    maps: Tensor, candidates: Tensor | None, max_atoms: int, receptive_field: int, padding: int | None = None
) -> Tensor:
    """At most ``max_atoms`` of the candidate patches of maps (K, c, h, w), by greedy coreset: (k,).

    Their distances are those of a fixed random projection to 32 numbers. It is a convolution, so patches are
    never formed, and it depends on no random state. ``padding`` is receptive_field // 2 by default.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (PROJECTED_WIDTH, maps.shape[1], receptive_field, receptive_field)
    kernel = torch.randn(shape, generator=generator).to(maps)
    projected = F.conv2d(maps.detach(), kernel, padding=receptive_field // 2 if padding is None else padding)
    points = projected.permute(0, 2, 3, 1).reshape(-1, PROJECTED_WIDTH)
    if candidates is None:
        return _farthest_points(points, max_atoms)
    return candidates[_farthest_points(points[candidates], max_atoms)]


def _farthest_points(points: Tensor, count: int) -> Tensor:
    """Indices of ``count`` of the points (n, width), each farthest from those before, sorted: (count,).

    Starts with the point farthest from the mean. All points if there are no more than ``count``.
    """
    if len(points) <= count:
        return torch.arange(len(points), device=points.device)
    half_square = points.square().sum(1) / 2
    chosen = torch.empty(count, dtype=torch.int64, device=points.device)
    farthest = (points - points.mean(0)).square().sum(1).argmax()
    # Half squared distances, ‖x‖²/2 − ⟨x, y⟩ + ‖y‖²/2: one matrix-vector product an atom.
    distance = torch.full_like(half_square, torch.inf)
    for i in range(count):
        chosen[i] = farthest
        offset = half_square + half_square[farthest]
        torch.minimum(distance, torch.addmv(offset, points, points[farthest], alpha=-1), out=distance)
        distance[farthest] = -torch.inf  # never twice, also among duplicates
        farthest = distance.argmax()
    return chosen.sort().values


def cut_patches(maps: Tensor, index: Tensor, receptive_field: int) -> Tensor:
    """The patches of maps (K, c, h, w) at ``index`` (k,), each as a map of its own: (k, c, l, l)."""
    rows = patches.patch_rows(maps.movedim(1, -1)[None], index[None], receptive_field)
    stacked = torch.stack([row[0] for row in rows], dim=-1)
    return stacked.unflatten(-1, (receptive_field, receptive_field)).contiguous()


def positions(mask: Tensor | None, maps: Tensor) -> Tensor | None:
    """Flat positions where ``mask``, (h, w) or (K, h, w), is true; None without a mask."""
    if mask is None:
        return None
    count, _, height, width = maps.shape
    if mask.dtype != torch.bool or mask.shape not in ((height, width), (count, height, width)):
        raise InputError(
            f"mask must be bool {(height, width)} or {(count, height, width)}, "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    index = mask.to(maps.device).expand(count, height, width).flatten().nonzero()[:, 0]
    if len(index) == 0:
        raise InputError("the mask leaves no position for the dictionary; it must be true somewhere")
    return index


def _norm(maps: Tensor, index: Tensor | None, receptive_field: int) -> Tensor:
    norm = patches.spectral_norm(maps.movedim(2, -1), index, receptive_field)
    # A dictionary of zeros reconstructs nothing at any step.
    return torch.where(norm > 0, norm, torch.ones_like(norm))
