"""Tiles, the region of interest and pooling."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fsad.errors import DivergedError, InputError
from fsad.frames import Frame, read, score_maps, sources


def naive_smooth(pixels, sigma):
    """Gaussian weighted mean of the pixels there are."""
    out = np.empty_like(pixels)
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    for i, j in np.ndindex(*pixels.shape):
        near = (abs(rows - i) <= 3 * sigma) & (abs(columns - j) <= 3 * sigma)
        weights = near * np.exp(-((rows - i) ** 2 + (columns - j) ** 2) / (2 * sigma**2))
        out[i, j] = (weights * pixels).sum() / weights.sum()
    return out


def test_pooling_is_what_it_says():
    size = 64  # sigma 1
    energies = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    maps, scores = score_maps(energies, size)
    upsampled = F.interpolate(energies[:, None].double(), size, mode="bilinear")[:, 0].numpy()
    for anomaly_map, score, pixels in zip(maps, scores, upsampled, strict=True):
        expected = naive_smooth(pixels, 1.0)
        np.testing.assert_allclose(anomaly_map, expected, rtol=1e-4)
        top = np.sort(expected, axis=None)[-round(0.01 * size**2) :]
        assert float(score) == pytest.approx(top.mean(), rel=1e-4)


def test_constant_energy_stays_constant():
    for size, tile in (((64, 64), 64), ((70, 110), 32), ((33, 32), 32)):
        roi = torch.zeros(size, dtype=torch.bool)
        roi[3:20, 5:25] = True
        for inside in (None, roi):
            frame = Frame.of(size, tile, inside)
            anomaly_map, score = frame.pool(torch.full((len(frame.corners), 4, 4), 2.5))
            assert score == pytest.approx(2.5)
            expected = torch.full(size, 2.5) if inside is None else 2.5 * inside
            torch.testing.assert_close(anomaly_map, expected)


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (100, 150), (48, 300)])
def test_tiles_cover_the_picture_and_overlap(size):
    frame = Frame.of(size, 48, None)
    covered = np.zeros(size, dtype=int)
    for top, left in frame.corners:
        assert 0 <= top <= size[0] - 48 and 0 <= left <= size[1] - 48
        covered[top : top + 48, left : left + 48] += 1
    assert covered.min() >= 1
    for starts in zip(*frame.corners, strict=True):
        assert max(np.diff(sorted(set(starts))), default=0) <= 36 + 1


def test_cut_and_assemble_are_inverse():
    picture = torch.rand(3, 90, 130, generator=torch.Generator().manual_seed(0))
    frame = Frame.of((90, 130), 64, None)
    tiles = frame.cut(picture)
    assert tiles.shape == (6, 3, 64, 64)
    whole = Frame((90, 130), ((0, 0),), (90, 130)).assemble(picture[:1])
    stitched = frame.assemble(tiles[:, 0])
    # Only the width of the Gaussian differs: compare far below it.
    assert (stitched - whole).abs().mean() < 0.05


def test_seams_are_blended():
    """Energies that rise towards the borders of tiles hardly show in the middle of the picture."""
    ramp = (torch.arange(16) - 7.5).abs() / 7.5
    tile = torch.maximum(ramp[:, None], ramp[None, :]) ** 4
    frame = Frame.of((64, 112), 64, None)
    middle = frame.assemble(tile.expand(len(frame.corners), 16, 16))[28:36, 40:72]
    assert float(middle.max()) < 0.45  # more than half, if not blended


def test_tiles_without_pixels_that_count_are_left_out():
    roi = torch.zeros(96, 200, dtype=torch.bool)
    roi[:, :30] = True
    frame = Frame.of((96, 200), 48, roi)
    assert {left for _, left in frame.corners} == {0}
    positions = frame.positions((6, 6))
    assert positions.shape == (len(frame.corners), 6, 6)
    assert positions[:, :, :4].all() and not positions[:, :, 4:].any()
    with pytest.raises(InputError, match="empty"):
        Frame.of((96, 200), 48, torch.zeros(96, 200, dtype=torch.bool))


def test_outside_does_not_leak_in():
    roi = torch.zeros(64, 64, dtype=torch.bool)
    roi[:, :32] = True
    frame = Frame.of((64, 64), 64, roi)
    energy = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    worse = energy.clone()
    worse[:, :, 4:] += 1000
    torch.testing.assert_close(frame.assemble(worse), frame.assemble(energy))


def test_numbers_that_are_not_finite():
    energy = torch.ones(1, 8, 8)
    energy[0, 2, 3] = float("nan")
    with pytest.raises(DivergedError, match="nan"):
        Frame.of((64, 64), 64, None).pool(energy)


def test_read():
    pixels = np.random.default_rng(0).random((40, 60, 3), dtype=np.float32)
    picture = read(pixels, 32, None, None, None)
    assert picture.tiles.shape == (1, 3, 32, 32) and picture.size == (40, 60)
    tiled = read(pixels, 32, 40, None, None)
    assert tiled.frame.size == (40, 60)
    torch.testing.assert_close(tiled.tiles[0], torch.from_numpy(pixels[:, :40]).permute(2, 0, 1))
    with pytest.raises(InputError, match="60 x 40 pixels"):
        read(pixels, 32, 41, None, None)


def test_sources_of_no_kind():
    with pytest.raises(InputError, match="NoneType"):
        sources(None)
