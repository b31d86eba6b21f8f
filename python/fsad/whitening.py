"""Centring and whitening of feature channels: what makes a few iterations with step 1 enough.

A dictionary of thousands of patches of one product is highly correlated; with step 1 the iteration would
explode, with the Lipschitz step it would hardly move. Whitening the channels by the support's own second
moment flattens the spectrum. It is a 1×1 convolution, so patches stay gathers from a map.
"""

import torch
from torch import Tensor


def unit_length(features: Tensor, dim: int) -> Tensor:
    """Scale feature vectors along ``dim`` to length one; smooth at zero, where both derivatives exist."""
    return features * (features.square().sum(dim, keepdim=True) + 1e-12).rsqrt()


def less_mean(maps: Tensor, mean: Tensor) -> Tensor:
    """A support's maps less its mean vector: (T, K, c, h, w), (T, c) -> (T, K, c, h, w).

    Of equal vectors this leaves zeros, not their rounding, which whitening would blow up.
    """
    less = maps - mean[:, None, :, None, None]
    rounding = 8 * torch.finfo(maps.dtype).eps * mean.detach().abs().amax(1)
    varied = less.detach().abs().amax((1, 2, 3, 4)) > rounding
    return less * varied[:, None, None, None, None]


def drift(maps: Tensor, bound: Tensor, mask: Tensor | None = None) -> Tensor:
    """What differs from the support in a picture as a whole, as light, exposure and finish do: a vector each.

    Its mean m is taken for that where it is small, and for a defect where it is large: m·b²/(b² + ‖m‖²).

    Args:
        maps: centred, (T, B, c, h, w).
        bound: b², (T,).
        mask: bool (T, B, h, w), the positions that count; None for all. Without any there is no drift.

    Returns (T, B, c).
    """
    mean = maps.mean((3, 4))
    if mask is not None:
        counts = mask[:, :, None].to(maps)
        mean = (maps * counts).sum((3, 4)) / counts.sum((3, 4)).clamp_min(1)
    squares, bound = mean.square().sum(2, keepdim=True), bound[:, None, None]
    return mean * bound / (bound + squares).clamp_min(torch.finfo(maps.dtype).tiny)


def second_moment(support: Tensor) -> Tensor:
    """Mean outer product of the feature vectors: (T, K, c, h, w) -> (T, c, c)."""
    columns = support.transpose(1, 2).flatten(2)
    return columns @ columns.mT / columns.shape[-1]


def whitening_matrix(moment: Tensor, ridge: float) -> Tensor:
    """L⁻¹ of the Cholesky factorisation C + ridge·tr(C)/c·I = LLᵀ: (T, c, c) -> (T, c, c).

    The Cholesky root gives the same Gram matrix as the symmetric one and is safe to differentiate where
    eigenvalues meet.
    """
    channels = moment.shape[-1]
    identity = torch.eye(channels, dtype=moment.dtype, device=moment.device)
    trace = moment.diagonal(dim1=-2, dim2=-1).sum(-1)
    # A support of zeros has no scale of its own: any positive one gives the same (zero) features.
    scale = torch.where(trace > 0, trace / channels, torch.ones_like(trace))
    factor = torch.linalg.cholesky(moment + ridge * scale[:, None, None] * identity)
    return torch.linalg.solve_triangular(factor, identity.expand_as(moment), upper=False)


def apply(matrix: Tensor, maps: Tensor) -> Tensor:
    """Multiply the channels by a matrix a task: (T, c, c), (T, B, c, h, w) -> (T, B, c, h, w).

    The result lies channels-last in memory, as the kernels read it.
    """
    rows = maps.flatten(3).mT @ matrix[:, None].mT  # of either layout the product takes a view
    return rows.unflatten(2, maps.shape[3:]).movedim(-1, 2)
