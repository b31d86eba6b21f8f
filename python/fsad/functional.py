"""Sparse coding as functions of tensors, differentiable twice.

``istc`` codes vectors over a dictionary of vectors; ``sparse_code`` does the same on feature maps, with
Im2Col inside. Both run on the native kernels of ``fsad_ext`` or, with ``backend="reference"``, on plain
PyTorch (``fsad.reference``). The codes are never stored by the native kernels; derivatives of first and
second order with respect to queries and dictionary are exact.

On a GPU, float32 products follow torch's own setting for matrix products
(``torch.backends.cuda.matmul.fp32_precision``, ``torch.set_float32_matmul_precision``): full precision
unless TF32 is allowed there.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fsad import patches, reference
from fsad.arguments import (
    SHRINKAGES,
    check_floating,
    check_maps,
    check_schedule,
    check_vectors,
    step_per_task,
    tf32_is_allowed,
    use_native,
)
from fsad.errors import InputError

WORTH_TURNING = 1 << 16  # numbers of a map, from which on a call for each map costs less than it saves


def sigshrink(u: Tensor, lam: float, tau: float) -> Tensor:
    """SigShrink (eq. 9), u · sigmoid(τ(|u| − λ)), elementwise and smooth.

    Args:
        u: any floating tensor.
        lam: threshold λ ≥ 0, in the units of ``u``.
        tau: sharpness τ > 0, per unit of ``u``; soft steps for small τ, a hard threshold as τ → ∞ (τλ up to
            1e12 is taken).
    """
    (lam,), (tau,) = check_schedule([lam], tau, "sigshrink")
    return reference.sigshrink(u, lam, tau)


def soft_shrink(u: Tensor, lam: float) -> Tensor:
    """Soft thresholding (eq. 7), sgn(u) · max(|u| − λ, 0), elementwise; arguments as in ``sigshrink``."""
    (lam,), _ = check_schedule([lam], None, "soft")
    return reference.soft_shrink(u, lam)


def istc(
    queries: Tensor,
    atoms: Tensor,
    lambdas: Sequence[float],
    *,
    step: float | Tensor,
    tau: float | Sequence[float] | None,
    shrinkage: str = "sigshrink",
    backend: str = "auto",
) -> Tensor:
    """Residual of iterative shrinkage with continuation (eq. 6), z − Dα_N.

    Starting from α = 0, N = len(lambdas) steps α ← σ(α + ηDᵀ(z − Dα), λ_m). Vectors are rows.

    Args:
        queries: z, shape ([T,] n, d), float32 or float64; on a GPU, or with ``backend="reference"``,
            bfloat16 or float16 too. T is an optional batch of independent tasks.
        atoms: D, shape ([T,] k, d), same dtype and device.
        lambdas: one threshold λ_m ≥ 0 a step, 1 to 32 of them; thresholds on u, not ℓ1 weights.
        step: η, one number or one a task, shape (T,); a constant in derivatives. Convergence needs
            η‖D‖₂² < 2.
        tau: sharpness of SigShrink, one for all steps or one a step; ``None`` with other shrinkages.
        shrinkage: ``"sigshrink"``, ``"soft"`` or ``"none"``.
        backend: ``"native"`` (hand-written kernels), ``"reference"`` (plain PyTorch), ``"auto"``.

    Returns the residual, shape ([T,] n, d), dtype of ``queries``.

    Raises InputError: for shapes, dtypes, devices or settings that do not fit.
    """
    check_floating("queries", queries, "atoms", atoms)
    check_vectors(queries, atoms)
    lambdas, taus = check_schedule(lambdas, tau, shrinkage)
    # A task has one map of 1×n positions.
    as_maps = (None, None, None) if queries.dim() == 2 else (slice(None), None, None)
    z, d = queries.contiguous()[as_maps], atoms.contiguous()[as_maps]
    step = step_per_task(step, z)
    if use_native(backend, atoms, None, queries, stacklevel=3):
        settings = lambdas, taus, SHRINKAGES.index(shrinkage), 1, _allow_tf32(z)
        scale = z.new_ones(len(z), z.shape[3])
        residual = _iterate(z, scale, d, None, step, *settings)
    else:
        residual = reference.istc(z[:, 0, 0], d[:, 0, 0], step, lambdas, taus, shrinkage)
    return residual[0] if queries.dim() == 2 else residual


def sparse_code(
    features: Tensor,
    support_features: Tensor,
    lambdas: Sequence[float],
    *,
    receptive_field: int = 1,
    atom_index: Tensor | None = None,
    scale: Tensor | None = None,
    step: float | Tensor,
    tau: float | Sequence[float] | None,
    shrinkage: str = "sigshrink",
    backend: str = "auto",
) -> Tensor:
    """``istc`` on maps: every l×l patch of ``features`` coded over the l×l patches of ``support_features``.

    Maps are zero-padded, so there is one patch a position (section 3.1.1 of the paper).

    Args:
        features: query maps, ([T,] B, c, h, w), dtypes as in ``istc``.
        support_features: ([T,] K, c, H, W); their K·H·W patches are the atoms. T on both or on neither.
        lambdas, step, tau, shrinkage, backend: as in ``istc``.
        receptive_field: l, odd; 1 codes single positions.
        atom_index: int64 ([T,] k), distinct flat positions in K·H·W, the patches that serve as
            atoms; all by default. A position out of range raises, on a GPU at the next synchronisation.
        scale: ([T,] B·h·w), a factor on every query patch, differentiable; 1 by default.

    Returns:
        The residual patches, ([T,] B, c·l², h, w); entry ``channel·l² + offset`` of a patch as in
        ``torch.nn.functional.unfold``.

    Raises InputError: for shapes, dtypes, devices or settings that do not fit.
    """
    settings = receptive_field, atom_index, scale, step, tau, shrinkage, backend
    return _sparse_code(features, support_features, lambdas, *settings, with_energy=False)[0]


def sparse_energy(
    features: Tensor,
    support_features: Tensor,
    lambdas: Sequence[float],
    *,
    receptive_field: int = 1,
    atom_index: Tensor | None = None,
    scale: Tensor | None = None,
    step: float | Tensor,
    tau: float | Sequence[float] | None,
    shrinkage: str = "sigshrink",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """``sparse_code`` with the energy of each patch, ([T,] B, h, w): the mean square of residual / scale,
    so no scale may be zero.

    On the CPU its second derivative takes one reverse pass, where that of a mean square of ``sparse_code``
    takes two. Arguments and errors as there.
    """
    settings = receptive_field, atom_index, scale, step, tau, shrinkage, backend
    return _sparse_code(features, support_features, lambdas, *settings, with_energy=True)


def relative_energy(
    features: Tensor,
    support_features: Tensor,
    lambdas: Sequence[float],
    *,
    receptive_field: int = 1,
    atom_index: Tensor | None = None,
    step: float | Tensor,
    tau: float | Sequence[float] | None,
    shrinkage: str = "sigshrink",
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """``sparse_energy`` with thresholds that are fractions of q = max|ηDᵀz|, patch by patch.

    That is the residual at the scale 1/q, times q, and the energy at that scale; and q, (T, B·h·w). Where a
    patch is zero, q is 1. On the CPU one pass over the atoms finds q and begins the iteration. Arguments and
    errors as there; maps have the task dimension.
    """
    check_floating("features", features, "support_features", support_features)
    check_maps(features, support_features, receptive_field, atom_index)
    step, known, value = step_per_task(step, features), None, None
    if features.device.type == "cpu" and use_native(backend, support_features, atom_index, features):
        queries, atoms = channels_last(features), channels_last(support_features)
        index = None if atom_index is None else atom_index.contiguous()
        schedule = *check_schedule(lambdas, tau, shrinkage), SHRINKAGES.index(shrinkage)
        with torch.no_grad():
            *known, atom, value = torch.ops.fsad.istc_relative(
                queries, atoms, index, step, *schedule, receptive_field
            )
        correlation = patches.inner_products(queries, atoms, atom, receptive_field).abs()
    else:
        where: dict[str, Any] = {"receptive_field": receptive_field, "atom_index": atom_index}
        correlation = peak_correlation(features, support_features, **where, backend=backend)
    peak = step[:, None] * correlation
    peak = torch.where(peak > 0, peak, torch.ones_like(peak))
    # To the last bit the q that the residual is known for: the iteration would amplify another rounding.
    found = peak if value is None else peak + (value - peak).detach()
    settings = receptive_field, atom_index, found.reciprocal(), step, tau, shrinkage, backend
    residual, energy = _sparse_code(features, support_features, lambdas, *settings, True, known)
    tasks, images, _, height, width = features.shape
    return residual * found.view(tasks, images, 1, height, width), energy, peak


def _sparse_code(
    features: Tensor,
    support_features: Tensor,
    lambdas: Sequence[float],
    receptive_field: int,
    atom_index: Tensor | None,
    scale: Tensor | None,
    step: float | Tensor,
    tau: float | Sequence[float] | None,
    shrinkage: str,
    backend: str,
    with_energy: bool,
    known: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Any]:
    """Residual, and energy or None: for an energy autograd keeps the residual, which is then not the caller's
    to change. What is known, by ``istc_relative``, is only differentiated."""
    check_floating("features", features, "support_features", support_features)
    is_single = features.dim() == 4 and support_features.dim() == 4
    if is_single:
        features, support_features = features[None], support_features[None]
        atom_index = None if atom_index is None else atom_index[None]
        scale = None if scale is None else scale[None]
    check_maps(features, support_features, receptive_field, atom_index)
    lambdas, taus = check_schedule(lambdas, tau, shrinkage)
    tasks, images, channels, height, width = features.shape
    if scale is None:
        scale = features.new_ones(tasks, images * height * width)
    elif scale.shape != (expected := (tasks, images * height * width)):
        raise InputError(f"scale must hold one factor a query patch, {expected}; got {tuple(scale.shape)}")
    step = step_per_task(step, features)
    if use_native(backend, support_features, atom_index, features, scale):
        queries, atoms = channels_last(features), channels_last(support_features)
        index = None if atom_index is None else atom_index.contiguous()
        settings = lambdas, taus, SHRINKAGES.index(shrinkage), receptive_field, _allow_tf32(features)
        inputs = queries, scale.contiguous(), atoms, index, step
        if with_energy:
            begun = known or (None, None)
            residual, _, *energies = torch.ops.fsad.istc_energy(*inputs, *settings, *begun)
        else:
            residual, energies = _iterate(*inputs, *settings), []
        # The kernels keep a patch as l² vectors of c channels; unfold's order is channel by channel.
        residual = residual.view(tasks, images, height, width, receptive_field**2, channels)
        residual = residual.permute(0, 1, 5, 4, 2, 3).flatten(2, 3)
    else:
        queries = reference.im2col(features, receptive_field) * scale[..., None]
        atoms = dictionary_rows(support_features, atom_index, receptive_field)
        residual = reference.istc(queries, atoms, step, lambdas, taus, shrinkage)
        energies = [residual.square().mean(-1) / scale.square()] if with_energy else []
        residual = residual.mT.reshape(tasks, queries.shape[-1], images, height, width).transpose(1, 2)
    energy = energies[0].view(tasks, images, height, width) if energies else None
    if is_single:
        return residual[0], None if energy is None else energy[0]
    return residual, energy


def peak_correlation(
    features: Tensor,
    support_features: Tensor,
    *,
    receptive_field: int = 1,
    atom_index: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """max over atoms of |⟨query patch, atom⟩|, the scale of the relative schedule: (T, B·h·w), same dtype.

    Arguments as in ``sparse_code``, with the task dimension. Only the arg-max atom enters the
    derivatives, which are exact wherever it is unique.
    """
    check_floating("features", features, "support_features", support_features)
    check_maps(features, support_features, receptive_field, atom_index)
    queries, atoms = channels_last(features), channels_last(support_features)
    if use_native(backend, support_features, atom_index, features):
        index = None if atom_index is None else atom_index.contiguous()
        peak = torch.ops.fsad.peak_atom(queries, atoms, index, receptive_field)
    else:
        with torch.no_grad():
            rows = dictionary_rows(support_features, atom_index, receptive_field)
            peak = (reference.im2col(features, receptive_field) @ rows.mT).abs().argmax(-1)
            if atom_index is not None:
                peak = atom_index.gather(1, peak)
    return patches.inner_products(queries, atoms, peak, receptive_field).abs()


def dictionary_rows(support_features: Tensor, atom_index: Tensor | None, receptive_field: int) -> Tensor:
    """The atoms as rows, (T, k, c·l²): Im2Col of (T, K, c, H, W), for the reference backend."""
    atoms = reference.im2col(support_features, receptive_field)
    if atom_index is None:
        return atoms
    return atoms.gather(1, atom_index[..., None].expand(-1, -1, atoms.shape[-1]))


def _iterate(queries: Tensor, scale: Tensor, atoms: Tensor, *rest: Any) -> Tensor:
    """The residual, without what derivatives need where nobody can ask for them: a small call spends a third
    of its time on that."""
    requires_grad = queries.requires_grad or scale.requires_grad or atoms.requires_grad
    if _is_recorded() or (requires_grad and torch.is_grad_enabled()):
        return torch.ops.fsad.istc(queries, scale, atoms, *rest)[0]
    return torch.ops.fsad.istc_residual(queries, scale, atoms, *rest)


def _is_recorded() -> bool:
    """Whether something traces or transforms this call, so that ``requires_grad`` does not tell."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.PreDispatch)


def _allow_tf32(features: Tensor) -> bool:
    return features.is_cuda and features.dtype == torch.float32 and tf32_is_allowed()


def channels_last(maps: Tensor) -> Tensor:
    """(T, B, c, h, w) -> contiguous (T, B, h, w, c); free when the memory already is channels-last."""
    rows = maps.permute(0, 1, 3, 4, 2)
    if rows.is_contiguous() or maps.shape[2:].numel() < WORTH_TURNING or torch.compiler.is_compiling():
        return rows.contiguous()
    # torch turns matrices several times as fast as it permutes dimensions.
    turned = [each.flatten(1).mT.contiguous() for each in maps.flatten(0, 1)]
    return (turned[0] if len(turned) == 1 else torch.cat(turned)).view(rows.shape)
