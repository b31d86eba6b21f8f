"""How well scores and anomaly maps tell what is anomalous: exact, over all pixels, without bins.

A threshold t calls anomalous whatever scores t or more, so equal scores cross it together; between two
thresholds the curves are straight (Fawcett, *An introduction to ROC analysis*, 2006). AP is the sum of
precision times gained recall, without interpolation. AUPRO is that of MVTec AD (Bergmann et al., *The
MVTec Anomaly Detection Dataset*, IJCV 2021): the share of a connected component that is found, mean over
all components, against the false-positive rate, up to a rate of 0.3 and divided by 0.3.
"""

from array import array
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from fsad.errors import InputError

MAX_FPR = 0.3  # AUPRO's limit
NEIGHBOURS = np.ones((3, 3), bool)  # 8 of them: diagonal pixels touch
BLOCK = 1 << 16  # anomalous pixels ranked at a time: bounds the memory of the ranks


def image_metrics(anomalous: ArrayLike, scores: ArrayLike) -> dict[str, float]:
    """AUROC, AP and the best F1 over all thresholds, of one score per picture.

    Args:
        anomalous: (n,), truth values.
        scores: (n,), higher is more anomalous.

    Raises InputError: no scores, scores that are not finite, lengths that differ, or one class only.
    """
    truth, values = _checked(anomalous, scores)
    if truth.all() or not truth.any():
        kind = "anomalous" if truth.all() else "normal"
        raise InputError(f"needed normal and anomalous ones, got {len(truth)} that are all {kind}")
    precision, recall, _ = precision_recall_curve(truth, values)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    auroc, ap = (float(metric(truth, values)) for metric in (roc_auc_score, average_precision_score))
    return {"image AUROC": auroc, "image AP": ap, "image F1": float(f1.max())}


def frame_auc(videos: Sequence[tuple[ArrayLike, ArrayLike]], normalise: bool) -> float:
    """AUROC of the frames of all videos together.

    Args:
        videos: for each, the truth values (n,) and the scores (n,) of its frames.
        normalise: map the scores of each video to [0, 1] by its smallest and largest, as the literature
            does; those of a video whose frames all score the same become 0.

    Raises InputError: as in `image_metrics`; a single video may be of one class.
    """
    if not videos:
        raise InputError("got no videos; give at least one (labels, scores)")
    checked = [_checked(labels, scores) for labels, scores in videos]
    if normalise:
        checked = [(truth, (scores - scores.min()) / (np.ptp(scores) or 1)) for truth, scores in checked]
    truth, scores = map(np.concatenate, zip(*checked, strict=True))
    return image_metrics(truth, scores)["image AUROC"]


def confidence_interval(
    values: ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """(low, high) of the mean of ``values`` (n,), by the percentile bootstrap.

    Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993. Of a single value, it is that value
    twice. Memory: resamples·n numbers.
    """
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or not sample.size or not np.isfinite(sample).all():
        raise InputError(f"needed a row of one or more finite numbers, got {sample}")
    if not 0 < level < 1 or resamples < 1:
        raise InputError(f"needed 0 < level < 1 and resamples >= 1, got {level} and {resamples}")
    means = np.random.default_rng(seed).choice(sample, (resamples, len(sample))).mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class PixelMetrics:
    """Metrics of the pixels of all pictures of a category together.

    Scores are kept as float32: 4 bytes for a normal pixel and 8 for an anomalous one, which are sorted where
    they lie, in arrays that grow by realloc: it moves pages of memory and makes no second copy. All metrics
    are sums or maxima over the anomalous pixels of terms that depend on how many pixels score higher, or as
    high.
    """

    def __init__(self) -> None:
        self._normal = array("f")
        self._anomalous = array("f")  # complex: score + i·(size of its component), sorted in that order
        self._components = 0

    def add(self, anomaly_map: ArrayLike, mask: ArrayLike) -> None:
        """Take in a picture: its scores (H, W) and where it is anomalous, bool (H, W).

        Raises InputError: shapes that differ, a mask that is not bool, scores that float32 cannot hold.
        """
        scores, truth = np.asarray(anomaly_map, np.float32), np.asarray(mask)
        if scores.ndim != 2 or scores.shape != truth.shape or truth.dtype != bool:
            raise InputError(
                f"needed a map (H, W) and a bool mask of the same shape, got {scores.shape} and "
                f"{truth.shape} of {truth.dtype}; resize the one, or compare the other with a level"
            )
        if not np.isfinite(scores).all():
            count = int(np.sum(~np.isfinite(scores)))
            raise InputError(f"needed finite float32 scores, got {count} of {scores.size} that are not")
        self._normal.frombytes(scores[~truth].tobytes())
        labels, components = ndimage.label(truth, NEIGHBOURS)
        sizes = np.bincount(labels.ravel())[labels[truth]]
        self._anomalous.frombytes((scores[truth] + 1j * sizes).astype(np.complex64).tobytes())
        self._components += components

    def compute(self) -> dict[str, float]:
        """The metrics of the pictures so far: "pixel AUROC", "pixel AP", "pixel F1", "mIoU", "AUPRO".

        F1 is the best over all thresholds. mIoU is the best intersection over union of the pixels of all
        pictures, F1/(2 - F1).

        Raises InputError: no anomalous or no normal pixel.
        """
        normal, anomalous = self._sorted()
        count, limit = len(anomalous), MAX_FPR * len(normal)
        auroc = precision = f1 = pro = 0.0
        for start in range(0, count, BLOCK):
            scores = anomalous.real[start : start + BLOCK].copy()
            above = len(normal) - np.searchsorted(normal, scores, "right")
            false = len(normal) - np.searchsorted(normal, scores, "left")  # positives at this threshold
            true = count - np.searchsorted(anomalous, scores.astype(np.complex64))
            sizes = anomalous.imag[start : start + BLOCK].astype(np.float64)
            auroc += np.sum(_area(above, false, len(normal)))
            pro += np.sum(_area(above, false, limit) / sizes)
            precision += np.sum(true / (true + false))
            f1 = max(f1, np.max(2 * true / (count + true + false)))
        return {
            "pixel AUROC": float(auroc / (count * len(normal))),
            "pixel AP": float(precision / count),
            "pixel F1": float(f1),
            "mIoU": float(f1 / (2 - f1)),
            "AUPRO": float(pro / (self._components * limit)),
        }

    def pro_curve(self, points: int = 61) -> np.ndarray:
        """The curve whose area is AUPRO, for plots: (points,), at even false-positive rates from 0 to 0.3.

        The share of a component that is found, mean over all, at the lowest threshold that keeps to the rate.

        Raises InputError: as in `compute`.
        """
        normal, anomalous = self._sorted()
        allowed = (np.linspace(0, MAX_FPR, points) * len(normal)).astype(int)
        # The real parts alone would be a copy. Sizes are above 0, so the next score stands before its own.
        after = np.nextafter(normal[len(normal) - 1 - allowed], np.float32(np.inf))
        first = np.searchsorted(anomalous, after.astype(np.complex64))
        gained = [_inverse_sum(anomalous[a:b].imag) for b, a in pairwise([len(anomalous), *first])]
        return np.cumsum(gained) / self._components

    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores of the normal and the anomalous pixels, sorted where they lie; InputError without either."""
        if not self._normal or not self._anomalous:
            got = f"{len(self._normal)} and {len(self._anomalous) // 2}"
            raise InputError(f"needed normal and anomalous pixels, got {got}; add more pictures")
        # Views; as long as one lives, no picture can be added.
        normal, anomalous = np.asarray(self._normal), np.asarray(self._anomalous).view(np.complex64)
        normal.sort()
        anomalous.sort()
        return normal, anomalous


def _inverse_sum(sizes: np.ndarray) -> float:
    """Sum of 1/size, in blocks: of all at once there would be a copy."""
    parts = (sizes[start : start + BLOCK] for start in range(0, len(sizes), BLOCK))
    return float(sum(np.sum(1 / part, dtype=np.float64) for part in parts))


def _area(above: np.ndarray, false: np.ndarray, limit: float) -> np.ndarray:
    """What anomalous pixels add to the area under the curve up to ``limit`` false positives, each (n,).

    The curve, of found anomalous against false positives, rises by 1 for each of them: in a straight
    line from ``above``, the number of normal pixels that score higher, to ``false``, those that score
    as high or higher.
    """
    end = np.minimum(false, limit)
    start = np.minimum(above, limit)
    return limit - end + (end - start) ** 2 / (2 * np.maximum(false - above, 1))


def _checked(anomalous: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Truth values as bool (n,), scores as float64 (n,)."""
    truth, values = np.asarray(anomalous, bool), np.asarray(scores, np.float64)
    if truth.ndim != 1 or truth.shape != values.shape or not len(truth):
        got = f"{truth.shape} and {values.shape}"
        raise InputError(f"needed one truth value per score, and at least one, got {got}")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        count, first = f"{len(bad)} of {len(values)}", f"number {bad[0]}: {values[bad[0]]}"
        raise InputError(f"needed finite scores, got {count} that are not, the first of them {first}")
    return truth, values
