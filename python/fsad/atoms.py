"""From the feature maps of normal images to a dictionary that three iterations can code over.

Atoms are the l×l patches of maps, named by their flat position in K·h·w; nothing here forms them, except
for the few that a thinned dictionary keeps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fsad import coreset, patches, whitening
from fsad.errors import DivergedError, InputError


class Dictionary(NamedTuple):
    """A dictionary ready for coding, of T independent tasks."""

    atoms: Tensor  # maps whose patches are the atoms, (T, K, c, h, w)
    kept: Tensor | None  # the patches that are atoms, int64 (T, k); None for all
    step: Tensor  # η, (T,)
    whitener: Tensor | None  # L⁻¹, (T, c, c); None if not whitened


def prepare(
    maps: Tensor,
    index: Tensor | None,
    moment: Tensor,
    step: str | float,
    ridge: float,
    receptive_field: int,
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
        norm = _norm(maps, index, receptive_field)
        maps = maps / norm[:, None, None, None, None]
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


def thin(maps: Tensor, candidates: Tensor | None, max_atoms: int, receptive_field: int) -> Tensor:
    """At most ``max_atoms`` of the candidate patches of maps (K, c, h, w), by greedy coreset: (k,)."""
    points = coreset.project(maps, receptive_field, padding=receptive_field // 2)
    if candidates is None:
        return coreset.farthest_points(points, max_atoms)
    return candidates[coreset.farthest_points(points[candidates], max_atoms)]


def cut_patches(maps: Tensor, index: Tensor, receptive_field: int) -> Tensor:
    """The patches of maps (K, c, h, w) at ``index`` (k,), each as a map of its own: (k, c, l, l)."""
    rows = patches.patch_rows(maps.movedim(1, -1)[None], index[None], receptive_field)
    stacked = torch.stack([row[0] for row in rows], dim=-1)
    return stacked.unflatten(-1, (receptive_field, receptive_field)).contiguous()


def centers(count: int, receptive_field: int, device: torch.device) -> Tensor:
    """Flat positions of the centres of ``count`` maps that are one patch each."""
    area = receptive_field**2
    return torch.arange(count, device=device) * area + area // 2


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
