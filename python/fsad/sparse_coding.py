"""The adaptive sparse coding layer (section 3.1): the features of a few normal images are its dictionary."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fsad import arguments, functional, reference, whitening
from fsad.dictionary import STABLE_STEPS, Dictionary, StoredDictionary, full_precision, thin
from fsad.errors import DivergedError, InputError, NotAdaptedError

# Of the detector, for features of ImageNet networks; chosen on development sets (solar cells, magnetic tiles,
# hazelnuts, made-up products; docs/results.md). Centred features show more sharply where a defect is; without
# what pictures differ in as wholes, they bear more whitening. A small dictionary that covers the normal
# features explains less of a defect than a large one; 256 atoms and two steps cost a fraction of what the
# backbone does.
DEFAULT_SETTINGS: dict[str, Any] = {
    "center": True,
    "drift": 0.35,
    "ridge": 10.0,
    "iterations": 2,
    "max_atoms": 256,
}


class SparseCode(NamedTuple):
    """What coding B feature maps gives; all in the whitened space if ``step="whiten"``.

    With the stateless, batched form every tensor has a leading T.
    """

    residual: Tensor  # z − Dα_N, (B, c·l², h, w)
    energy: Tensor  # mean square of the residual's entries at each position, (B, h, w)
    reconstruction: Tensor | None = None  # Dα_N mapped back to feature units, (B, c·l², h, w)
    codes: Tensor | None = None  # α_N, (B, k, h, w)


@dataclass(eq=False, repr=False)
class SparseCodingLayer(StoredDictionary):
    """Codes features over a dictionary made of the features of normal images, without any training.

    Two forms. ``adapt(support)`` stores a dictionary and ``layer(features)`` uses it; it travels with
    ``state_dict``, ``to`` and ``deepcopy``. ``layer(features, support)`` stores nothing and is
    differentiable twice with respect to both, which episodic training uses.

    Args:
        iterations: N, the steps of eq. 6 (1 to 32).
        lambda_max, lambda_min: first and last threshold of the geometric continuation
            λ_j = λ_max(λ_max/λ_min)^(−j/N), j = 1 … N.
        schedule: ``"relative"`` (thresholds are fractions of max|ηDᵀz| of each query), ``"absolute"``,
            or a list of N absolute thresholds.
        sharpness: dimensionless; SigShrink's τ at a step is sharpness/λ.
        tau: absolute τ of SigShrink instead of ``sharpness`` (one, or one a step).
        shrinkage: ``"sigshrink"`` (eq. 9), ``"soft"`` (eq. 7) or ``"none"``.
        receptive_field: l, odd; l×l neighbourhoods are coded together (section 3.1.1).
        step: ``"whiten"`` whitens the channels by the support's second moment and scales the dictionary to
            norm 1, so that η = 1 is stable; ``"lipschitz"`` takes η = 1/‖D‖₂²; a number is η itself.
        normalize: scale feature vectors to length one first.
        center: then take the support's mean vector off, of support and queries.
        drift: then take each map's own mean off, of support and queries, as far as it is small
            (``whitening.drift``): about this size, in units of the support's root mean square. 0: not at all;
            10, the most: nearly all of any.
        max_atoms: thin the dictionary to at most this many atoms (greedy coreset).
        backend: ``"auto"``, ``"native"`` or ``"reference"``.
        ridge: ε of the whitening, in units of the mean eigenvalue: the larger, the less rare directions are
            amplified.

    Settings are fixed; ``dataclasses.replace`` makes a layer of others, not adapted yet.

    Raises InputError: for settings that cannot be used.
    """

    iterations: int = 3
    lambda_max: float = 0.5
    lambda_min: float = 0.1
    schedule: str | Sequence[float] = "relative"
    sharpness: float = 10
    tau: float | Sequence[float] | None = None
    shrinkage: str = "sigshrink"
    receptive_field: int = 1
    step: str | float = "whiten"
    normalize: bool = True
    max_atoms: int | None = None
    backend: str = "auto"
    ridge: float = 0.1
    center: bool = False
    drift: float = 0

    def __post_init__(self) -> None:
        super().__init__()
        if not isinstance(self.schedule, str):
            self.schedule = [float(x) for x in self.schedule]
        if not (self.tau is None or isinstance(self.tau, (int, float))):
            self.tau = [float(t) for t in self.tau]
        self._check_settings()
        self.lambdas, self.taus = arguments.check_schedule(*self._make_schedule(), self.shrinkage)

    def __setattr__(self, name: str, value: Any) -> None:
        # What is made of them here would stay as it was.
        if name in self.__dataclass_fields__ and "lambdas" in self.__dict__:
            raise AttributeError(f"a layer's settings are fixed; use dataclasses.replace(layer, {name}=...)")
        super().__setattr__(name, value)

    @classmethod
    def paper(cls, **overrides: Any) -> "SparseCodingLayer":
        """The setting of the paper: η = 1, no whitening, absolute thresholds, receptive field 3.

        Meant for networks trained episodically with it: they learn the scale at which η = 1 converges.
        On other features ``adapt`` refuses it, because the iteration would diverge.
        """
        paper = dict[str, Any](step=1.0, normalize=False, schedule="absolute", receptive_field=3)
        return cls(**(paper | overrides))

    def config(self) -> dict:
        """The constructor's arguments, as JSON can hold them."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.config().items())

    def forward(
        self,
        features: Tensor,
        support: Tensor | Dictionary | None = None,
        *,
        mask: Tensor | None = None,
        reconstruction: bool = False,
        codes: bool = False,
    ) -> SparseCode:
        """Code feature maps over the stored dictionary, or over ``support`` alone.

        Args:
            features: (B, c, h, w), or (T, B, c, h, w) with T independent tasks. float16 and bfloat16
                are computed in float32.
            support: (K, c, h, w), or (T, K, c, h, w): the normal features of each task. Derivatives
                run through the dictionary and its whitening; η, the scale and the thinning are
                constants. Or what ``dictionary`` made of it.
            mask: bool (B, h, w), or (T, B, h, w), the positions that count for ``drift``; all by default.
            reconstruction, codes: also return these. The codes are B·h·w × k numbers and are computed
                by the reference.

        Raises:
            NotAdaptedError: no ``support`` given and ``adapt`` not called.
            InputError: shapes or channels that do not fit.
            RuntimeError: the residual is not finite or grew (checked without synchronising a GPU).
        """
        with torch.autocast(features.device.type, enabled=False):
            batched = features.dim() == 5
            features = full_precision("features", features, 5 if batched else 4)
            if support is None:
                if batched:
                    raise InputError("features of several tasks (T, B, c, h, w) need their support too")
                dictionary = self._stored_dictionary(features)
            elif isinstance(support, Dictionary):
                dictionary = support
            else:
                support = full_precision("support", support, features.dim()).to(features.dtype)
                dictionary = self.dictionary(support if batched else support[None])
            counted = features.shape[:-3] + features.shape[-2:]
            if mask is not None and (mask.dtype != torch.bool or mask.shape != counted):
                raise InputError(f"mask must be bool {tuple(counted)}, got {mask.dtype} {tuple(mask.shape)}")
            if not batched:
                features, mask = features[None], None if mask is None else mask[None]
            result = self._code(features, dictionary, mask, reconstruction, codes)
        return result if batched else SparseCode._make(each if each is None else each[0] for each in result)

    def dictionary(self, support: Tensor) -> Dictionary:
        """The dictionaries of T tasks, to code over more than once: (T, K, c, h, w).

        ``layer(features, layer.dictionary(support))`` is ``layer(features, support)``.
        """
        with torch.autocast(support.device.type, enabled=False):
            support = self._normalized(full_precision("support", support, 5))
            mean = support.mean((1, 3, 4)) if self.center else None
            if mean is not None:
                support = whitening.less_mean(support, mean)
                support = self._less_drift(support, _spread(support))
            bound = self.drift**2 * _spread(support) if self.drift else None
            moment = whitening.second_moment(support) if self.step == "whiten" else support.new_empty(0)
            index = None
            if self.max_atoms is not None and support[0, :, 0].numel() > self.max_atoms:
                index = torch.stack([thin(m, None, self.max_atoms, self.receptive_field) for m in support])
            return self._ready(support, index, moment)._replace(mean=mean, drift=bound)

    def _code(
        self, features: Tensor, dictionary: Dictionary, mask: Tensor | None, rebuild: bool, codes: bool
    ) -> SparseCode:
        atoms, index, step, whitener, mean, bound = dictionary
        if features.shape[2] != atoms.shape[2]:
            got = f"features have {features.shape[2]} channels, the dictionary {atoms.shape[2]}"
            raise InputError(f"{got}; both must come from the same backbone")
        queries = whitening.unit_length(features, 2) if self.normalize else features
        offset = None if mean is None else mean[:, None]  # (T, 1 or B, c)
        if offset is not None:
            queries = queries - offset[..., None, None]
        if offset is not None and bound is not None:
            drift = whitening.drift(queries, bound, mask)
            queries, offset = queries - drift[..., None, None], offset + drift
        if whitener is not None:
            queries = whitening.apply(whitener, queries)
        field = self.receptive_field
        options: dict[str, Any] = {"receptive_field": field, "atom_index": index, "backend": self.backend}
        options |= {"step": step, "tau": self.taus, "shrinkage": self.shrinkage}
        peak = None
        if self.schedule == "relative":
            residual, energy, peak = functional.relative_energy(queries, atoms, self.lambdas, **options)
        else:
            residual, energy = functional.sparse_energy(queries, atoms, self.lambdas, **options)
        self._guard(energy, queries)
        rebuilt = self._reconstruct(queries, residual, whitener, offset) if rebuild else None
        alphas = self._codes(queries, dictionary, peak) if codes else None
        return SparseCode(residual, energy, rebuilt, alphas)

    def _guard(self, energy: Tensor, queries: Tensor) -> None:
        """Stop at numbers that must not be believed."""
        wrong = "sparse coding gave NaN or infinity: the features hold such values, or are too large"
        _require(energy.isfinite().all(), wrong)
        if isinstance(self.step, str) or energy.numel() == 0:
            return  # η‖D‖₂² is 1 by construction, up to the power iteration's error
        # A convergent iteration never leaves more than it was given; 4 allows for SigShrink's softness.
        limit = 4 * queries.square().mean(2).amax()
        wrong = f"sparse coding diverged: step={self.step} is too large for this dictionary; {STABLE_STEPS}"
        _require((energy <= limit).all(), wrong)

    def _reconstruct(
        self, queries: Tensor, residual: Tensor, whitener: Tensor | None, offset: Tensor | None
    ) -> Tensor:
        tasks, images, channels, height, width = queries.shape
        columns = reference.im2col(queries, self.receptive_field).mT
        columns = columns.reshape(tasks, -1, images, height, width).transpose(1, 2) - residual
        # L maps whitened vectors back, offset by offset of the patch.
        vectors = columns.unflatten(2, (channels, -1)).movedim(2, -1)
        if whitener is not None:
            solved = torch.linalg.solve_triangular(whitener, vectors.flatten(1, -2).mT, upper=False).mT
            vectors = solved.reshape(vectors.shape)
        if offset is not None:
            vectors = vectors + offset[:, :, None, None, None]
        return vectors.movedim(-1, 2).flatten(2, 3)

    def _codes(self, queries: Tensor, dictionary: Dictionary, peak: Tensor | None) -> Tensor:
        tasks, images, _, height, width = queries.shape
        rows = reference.im2col(queries, self.receptive_field)
        scale = torch.ones_like(rows[..., 0]) if peak is None else peak
        atoms = functional.dictionary_rows(dictionary.atoms, dictionary.kept, self.receptive_field)
        schedule = self.lambdas, self.taus, self.shrinkage
        codes = reference.istc_codes(rows / scale[..., None], atoms, dictionary.step, *schedule)
        return (codes * scale[..., None]).mT.reshape(tasks, -1, images, height, width).transpose(1, 2)

    def _stored_dictionary(self, features: Tensor) -> Dictionary:
        if not self.is_adapted:
            raise NotAdaptedError(
                "this SparseCodingLayer has no dictionary yet: call adapt(support) with features of "
                "normal images first, or pass them as layer(features, support)"
            )
        if self.atoms.device != features.device:
            where = f"features are on {features.device}, the dictionary is on {self.atoms.device}"
            raise InputError(f"{where}; move one with .to()")
        index = self.atom_index[None] if len(self.atom_index) else None
        whitener = self.whitener.to(features)[None] if self.step == "whiten" else None
        mean = self.mean.to(features)[None] if self.center else None
        drift = self.drift**2 * self.moment.trace().to(features)[None] if self.drift else None
        atoms = self.atoms.to(features.dtype)
        return Dictionary(atoms, index, self.gain.to(features), whitener, mean, drift)

    def _make_schedule(self) -> tuple[list[float], Any]:
        n, lambdas = self.iterations, self.schedule
        if isinstance(lambdas, str):
            ratio = self.lambda_max / self.lambda_min
            lambdas = [self.lambda_max * ratio ** (-j / n) for j in range(1, n + 1)]
        if self.shrinkage != "sigshrink" or self.tau is not None:
            return list(lambdas), self.tau
        if not all(lam > 0 for lam in lambdas):
            raise InputError(f"sharpness needs thresholds λ > 0, got {lambdas}; or give tau")
        return list(lambdas), [self.sharpness / lam for lam in lambdas]

    def _check_settings(self) -> None:
        n, field, atoms = self.iterations, self.receptive_field, self.max_atoms
        step: Any = self.step
        named = self.schedule in ("relative", "absolute")
        checks = {
            "iterations": type(n) is int and 1 <= n <= arguments.MAX_ITERATIONS,
            "lambda_max": self.lambda_max >= self.lambda_min,
            "lambda_min": self.lambda_min > 0,
            "schedule": named or (isinstance(self.schedule, list) and len(self.schedule) == n),
            "sharpness": self.sharpness > 0,
            "receptive_field": type(field) is int and field >= 1 and field % 2 == 1,
            "step": step in ("whiten", "lipschitz") or (type(step) in (int, float) and 0 < step < math.inf),
            "max_atoms": atoms is None or (type(atoms) is int and atoms >= 1),
            "backend": self.backend in arguments.BACKENDS,
            "ridge": 0 < self.ridge < math.inf,
            "center": isinstance(self.center, bool),
            "drift": type(self.drift) in (int, float) and 0 <= self.drift <= (10 if self.center else 0),
        }
        for name, good in checks.items():
            if not good:
                raise InputError(
                    f"SparseCodingLayer cannot use {name}={getattr(self, name)!r}; see its docstring"
                )


def _spread(maps: Tensor) -> Tensor:
    """Mean square length of the vectors: (T, K, c, h, w) -> (T,)."""
    return maps.square().sum(2).mean((1, 2, 3))


def _require(condition: Tensor, message: str) -> None:
    """Raise DivergedError unless ``condition``; on a GPU and in compiled code without synchronising."""
    if condition.device.type == "cpu" and not torch.compiler.is_compiling():
        if not condition:
            raise DivergedError(message)
    else:
        torch._assert_async(condition, message)
