"""Sparse coding as functions of tensors, differentiable twice.

``istc`` codes vectors over a dictionary of vectors; ``sparse_code`` does the same on feature maps, with
Im2Col inside. Both run on the native kernels of ``fsad_ext`` or, with ``backend="reference"``, on plain
PyTorch (``fsad.reference``). The codes are never stored by the native kernels; derivatives of first and
second order with respect to queries and dictionary are exact.

On a GPU, float32 products follow torch's own setting for matrix products
(``torch.backends.cuda.matmul.fp32_precision``, ``torch.set_float32_matmul_precision``): full precision
unless TF32 is allowed there.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import fsad_ext
from fsad import patches, reference
from fsad.errors import InputError

SHRINKAGES = ("none", "soft", "sigshrink")
BACKENDS = ("auto", "native", "reference")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_ITERATIONS = 32


def sigshrink(u: Tensor, lam: float, tau: float) -> Tensor:
    """SigShrink (eq. 9), u · sigmoid(τ(|u| − λ)), elementwise and smooth.

    Args:
        u: any floating tensor.
        lam: threshold λ ≥ 0, in the units of ``u``.
        tau: sharpness τ > 0, per unit of ``u``; soft steps for small τ, a hard threshold as τ → ∞.
    """
    (lam,), (tau,) = check_schedule([lam], tau, "sigshrink")
    return reference.sigshrink(u, lam, tau)


def soft_shrink(u: Tensor, lam: float) -> Tensor:
    """Soft thresholding (eq. 7), sgn(u) · max(|u| − λ, 0), elementwise.

    Args:
        u: any floating tensor.
        lam: threshold λ ≥ 0, in the units of ``u``.
    """
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
    _check_floating("queries", queries, "atoms", atoms)
    if queries.dim() not in (2, 3) or atoms.dim() != queries.dim():
        takes = "istc takes queries ([T,] n, d) and atoms ([T,] k, d), with T on both or on neither"
        raise InputError(f"{takes}; got {tuple(queries.shape)} and {tuple(atoms.shape)}")
    # One map of 1×n positions a task.
    z, d = queries.mT[..., None, :, None, :], atoms.mT[..., None, :, None, :]
    residual = sparse_code(z, d, lambdas, step=step, tau=tau, shrinkage=shrinkage, backend=backend)
    return residual[..., 0, :, 0, :].mT


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
    _check_floating("features", features, "support_features", support_features)
    _check_maps(features, support_features, receptive_field, atom_index)
    step, known = _step_per_task(step, features), None
    if features.device.type == "cpu" and _use_native(backend, support_features, atom_index, features):
        queries, atoms = channels_last(features), channels_last(support_features)
        index = None if atom_index is None else atom_index.contiguous()
        schedule = *check_schedule(lambdas, tau, shrinkage), SHRINKAGES.index(shrinkage)
        with torch.no_grad():
            *known, atom = torch.ops.fsad.istc_relative(
                queries, atoms, index, step, *schedule, receptive_field
            )
        correlation = patches.inner_products(queries, atoms, atom, receptive_field).abs()
    else:
        where: dict[str, Any] = {"receptive_field": receptive_field, "atom_index": atom_index}
        correlation = peak_correlation(features, support_features, **where, backend=backend)
    peak = step[:, None] * correlation
    peak = torch.where(peak > 0, peak, torch.ones_like(peak))
    settings = receptive_field, atom_index, peak.reciprocal(), step, tau, shrinkage, backend
    residual, energy = _sparse_code(features, support_features, lambdas, *settings, True, known)
    tasks, images, _, height, width = features.shape
    return residual * peak.view(tasks, images, 1, height, width), energy, peak


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
    _check_floating("features", features, "support_features", support_features)
    is_single = features.dim() == 4 and support_features.dim() == 4
    if is_single:
        features, support_features = features[None], support_features[None]
        atom_index = None if atom_index is None else atom_index[None]
        scale = None if scale is None else scale[None]
    _check_maps(features, support_features, receptive_field, atom_index)
    lambdas, taus = check_schedule(lambdas, tau, shrinkage)
    tasks, images, channels, height, width = features.shape
    if scale is None:
        scale = features.new_ones(tasks, images * height * width)
    elif scale.shape != (expected := (tasks, images * height * width)):
        raise InputError(f"scale must hold one factor a query patch, {expected}; got {tuple(scale.shape)}")
    step = _step_per_task(step, features)
    if _use_native(backend, support_features, atom_index, features, scale):
        queries, atoms = channels_last(features), channels_last(support_features)
        index = None if atom_index is None else atom_index.contiguous()
        allow_tf32 = features.is_cuda and features.dtype == torch.float32 and _tf32_is_allowed()
        settings = lambdas, taus, SHRINKAGES.index(shrinkage), receptive_field, allow_tf32
        inputs = queries, scale.contiguous(), atoms, index, step
        if with_energy:
            operator, settings = torch.ops.fsad.istc_energy, (*settings, *(known or (None, None)))
        else:
            operator = torch.ops.fsad.istc
        residual, _, *energies = operator(*inputs, *settings)
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
    _check_floating("features", features, "support_features", support_features)
    _check_maps(features, support_features, receptive_field, atom_index)
    queries, atoms = channels_last(features), channels_last(support_features)
    if _use_native(backend, support_features, atom_index, features):
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


def channels_last(maps: Tensor) -> Tensor:
    """(T, B, c, h, w) -> contiguous (T, B, h, w, c); free when the memory already is channels-last."""
    return maps.movedim(2, -1).contiguous()


def _use_native(backend: str, support: Tensor, atom_index: Tensor | None, *others: Tensor) -> bool:
    """Whether the native kernels are to compute it; raises where only they would not."""
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {BACKENDS}, got {backend!r}")
    if backend == "reference":
        return False
    kind = support.device.type
    if kind not in fsad_ext.DEVICES:
        if backend == "native":
            built = f"this build has them for {', '.join(fsad_ext.DEVICES)} (see `fsad doctor`)"
            raise InputError(f"no native kernels for device {kind!r}: {built}; use backend='reference'")
        missing = f"fsad has no native kernels for device {kind!r} in this build"
        warnings.warn(f"{missing}; running the plain PyTorch reference (see `fsad doctor`)", stacklevel=4)
        return False
    if kind == "cpu" and support.dtype not in (torch.float32, torch.float64):
        got = f"on the CPU the native kernels take float32 or float64, got {support.dtype}"
        raise InputError(f"{got}; convert it first, or use backend='reference'")
    for tensor in (support, *others):
        # A Python-registered operator would return zero tangents without a word.
        if torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None:
            missing = "the native kernels have no forward-mode derivative (jvp)"
            raise InputError(f"{missing}; use backward mode or backend='reference'")
    if atom_index is not None and atom_index.is_cuda:
        # The operators check what is on the CPU, and cannot read a GPU's memory without waiting for it: torch
        # raises at the next synchronisation.
        positions = support.shape[1] * support.shape[3] * support.shape[4]
        in_range = ((atom_index >= 0) & (atom_index < positions)).all()
        torch._assert_async(in_range, "fsad: atom_index holds a position outside the support maps")
    return True


@torch.compiler.assume_constant_result  # torch.compile cannot trace it, and compiles again when it changes
def _tf32_is_allowed() -> bool:
    """Whether torch may round the operands of float32 matrix products on a GPU to TF32. Of all ways to ask,
    the one that knows what the older and the newer setting come to together."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def check_schedule(
    lambdas: Sequence[float], tau: float | Sequence[float] | None, shrinkage: str
) -> tuple[list[float], list[float]]:
    """Checked thresholds and sharpnesses, one a step each (ones where the shrinkage reads none)."""
    if shrinkage not in SHRINKAGES:
        raise InputError(f"shrinkage must be one of {SHRINKAGES}, got {shrinkage!r}")
    lambdas = _floats("lambdas", lambdas)
    if not 1 <= len(lambdas) <= MAX_ITERATIONS or any(lam < 0 for lam in lambdas):
        raise InputError(f"expected 1 to {MAX_ITERATIONS} thresholds λ ≥ 0, got {lambdas}")
    if shrinkage == "sigshrink":
        if tau is None:
            raise InputError("SigShrink needs a sharpness tau > 0; got None")
        taus = _floats("tau", tau)
        taus = taus * len(lambdas) if len(taus) == 1 else taus
        if len(taus) != len(lambdas) or any(value <= 0 for value in taus):
            raise InputError(f"expected one tau > 0, or one a step ({len(lambdas)}); got {taus}")
    else:
        taus = [1.0] * len(lambdas)  # not read by the other shrinkages
    return lambdas, taus


def _floats(name: str, values: Any) -> list[float]:
    if isinstance(values, Tensor):
        if values.requires_grad:
            raise InputError(f"{name} is a constant of the iteration: it must not require grad")
        values = values.tolist()
    try:
        floats = [float(values)] if isinstance(values, (int, float)) else [float(v) for v in values]
    except TypeError:
        raise InputError(f"{name} must be a number or a sequence of them; got {values!r}") from None
    if not all(math.isfinite(value) for value in floats):
        raise InputError(f"{name} must be finite, got {floats}")
    return floats


def _step_per_task(step: float | Tensor, features: Tensor) -> Tensor:
    tasks = features.shape[0]
    if isinstance(step, Tensor):
        if step.shape not in ((), (1,), (tasks,)):
            raise InputError(f"step must be one number, or one a task ({tasks}); got {tuple(step.shape)}")
        return step.detach().to(features).expand(tasks).contiguous()
    if not isinstance(step, (int, float)) or not (math.isfinite(step) and step > 0):
        raise InputError(f"step must be a finite number > 0, got {step}")
    return features.new_full((tasks,), step)


def _check_floating(name: str, first: Tensor, other_name: str, other: Tensor) -> None:
    if not isinstance(first, Tensor) or not isinstance(other, Tensor):
        raise InputError(f"{name} and {other_name} must be tensors, got {type(first)} and {type(other)}")
    if first.dtype not in DTYPES:
        expected = "float32, float64, bfloat16 or float16"
        raise InputError(f"{name} must be {expected}, got {first.dtype}; convert it first")
    if first.dtype != other.dtype or first.device != other.device:
        got = f"{first.dtype} on {first.device} and {other.dtype} on {other.device}"
        raise InputError(f"{name} and {other_name} must share dtype and device; got {got}")


def _check_maps(
    features: Tensor, support_features: Tensor, receptive_field: int, atom_index: Tensor | None
) -> None:
    z, d = tuple(features.shape), tuple(support_features.shape)
    if len(z) != 5 or len(d) != 5:
        expected = "expected maps ([T,] B, c, h, w) and ([T,] K, c, H, W), with T on both or on neither"
        raise InputError(f"{expected}; got {z} and {d}")
    if z[0] != d[0]:
        raise InputError(f"queries of {z[0]} tasks do not fit the supports of {d[0]}")
    if z[2] != d[2]:
        got = f"queries have {z[2]} channels, the dictionary {d[2]}"
        raise InputError(f"{got}; both must come from the same backbone")
    if not isinstance(receptive_field, int) or receptive_field < 1 or receptive_field % 2 == 0:
        raise InputError(f"receptive_field must be odd and at least 1, got {receptive_field}")
    if support_features.numel() == 0:
        raise InputError(f"the dictionary is empty: support maps {d}")
    if atom_index is not None:
        fits = atom_index.dim() == 2 and len(atom_index) == len(features) and atom_index.shape[1] > 0
        if atom_index.dtype != torch.int64 or not fits:
            expected = "atom_index must be int64 ([T,] k) with k > 0 distinct positions"
            raise InputError(f"{expected}, got {atom_index.dtype} {tuple(atom_index.shape)}")
