"""Metrics against their definitions, computed with fractions from all thresholds and all pairs."""

import math
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise, product
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from fsad import metrics
from fsad.errors import InputError
from fsad.metrics import PixelMetrics, confidence_interval, frame_auc, image_metrics

CLOSE = {"rel": 1e-12, "abs": 1e-12}
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a machine may be busy


def components(mask):
    """The pixels of each 8-connected component, by flood fill."""
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, []
    while left:
        component, front = [], [left.pop()]
        while front:
            y, x = front.pop()
            component.append((y, x))
            near = {(y + dy, x + dx) for dy, dx in product((-1, 0, 1), repeat=2)} & left
            left -= near
            front += near
        found.append(component)
    return found


def auroc(positive, negative):
    """The share of pairs in the right order; a tie is half a pair."""
    wins = sum(2 * (p > n) + (p == n) for p in positive for n in negative)
    return Fraction(wins, 2 * len(positive) * len(negative))


def ap_and_f1(positive, negative):
    ap, f1, recall = Fraction(0), Fraction(0), Fraction(0)
    for threshold in sorted({*positive, *negative}, reverse=True):
        true = sum(score >= threshold for score in positive)
        false = sum(score >= threshold for score in negative)
        ap += (Fraction(true, len(positive)) - recall) * Fraction(true, true + false)
        recall = Fraction(true, len(positive))
        f1 = max(f1, Fraction(2 * true, len(positive) + true + false))
    return ap, f1


def pro_curve(regions, negative):
    """(false-positive rate, mean share of a region found) at every threshold, the highest first."""
    curve = [(Fraction(0), Fraction(0))]
    for threshold in sorted({*negative, *(s for region in regions for s in region)}, reverse=True):
        fpr = Fraction(sum(score >= threshold for score in negative), len(negative))
        shares = [Fraction(sum(s >= threshold for s in region), len(region)) for region in regions]
        curve.append((fpr, sum(shares) / len(regions)))
    return curve


def aupro(regions, negative, limit=Fraction(3, 10)):
    area = Fraction(0)
    for (x0, y0), (x1, y1) in pairwise(pro_curve(regions, negative)):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            at_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + at_end) / 2
    return area / limit


def by_definition(pictures):
    positive = [int(s) for scores, mask in pictures for s in scores[mask]]
    negative = [int(s) for scores, mask in pictures for s in scores[~mask]]
    regions = [[int(scores[p]) for p in region] for scores, mask in pictures for region in components(mask)]
    ap, f1 = ap_and_f1(positive, negative)
    best_iou = max(
        Fraction(sum(s >= t for s in positive), len(positive) + sum(s >= t for s in negative))
        for t in {*positive, *negative}
    )
    values = (auroc(positive, negative), ap, f1, best_iou, aupro(regions, negative))
    return dict(
        zip(("pixel AUROC", "pixel AP", "pixel F1", "mIoU", "AUPRO"), map(float, values), strict=True)
    )


def measured(pictures):
    pixels = PixelMetrics()
    for scores, mask in pictures:
        pixels.add(scores.astype(np.float32), mask)
    return pixels.compute()


@st.composite
def pictures(draw):
    """One to three pictures of any sizes, with few distinct scores and pixels of both classes."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(arrays.array_shapes(min_dims=2, max_dims=2, max_side=6))
        scores = draw(arrays.arrays(np.int64, shape, elements=st.integers(-4, draw(st.integers(-4, 9)))))
        mask = draw(
            arrays.arrays(bool, shape) | st.just(np.ones(shape, bool)) | st.just(np.zeros(shape, bool))
        )
        found.append((scores, mask))
    return [*found, (np.array([[draw(st.integers(-4, 9)), 3]]), np.array([[True, False]]))]


@UNHURRIED
@given(pictures())
def test_pixel_metrics_are_what_their_definitions_say(found):
    expected = pytest.approx(by_definition(found), **CLOSE)
    assert measured(found) == expected
    with mock.patch.object(metrics, "BLOCK", 3):  # ties and components across blocks
        assert measured(found) == expected


@UNHURRIED
@given(pictures())
def test_the_curve_for_plots_keeps_to_its_rates(found):
    negative = [int(s) for scores, mask in found for s in scores[~mask]]
    regions = [[int(scores[p]) for p in region] for scores, mask in found for region in components(mask)]
    pixels = PixelMetrics()
    for scores, mask in found:
        pixels.add(scores, mask)
    curve = pro_curve(regions, negative)
    expected = [
        max(share for fpr, share in curve if fpr * len(negative) <= int(rate * len(negative)))
        for rate in np.linspace(0, 0.3, 7)
    ]
    with mock.patch.object(metrics, "BLOCK", 3):
        np.testing.assert_allclose(pixels.pro_curve(7), [float(share) for share in expected], atol=1e-6)


@UNHURRIED
@given(pictures(), st.randoms(use_true_random=False))
def test_neither_scale_nor_order_changes_pixel_metrics(found, random):
    values = measured(found)
    for transform in (lambda s: 3 * s - 7, lambda s: s**3, lambda s: np.exp2(2.0 * s)):
        assert measured([(transform(scores), mask) for scores, mask in found]) == values
    assert measured(random.sample(found, len(found))) == values
    assert measured([(scores.T, mask.T) for scores, mask in found]) == values


@UNHURRIED
@given(pictures(), pictures())
def test_pictures_may_be_added_after_computing(first, second):
    pixels = PixelMetrics()
    for found in (first, second):
        for scores, mask in found:
            pixels.add(scores, mask)
        values = pixels.compute()
    assert values == pixels.compute() == measured(first + second)


def test_perfect_inverted_and_constant_maps():
    mask = np.zeros((10, 10), bool)
    mask[2:4, 3:8] = mask[9, 0] = True  # 11 pixels, of which one in a corner
    assert measured([(mask, mask)]) == pytest.approx(dict.fromkeys(measured([(mask, mask)]), 1.0))
    constant = {"pixel AUROC": 0.5, "pixel AP": 0.11, "pixel F1": 22 / 111, "mIoU": 0.11, "AUPRO": 0.15}
    assert measured([(np.ones((10, 10)), mask)]) == pytest.approx(constant)
    inverted = measured([(~mask, mask)])
    assert (inverted["pixel AUROC"], inverted["AUPRO"]) == (0, 0)


@pytest.mark.parametrize(
    ("defects", "share"),
    [
        ([(0, 0), (1, 1), (2, 0)], 1 / 3),  # diagonal neighbours: one component, of which a third is found
        ([(0, 0), (0, 2), (0, 4)], 1 / 3),  # three components, of which one
        ([(0, 0), (0, 3), (0, 4)], 1 / 2),  # the first of two
        ([(0, 0), (4, 4), (4, 3)], 1 / 2),
    ],
)
def test_components(defects, share):
    mask, scores = np.zeros((5, 5), bool), np.zeros((5, 5))
    mask[tuple(zip(*defects, strict=True))] = True
    scores[~mask] = 1  # before any pixel but the first of the defects, all others are called anomalous
    scores[0, 0] = 2
    assert measured([(scores, mask)])["AUPRO"] == pytest.approx(share)


def test_a_component_counts_as_much_as_any_other():
    mask = np.zeros((8, 8), bool)
    mask[:5] = mask[7, 7] = True
    scores = np.where(mask, 0, 1)
    scores[7, 7] = 2
    assert measured([(scores, mask)])["AUPRO"] == pytest.approx(1 / 2)
    assert measured([(scores, mask)])["pixel AUROC"] == pytest.approx(1 / 41)


def test_many_pixels_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    mask = rng.random((500, 500)) < 0.5  # more anomalous pixels than one block
    scores = rng.integers(0, 100_000, mask.shape) + 9000 * mask
    values = measured([(scores[:200], mask[:200]), (scores[200:], mask[200:])])
    assert mask.sum() > metrics.BLOCK
    assert values["pixel AUROC"] == pytest.approx(roc_auc_score(mask.ravel(), scores.ravel()), **CLOSE)
    assert values["pixel AP"] == pytest.approx(average_precision_score(mask.ravel(), scores.ravel()), **CLOSE)


def test_what_pixel_metrics_refuse():
    scores, mask = np.zeros((2, 3), np.float32), np.zeros((2, 3), bool)
    pixels = PixelMetrics()
    with pytest.raises(InputError, match=r"got \(2, 3\) and \(3, 2\)"):
        pixels.add(scores, mask.T)
    with pytest.raises(InputError, match=r"map \(H, W\).*got \(6,\)"):
        pixels.add(scores.ravel(), mask.ravel())
    with pytest.raises(InputError, match="uint8"):
        pixels.add(scores, mask.astype(np.uint8))
    for bad in (math.nan, math.inf):
        with pytest.raises(InputError, match="1 of 6"):
            pixels.add(np.where([[1, 0, 0], [0, 0, 0]], bad, scores), mask)
    with pytest.raises(InputError, match="got 0 and 0"):  # nothing of the above stayed
        pixels.compute()
    pixels.add(scores, mask)
    with pytest.raises(InputError, match="got 6 and 0"):
        pixels.compute()
    with pytest.raises(InputError, match="got 0 and 6"):
        measured([(scores, ~mask)])


labelled = st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), max_size=12).map(
    lambda rows: ([True, False, *(r[0] for r in rows)], [1, 0, *(r[1] for r in rows)])
)


def split(truth, scores):
    pairs = list(zip(truth, scores, strict=True))
    return [s for t, s in pairs if t], [s for t, s in pairs if not t]


@UNHURRIED
@given(labelled, st.randoms(use_true_random=False))
def test_image_metrics_are_what_their_definitions_say(found, random):
    truth, scores = found
    classes = split(truth, scores)
    expected = map(float, (auroc(*classes), *ap_and_f1(*classes)))
    expected = dict(zip(("image AUROC", "image AP", "image F1"), expected, strict=True))
    assert image_metrics(truth, scores) == pytest.approx(expected, **CLOSE)
    order = random.sample(range(len(truth)), len(truth))
    shuffled = np.array(truth)[order], np.exp(np.array(scores))[order]
    assert image_metrics(*shuffled) == pytest.approx(expected, **CLOSE)


def test_images_known_values():
    assert set(image_metrics([0, 1, 1], [1.0, 2.0, 3.0]).values()) == {1.0}
    constant = {"image AUROC": 0.5, "image AP": 0.25, "image F1": 0.4}
    assert image_metrics([0, 1, 0, 0], [7, 7, 7, 7]) == pytest.approx(constant)


@pytest.mark.parametrize(
    ("truth", "scores", "message"),
    [
        ([0, 1, 1], [1, math.nan, math.inf], "2 of 3 that are not, the first of them number 1: nan"),
        ([0, 1, 1], [1, 2], r"\(3,\) and \(2,\)"),
        ([], [], r"at least one, got \(0,\)"),
        ([[0, 1]], [[0, 1]], "one truth value per score"),
        ([1, 1], [1, 2], "2 that are all anomalous"),
        ([0, 0, 0], [1, 2, 3], "3 that are all normal"),
    ],
)
def test_what_image_and_video_metrics_refuse(truth, scores, message):
    with pytest.raises(InputError, match=message):
        image_metrics(truth, scores)
    for normalise in (False, True):
        with pytest.raises(InputError, match=message):
            frame_auc([(truth, scores)], normalise)
    with pytest.raises(InputError, match="no videos"):
        frame_auc([], True)


@UNHURRIED
@given(st.lists(labelled, min_size=1, max_size=4), st.lists(st.integers(-9, 9), max_size=3))
def test_frames_of_all_videos_are_pooled(videos, constants):
    videos = [*videos, *(([True, False], [c, c]) for c in constants)]
    pooled, normalised = [], []
    for truth, scores in videos:
        low, high = min(scores), max(scores)
        pooled += zip(truth, scores, strict=True)
        normalised += zip(truth, [Fraction(s - low, max(high - low, 1)) for s in scores], strict=True)
    for rows, normalise in ((pooled, False), (normalised, True)):
        expected = auroc(*split(*zip(*rows, strict=True)))
        assert frame_auc(videos, normalise) == pytest.approx(float(expected), **CLOSE)


def test_a_video_may_have_one_class():
    videos = [([1, 1], [5.0, 6.0]), ([0, 0], [8.0, 9.0])]
    assert frame_auc(videos, normalise=False) == 0
    assert frame_auc(videos, normalise=True) == 0.5


def test_confidence_interval():
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = confidence_interval(values)
    assert (low, high) == confidence_interval(list(values), 0.95, 10_000, 0)
    assert (low, high) != confidence_interval(values, seed=1)
    half = stats.norm.ppf(0.975) * values.std() / 20  # the mean of 400 is near normal
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    inner = confidence_interval(values, level=0.5)
    assert inner[1] - inner[0] == pytest.approx((high - low) * 0.6745 / 1.96, rel=0.05)
    assert confidence_interval([0.3]) == (0.3, 0.3)
    assert confidence_interval([0, 1], resamples=1)[0] in (0, 0.5, 1)


@pytest.mark.parametrize("values", [[], [1, math.nan], [[1, 2]], 3])
def test_what_confidence_interval_refuses(values):
    with pytest.raises(InputError, match="finite numbers"):
        confidence_interval(values)
    with pytest.raises(InputError, match="got 95"):
        confidence_interval([1, 2], level=95)
    with pytest.raises(InputError, match="and 0"):
        confidence_interval([1, 2], resamples=0)


FILL = """
import sys
import numpy as np
from fsad.metrics import PixelMetrics

def peak():  # not getrusage, whose peak is that of the parent before exec, too
    return next(int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line)

count, rows = int(sys.argv[1]), int(sys.argv[2])
mask, rng = np.zeros((256, 256), bool), np.random.default_rng(0)
mask[:rows] = True
warm = PixelMetrics()
warm.add(mask, mask)
warm.compute()
warm.pro_curve()
base, pixels = peak(), PixelMetrics()
for _ in range(count):
    pixels.add(rng.random(mask.shape, np.float32) + mask / 2, mask)
assert 0.8 < pixels.compute()["pixel AUROC"] < 0.9
assert 0.5 < pixels.pro_curve()[-1] < 0.9
print((peak() - base) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_ten_thousand_pictures_would_fit_in_4_gib(share):
    """A twentieth of them, with few anomalous pixels and with many, the curve for plots included."""
    count, pixels = 520, 520 * 65_536
    command = [sys.executable, "-c", FILL, str(count), str(round(256 * share))]
    growth = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    kept = pixels * (4 + 4 * share) * 33 / 32  # 4 bytes, and 8 for an anomalous one
    assert 4 * pixels < growth < kept + 16e6
    assert kept * 10_000 / count + 16e6 < 2**32
