"""Thresholds: what they promise, measured on scores of known distribution."""

import numpy as np
import pytest
import torch

from fsad import SparseCodingLayer, calibration
from fsad.calibration import Support, Threshold, known_bad_threshold, normal_threshold, suspects
from fsad.errors import InputError
from fsad.frames import Frame


def measured(rng, false_alarm, count, draw=None, trials=4000):
    """Share of new scores above thresholds made from ``count`` scores of the same distribution."""
    draw = draw or rng.normal
    tables = draw(size=(trials, count + 1))
    above = [row[-1] > normal_threshold(row[:-1], false_alarm).value for row in tables]
    return float(np.mean(above))


@pytest.mark.parametrize(("false_alarm", "count"), [(0.1, 10), (0.1, 9), (0.25, 10), (0.05, 40)])
def test_conformal_level_is_kept_and_not_wasted(false_alarm, count):
    rng = np.random.default_rng(0)
    assert normal_threshold(range(count), false_alarm).kind == "conformal"
    for draw in (rng.normal, rng.standard_cauchy):  # whatever the distribution
        share = measured(rng, false_alarm, count, draw)
        assert false_alarm - 1 / (count + 1) - 0.015 < share < false_alarm + 0.015


def test_conformal_rank():
    scores = [3.0, 1.0, 2.0, 9.0, 4.0, 5.0, 8.0, 7.0, 6.0]
    assert normal_threshold(scores, 0.1).value == 9.0  # the finest level of 9 pictures
    assert normal_threshold(scores, 0.2).value == 8.0
    assert normal_threshold(scores, 0.5).value == 5.0
    assert normal_threshold(scores, 0.5).scores == tuple(scores)


def test_finer_levels_are_extrapolated_and_say_so():
    rng = np.random.default_rng(1)
    assert normal_threshold(range(10), 0.09).kind == "extrapolated"
    # Exact for log-normal scores, also from few of them.
    assert measured(rng, 0.05, 4, rng.lognormal, trials=12000) == pytest.approx(0.05, abs=0.006)
    scores = rng.lognormal(size=10)
    levels = [normal_threshold(scores, level).value for level in (0.1, 0.05, 0.01, 1e-4)]
    assert levels == sorted(levels)
    assert "1/(10 + 1) = 9.09 %" in str(normal_threshold(scores, 0.01))
    # Equal scores say nothing about the spread, but stay finite.
    assert normal_threshold([2.0, 2.0], 0.01).value == pytest.approx(2.0)
    assert np.isfinite(normal_threshold([0.0, 0.0, 0.0], 0.01).value)
    with pytest.raises(InputError, match="give more"):
        normal_threshold([1.0, 2.0], 1e-4)


def test_one_score_is_uncalibrated():
    threshold = normal_threshold([0.7], 0.1)
    assert threshold == Threshold(0.7, "uncalibrated", None, (0.7,))


@pytest.mark.parametrize("false_alarm", [0, 1, -0.1, float("nan")])
def test_false_alarm_must_be_a_share(false_alarm):
    with pytest.raises(InputError, match="between 0 and 1"):
        normal_threshold([1.0, 2.0], false_alarm)


def test_known_bad_scores():
    threshold = known_bad_threshold([1.0, 1.2, 0.9], [5.2, 3.2])
    assert (threshold.value, threshold.kind) == (pytest.approx(2.2), "known-bad")
    assert threshold.false_alarm == 0
    # Overlap: below 2 a third of the normal ones is lost, above it half of the bad ones.
    overlapping = known_bad_threshold([1.0, 1.1, 3.0], [2.0, 4.0])
    assert overlapping.value == pytest.approx(1.55)
    assert overlapping.false_alarm == pytest.approx(1 / 3)
    for useless in ([], [0.5], [1.0]):
        with pytest.raises(InputError, match="score no higher"):
            known_bad_threshold([1.0, 1.0, 1.0], useless)


def test_every_kind_explains_itself():
    for kind in ("conformal", "extrapolated", "uncalibrated", "known-bad", "manual"):
        sentence = str(Threshold(0.5, kind, None if kind == "manual" else 0.1, (0.1, 0.2)))
        assert sentence.startswith("Threshold 0.5: ") and sentence.endswith(".")


def test_suspects():
    scores = [1.0, 1.1, 0.9, 1.05, 3.0, 0.95]
    ((index, reason),) = suspects(scores)
    assert index == 4 and "3" in reason
    assert suspects([1.0, 1.1, 0.9, 1.05, 1.3, 0.95]) == []  # apart, but not by much
    assert suspects([1.0, 2.0, 3.0, 4.0, 5.0]) == []  # wide, but nothing stands apart
    assert suspects([1.0]) == suspects([1.0, 1.0]) == []
    assert [index for index, _ in suspects([1.0, 1.0, 1.0, 2.1])] == [3]
    assert suspects([1.0, 1.0, 1.0, 1.9]) == []
    assert suspects([1.0, 1.1, 0.9, 1.05, 0.1]) == []  # better than the rest is no reason


def test_suspects_are_rare_among_like_pictures():
    rng = np.random.default_rng(2)
    scores = np.exp(rng.normal(0, 0.25, (2000, 10)))
    assert np.mean([len(suspects(row)) > 0 for row in scores]) < 0.05


def coded_by_other_quarters(settings, features, middle, mask):
    """Energy (h, w) of features (1, c, h, w), position by position."""
    energy = torch.empty(features.shape[2:])
    rows, columns = torch.meshgrid(*map(torch.arange, energy.shape), indexing="ij")
    for row, column in np.ndindex(*energy.shape):
        same = ((rows < middle[0]) == (row < middle[0])) & ((columns < middle[1]) == (column < middle[1]))
        layer = SparseCodingLayer(**settings).adapt(features, ~same & mask)
        energy[row, column] = layer(features, mask=mask[None]).energy[0, row, column]
    return energy


@pytest.mark.parametrize("settings", [{}, {"center": True, "drift": 0.35}], ids=str)
def test_single_picture_is_coded_by_its_other_quarters(settings):
    features = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(8, 8, dtype=torch.bool)
    support = Support(features, None, Frame.of((64, 64), 64, None))
    expected = support.frame.pool(coded_by_other_quarters(settings, features, (4, 4), mask)[None])[1]
    assert calibration.held_out_scores(settings, [support], 0) == [pytest.approx(expected, rel=1e-5)]
    # Of a region of interest, its own quarters.
    roi = torch.zeros(64, 64, dtype=torch.bool)
    roi[32:, 16:48] = True
    support = Support(features, None, Frame.of((64, 64), 64, roi))
    mask = support.frame.positions((8, 8))
    energy = coded_by_other_quarters(settings, features, (6, 4), mask[0])
    expected = support.frame.pool(energy[None])[1]
    support = support._replace(mask=mask)
    assert calibration.held_out_scores(settings, [support], 0) == [pytest.approx(expected, rel=1e-5)]


def test_quarters_of_a_tiled_picture_are_those_of_the_picture():
    """Tiles overlap: what is held out in one must not stay in another."""
    frame = Frame.of((64, 100), 64, None)
    assert frame.corners == ((0, 0), (0, 36))
    quarters = calibration._quarters(frame, (16, 16))
    assert quarters[0, 0, 12] == 0 and quarters[0, 0, 13] == 1  # the middle is column 50
    assert quarters[1, 0, 3] == 0 and quarters[1, 0, 4] == 1
    assert quarters[:, 8:, 0].eq(2).all()
