"""Thinning of a dictionary by a greedy coreset (farthest-point selection)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PROJECTED_WIDTH = 32


def project(maps: Tensor, receptive_field: int, padding: int) -> Tensor:
    """A fixed random projection of every l×l patch of maps (K, c, h, w) to 32 numbers: (positions, 32).

    It is a convolution, so patches are never formed, and it depends on no random state.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (PROJECTED_WIDTH, maps.shape[1], receptive_field, receptive_field)
    kernel = torch.randn(shape, generator=generator).to(maps)
    projected = F.conv2d(maps.detach(), kernel, padding=padding)
    return projected.permute(0, 2, 3, 1).reshape(-1, PROJECTED_WIDTH)


def farthest_points(points: Tensor, count: int) -> Tensor:
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
