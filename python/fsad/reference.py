"""The method in plain PyTorch: the oracle that every native kernel is tested against.

Nothing here is fused or blocked: patches are built by Im2Col, the codes of all queries are stored, and
autograd supplies every derivative. Shapes follow ``fsad.functional``; the task dimension is always
present here. Equations are those of Wang et al., "Few-Shot Fast-Adaptive Anomaly Detection".
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Floats = Sequence[float]


def sigshrink(u: Tensor, lam: float, tau: float) -> Tensor:
    """SigShrink (eq. 9): u · sigmoid(τ(|u| − λ))."""
    return u * torch.sigmoid(tau * (u.abs() - lam))


def soft_shrink(u: Tensor, lam: float) -> Tensor:
    """Soft thresholding (eq. 7): sgn(u) · max(|u| − λ, 0)."""
    return u.sign() * (u.abs() - lam).clamp_min(0)


def shrink(u: Tensor, lam: float, tau: float, shrinkage: str) -> Tensor:
    """Apply the shrinkage named ``"sigshrink"``, ``"soft"`` or ``"none"``."""
    if shrinkage == "sigshrink":
        return sigshrink(u, lam, tau)
    return soft_shrink(u, lam) if shrinkage == "soft" else u


def im2col(maps: Tensor, receptive_field: int) -> Tensor:
    """All l×l patches of zero-padded maps, one row each.

    (T, B, c, h, w) -> (T, B·h·w, c·l²); entry (channel, row offset, column offset) of a patch stands at
    ``channel·l² + offset``.
    """
    columns = F.unfold(maps.flatten(0, 1), receptive_field, padding=receptive_field // 2)
    return columns.view(*maps.shape[:2], *columns.shape[1:]).mT.flatten(1, 2)


def istc_codes(
    queries: Tensor, atoms: Tensor, step: Tensor, lambdas: Floats, taus: Floats, shrinkage: str
) -> Tensor:
    """Codes α_N after N steps of eq. 6: (T, n, d), (T, k, d), step (T,) -> (T, n, k)."""
    gain = step[:, None, None]
    codes = shrink(gain * (queries @ atoms.mT), lambdas[0], taus[0], shrinkage)
    for lam, tau in zip(lambdas[1:], taus[1:], strict=True):
        residual = queries - codes @ atoms
        codes = shrink(codes + gain * (residual @ atoms.mT), lam, tau, shrinkage)
    return codes


def istc(
    queries: Tensor, atoms: Tensor, step: Tensor, lambdas: Floats, taus: Floats, shrinkage: str
) -> Tensor:
    """Residual r_N = z − Dα_N of eq. 6: (T, n, d), (T, k, d), step (T,) -> (T, n, d)."""
    return queries - istc_codes(queries, atoms, step, lambdas, taus, shrinkage) @ atoms
