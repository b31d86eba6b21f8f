"""Patches of feature maps without Im2Col.

A patch with receptive field l around a position is l² feature vectors, one per offset. Every function here
walks over the offsets, so that memory stays that of the map. Maps are channels-last with a leading task
dimension, (T, K, h, w, c), zero-padded at the borders; atoms are named by their flat position in K·h·w.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

POWER_ITERATIONS = 40


def patch_rows(maps: Tensor, index: Tensor, receptive_field: int) -> Iterator[Tensor]:
    """The l² feature vectors of the patches at ``index`` (T, n): (T, n, c), offset by offset."""
    tasks, _, height, width, channels = maps.shape
    margin = receptive_field // 2
    padded = F.pad(maps, (0, 0, margin, margin, margin, margin))
    padded_width = width + 2 * margin
    rows = padded.reshape(tasks, -1, channels)
    image, position = index // (height * width), index % (height * width)
    corner = (image * (height + 2 * margin) + position // width) * padded_width + position % width
    for dy in range(receptive_field):
        for dx in range(receptive_field):
            place = (corner + dy * padded_width + dx)[..., None]
            yield rows.gather(1, place.expand(-1, -1, channels))


def inner_products(queries: Tensor, atoms: Tensor, atom_of_query: Tensor, receptive_field: int) -> Tensor:
    """⟨query patch i, atom patch j(i)⟩ for every query position: (T, n), dtype of the maps.

    16-bit maps are multiplied and summed in float32.
    """
    tasks, n = atom_of_query.shape
    everywhere = torch.arange(n, device=queries.device).expand(tasks, n)
    query_rows = patch_rows(queries, everywhere, receptive_field)
    atom_rows = patch_rows(atoms, atom_of_query, receptive_field)
    wide = torch.promote_types(queries.dtype, torch.float32)
    total = queries.new_zeros(tasks, n, dtype=wide)
    for query, atom in zip(query_rows, atom_rows, strict=True):
        total = total + (query.to(wide) * atom.to(wide)).sum(-1)
    return total.to(queries.dtype)


def spectral_norm(maps: Tensor, atom_index: Tensor | None, receptive_field: int) -> Tensor:
    """Largest singular value ‖D‖₂ of the dictionary of patches, (T,), a constant in derivatives.

    Power iteration on DDᵀ that never forms a patch: Dᵀv is the map times the l² columns of v, summed
    along shifts; for l = 1 DDᵀ is small and formed once. The estimate approaches from below, so 1 % is added.
    """
    maps = maps.detach()
    tasks, images, height, width, channels = maps.shape
    rows = maps.reshape(tasks, -1, channels)
    keep = maps.new_ones(tasks, rows.shape[1])
    if atom_index is not None:
        keep = torch.zeros_like(keep).scatter_(1, atom_index, 1.0)
    margin = receptive_field // 2
    gram = rows.mT @ (keep[..., None] * rows) if receptive_field == 1 else None

    def dictionary_twice(v: Tensor) -> Tensor:
        """DDᵀv, (T, c, l²)."""
        if gram is not None:
            return gram @ v
        # Fold and unfold count offsets from the other side than patches do.
        shares = (rows @ v).view(tasks * images, height * width, -1).flip(-1).mT
        response = F.fold(shares, (height, width), receptive_field, padding=margin)
        response = response * keep.view(tasks * images, 1, height, width)
        spread = F.unfold(response, receptive_field, padding=margin).mT.flip(-1)
        return rows.mT @ spread.reshape(tasks, -1, receptive_field**2)

    # Any start that no singular vector is orthogonal to; fixed, so that results repeat.
    start = torch.arange(1, channels * receptive_field**2 + 1, device=maps.device, dtype=maps.dtype)
    v = (start * 12.9898).sin().view(1, channels, -1).repeat(tasks, 1, 1)
    norm = v.flatten(1).norm(dim=1)
    for _ in range(POWER_ITERATIONS):
        v = dictionary_twice(v / norm.clamp_min(torch.finfo(v.dtype).tiny)[:, None, None])
        norm = v.flatten(1).norm(dim=1)
    return 1.01 * norm.sqrt()
