"""Thresholds from the scores of normal pictures that the dictionary has not seen.

With K exchangeable held-out scores, a new normal score exceeds the r-th smallest of them with
probability at most (K + 1 - r)/(K + 1) (conformal prediction: Vovk, Gammerman and Shafer,
*Algorithmic Learning in a Random World*, 2005). No level finer than 1/(K + 1) can be promised.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from fsad.errors import InputError
from fsad.frames import Frame
from fsad.sparse_coding import SparseCodingLayer

MAX_FOLDS = 20  # bounds the cost of calibration: as many dictionaries are made


@dataclass(frozen=True)
class Threshold:
    """A score above ``value`` is anomalous. ``str()`` of it says how far to trust it.

    ``kind``: "conformal" (the held-out scores cover the level), "extrapolated" (it is finer than
    they cover), "uncalibrated" (one score only), "known-bad" (between normal and known-bad scores)
    or "manual". ``false_alarm``: the share of normal pictures above it, None if nothing is known.
    ``scores``: the held-out scores of normal pictures.
    """

    value: float
    kind: str
    false_alarm: float | None
    scores: tuple[float, ...]

    def __str__(self) -> str:
        k, level = len(self.scores), f"{100 * (self.false_alarm or 0):.3g} %"
        reason = {
            "conformal": f"at most {level} of new normal pictures are expected above it, "
            f"judging by {k} of them scored while held out",
            "extrapolated": f"{level} false alarms are fewer than {k} normal pictures can promise "
            f"(1/({k} + 1) = {100 / (k + 1):.3g} %); it extrapolates a fit to their scores",
            "uncalibrated": "it rests on one normal score, so its false-alarm rate is unknown; "
            "give two or more normal pictures",
            "known-bad": f"it best parts {k} normal pictures from the known-bad ones; {level} of "
            "the normal ones lie above it",
            "manual": "set by hand",
        }[self.kind]
        return f"Threshold {self.value:.6g}: {reason}."


class Support(NamedTuple):
    """What is known of one normal picture."""

    features: Tensor  # (T', c, h, w): its tiles, then (``augment``) their flips and turns
    mask: Tensor | None  # bool (T', h, w): the positions that may become atoms; None for all
    frame: Frame

    @property
    def own(self) -> tuple[Tensor, Tensor | None]:
        """Features (T, c, h, w) and mask of the picture as it is."""
        tiles = len(self.frame.corners)
        return self.features[:tiles], None if self.mask is None else self.mask[:tiles]

    def score(self, layer: SparseCodingLayer) -> float:
        """By the layer's dictionary."""
        features, mask = self.own
        return self.frame.pool(layer(features, mask=mask).energy)[1]


def joined(support: Sequence[Support]) -> tuple[Tensor, Tensor | None]:
    """Features and mask of all pictures, as ``SparseCodingLayer.adapt`` takes them."""
    masks = [part.mask for part in support if part.mask is not None]
    return torch.cat([part.features for part in support]), torch.cat(masks) if masks else None


def held_out_scores(settings: dict, support: Sequence[Support], seed: int) -> list[float]:
    """Score of each normal picture by a dictionary made of the others.

    ``settings`` are those of the ``SparseCodingLayer``. Up to ``MAX_FOLDS`` pictures are left out
    one by one, more in that many groups drawn with ``seed``. A single picture is scored by itself:
    of its quarters, three code the fourth. (Neighbours would code each other: leaving out every
    second row and column gives scores some twenty times below those of new pictures.)
    """
    if len(support) == 1:
        return [support[0].frame.pool(_inner_energy(settings, support[0]))[1]]
    scores = [0.0] * len(support)
    order = np.random.default_rng(seed).permutation(len(support))
    for held_out in np.array_split(order, min(len(support), MAX_FOLDS)):
        rest = [part for i, part in enumerate(support) if i not in held_out]
        layer = SparseCodingLayer(**settings).adapt(*joined(rest))
        for i in held_out:
            scores[i] = support[i].score(layer)
    return scores


def _inner_energy(settings: dict, part: Support) -> Tensor:
    features, mask = part.own
    quarters = _quarters(part.frame, (features.shape[2], features.shape[3])).to(features.device)
    counts = torch.ones_like(quarters, dtype=torch.bool) if mask is None else mask.to(features.device)
    energy = torch.zeros_like(quarters)
    for quarter in range(4):
        layer = SparseCodingLayer(**settings).adapt(features, counts & (quarters != quarter))
        energy = torch.where(quarters == quarter, layer(features, mask=mask).energy, energy)
    return energy


def _quarters(frame: Frame, grid: tuple[int, int]) -> Tensor:
    """In which quarter, 0 to 3, of the pixels that count a feature position of a tile is: (T, h, w)."""
    inside = torch.ones(frame.size, dtype=torch.bool) if frame.roi is None else frame.roi
    sides = []
    for lines in (inside.any(1), inside.any(0)):
        used = lines.nonzero()
        sides.append(2 * torch.arange(len(lines)) > int(used[0] + used[-1]))
    quarters = (2 * sides[0][:, None] + sides[1]).float()
    return F.interpolate(frame.cut(quarters[None]), grid, mode="nearest")[:, 0]


def normal_threshold(scores: Sequence[float], false_alarm: float) -> Threshold:
    """The threshold that a share ``false_alarm`` of new normal pictures exceeds.

    From K >= 1 held-out scores of normal pictures: the ceil((K + 1)(1 - false_alarm))-th smallest,
    where there is one. A finer level is extrapolated by the upper prediction bound of a log-normal
    distribution, exp(m + s·sqrt(1 + 1/K)·t) with the mean m and deviation s of the scores'
    logarithms and the quantile t of Student's t with K - 1 degrees of freedom, but never below the
    largest score. One score is the threshold itself, uncalibrated.
    """
    if not 0 < false_alarm < 1:
        raise InputError(f"false_alarm must lie between 0 and 1 (0.1 is 10 %), got {false_alarm}")
    k, kept, ordered = len(scores), tuple(map(float, scores)), np.sort(scores)
    if k == 1:
        return Threshold(kept[0], "uncalibrated", None, kept)
    rank = math.ceil((k + 1) * (1 - false_alarm) - 1e-9)  # 10·(1 - 0.1) is 9, rounded or not
    if rank <= k:
        return Threshold(float(ordered[rank - 1]), "conformal", false_alarm, kept)
    from scipy.special import stdtrit

    logs = np.log(np.maximum(ordered, np.finfo(np.float64).tiny))
    bound = logs.mean() + logs.std(ddof=1) * math.sqrt(1 + 1 / k) * stdtrit(k - 1, 1 - false_alarm)
    if bound > 700:  # e^709 is the largest float
        raise InputError(f"{k} normal pictures say nothing about false_alarm={false_alarm}: give more")
    return Threshold(max(*kept, math.exp(bound)), "extrapolated", false_alarm, kept)


def with_scores(threshold: Threshold, new: Sequence[float], false_alarm: float) -> Threshold:
    """The threshold with more held-out scores, moved where it is computed from them.

    A level that it does not have yet is ``false_alarm``. One score calibrates nothing, and may be
    that of a picture by parts of itself: it makes way for the new ones.
    """
    scores = (*threshold.scores, *new) if len(threshold.scores) > 1 else tuple(new)
    if threshold.kind in ("manual", "known-bad"):
        return replace(threshold, scores=scores)
    return normal_threshold(scores, threshold.false_alarm or false_alarm)


def known_bad_threshold(scores: Sequence[float], bad: ArrayLike) -> Threshold:
    """The threshold with the best balanced accuracy on held-out normal and known-bad scores.

    Candidates are the midpoints between neighbouring scores; among equals the one in the widest gap
    wins, so classes that do not overlap are parted half-way.
    """
    normal, abnormal = np.asarray(scores), np.asarray(bad)
    ordered = np.unique(np.concatenate([normal, abnormal]))
    middles = zip(np.diff(ordered), (ordered[1:] + ordered[:-1]) / 2, strict=True)
    rates = ((np.mean(normal <= at) + np.mean(abnormal > at), gap, at) for gap, at in middles)
    candidates = sorted((round(rate, 9), gap, at) for rate, gap, at in rates)
    if not len(abnormal) or not candidates or candidates[-1][0] <= 1:
        raise InputError(
            "no threshold parts the known-bad pictures from the normal ones: they score no higher"
        )
    value = float(candidates[-1][2])
    return Threshold(value, "known-bad", float(np.mean(normal > value)), tuple(map(float, scores)))


def suspects(scores: Sequence[float]) -> list[tuple[int, str]]:
    """(index, reason) of every support picture whose held-out score stands out above the rest.

    The rule: a modified z-score, 0.6745·(score - median)/MAD, above 3.5 (Iglewicz and Hoaglin, *How
    to Detect and Handle Outliers*, 1993), and a score above two medians, since the MAD of a few
    pictures can be near zero.
    """
    values, median = np.asarray(scores), float(np.median(scores))
    spread = np.median(np.abs(values - median))
    apart = (0.6745 * (values - median) > 3.5 * spread) & (values > 2 * median)
    reason = "held out, it scores {:.4g}; the median of the normal pictures is {:.4g}"
    return [(int(i), reason.format(values[i], median)) for i in np.flatnonzero(apart)]
