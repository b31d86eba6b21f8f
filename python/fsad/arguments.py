"""What a sparse coding call is given, checked: tensors, thresholds, step, and which backend computes it."""

import math
import warnings
from collections.abc import Sequence
from operator import mul
from typing import Any

import torch
from torch import Tensor

import fsad_ext
from fsad.errors import InputError

SHRINKAGES = ("none", "soft", "sigshrink")
BACKENDS = ("auto", "native", "reference")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_ITERATIONS = 32
SHARPEST = 1e12  # of τλ: beyond, float32's derivatives of SigShrink are of no digit


def use_native(
    backend: str, support: Tensor, atom_index: Tensor | None, *others: Tensor, stacklevel: int = 4
) -> bool:
    """Whether the native kernels are to compute it; raises where only they would not.

    ``stacklevel``: from here to the caller whom a warning names.
    """
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
        warnings.warn(
            f"{missing}; running the plain PyTorch reference (see `fsad doctor`)", stacklevel=stacklevel
        )
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
def tf32_is_allowed() -> bool:
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
    if not 1 <= len(lambdas) <= MAX_ITERATIONS or min(lambdas) < 0:
        raise InputError(f"expected 1 to {MAX_ITERATIONS} thresholds λ ≥ 0, got {lambdas}")
    if shrinkage == "sigshrink":
        if tau is None:
            raise InputError("SigShrink needs a sharpness tau > 0; got None")
        taus = _floats("tau", tau)
        taus = taus * len(lambdas) if len(taus) == 1 else taus
        if len(taus) != len(lambdas) or min(taus) <= 0:
            raise InputError(f"expected one tau > 0, or one a step ({len(lambdas)}); got {taus}")
        if (sharpness := max(map(mul, taus, lambdas))) > SHARPEST:
            limit = f"a sharpness tau·λ of {SHARPEST:g} already is a hard threshold, which has no derivatives"
            raise InputError(f"{limit}; got {sharpness:g}: take a smaller tau")
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
    if not all(map(math.isfinite, floats)):
        raise InputError(f"{name} must be finite, got {floats}")
    return floats


def step_per_task(step: float | Tensor, features: Tensor) -> Tensor:
    tasks = features.shape[0]
    if isinstance(step, Tensor):
        if step.shape not in ((), (1,), (tasks,)):
            raise InputError(f"step must be one number, or one a task ({tasks}); got {tuple(step.shape)}")
        return step.detach().to(features).expand(tasks).contiguous()
    if not isinstance(step, (int, float)) or not (math.isfinite(step) and step > 0):
        raise InputError(f"step must be a finite number > 0, got {step}")
    return features.new_full((tasks,), step)


def check_floating(name: str, first: Tensor, other_name: str, other: Tensor) -> None:
    if not isinstance(first, Tensor) or not isinstance(other, Tensor):
        raise InputError(f"{name} and {other_name} must be tensors, got {type(first)} and {type(other)}")
    if first.dtype not in DTYPES:
        expected = "float32, float64, bfloat16 or float16"
        raise InputError(f"{name} must be {expected}, got {first.dtype}; convert it first")
    if first.dtype != other.dtype or first.device != other.device:
        got = f"{first.dtype} on {first.device} and {other.dtype} on {other.device}"
        raise InputError(f"{name} and {other_name} must share dtype and device; got {got}")


def check_vectors(queries: Tensor, atoms: Tensor) -> None:
    z, d = queries.shape, atoms.shape
    if len(z) not in (2, 3) or len(z) != len(d):
        takes = "istc takes queries ([T,] n, d) and atoms ([T,] k, d), with T on both or on neither"
        raise InputError(f"{takes}; got {tuple(z)} and {tuple(d)}")
    _check_match((*z[:-2], z[-1]), (*d[:-2], d[-1]))
    if d.numel() == 0:
        raise InputError(f"the dictionary is empty: atoms {tuple(d)}")


def check_maps(
    features: Tensor, support_features: Tensor, receptive_field: int, atom_index: Tensor | None
) -> None:
    z, d = tuple(features.shape), tuple(support_features.shape)
    if len(z) != 5 or len(d) != 5:
        expected = "expected maps ([T,] B, c, h, w) and ([T,] K, c, H, W), with T on both or on neither"
        raise InputError(f"{expected}; got {z} and {d}")
    _check_match((z[0], z[2]), (d[0], d[2]))
    if not isinstance(receptive_field, int) or receptive_field < 1 or receptive_field % 2 == 0:
        raise InputError(f"receptive_field must be odd and at least 1, got {receptive_field}")
    if support_features.numel() == 0:
        raise InputError(f"the dictionary is empty: support maps {d}")
    if atom_index is not None:
        fits = atom_index.dim() == 2 and len(atom_index) == len(features) and atom_index.shape[1] > 0
        if atom_index.dtype != torch.int64 or not fits:
            expected = "atom_index must be int64 ([T,] k) with k > 0 distinct positions"
            raise InputError(f"{expected}, got {atom_index.dtype} {tuple(atom_index.shape)}")


def _check_match(queries: tuple[int, ...], dictionary: tuple[int, ...]) -> None:
    """Of each: tasks, where there are, and channels."""
    if queries[:-1] != dictionary[:-1]:
        raise InputError(f"queries of {queries[0]} tasks do not fit the supports of {dictionary[0]}")
    if queries[-1] != dictionary[-1]:
        got = f"queries have {queries[-1]} channels, the dictionary {dictionary[-1]}"
        raise InputError(f"{got}; both must come from the same backbone")
