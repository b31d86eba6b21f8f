"""FewShotDetector through its public face, with a tiny backbone and procedural pictures."""

import io

import numpy as np
import pytest
import torch
from detectors import BAD, DEFECT, GOOD, NORMAL, SIDE, TinyBackbone, make, odd, picture
from PIL import Image
from sklearn.base import clone

from fsad import FewShotDetector, SparseCodingLayer
from fsad.errors import DivergedError, InputError, NotAdaptedError


def test_tells_bad_from_good(detector):
    assert detector.anomaly_scores(GOOD).max() < detector.anomaly_scores(BAD).min()
    assert (detector.predict(BAD) == -1).all()
    assert (detector.predict(GOOD) == 1).mean() >= 0.8


def test_signs_and_decisions_agree(detector):
    scores = detector.anomaly_scores(GOOD + BAD)
    assert scores.dtype == np.float64
    np.testing.assert_array_equal(detector.score_samples(GOOD + BAD), -scores)
    anomalous = scores > detector.threshold_.value
    np.testing.assert_array_equal(detector.predict(GOOD + BAD), np.where(anomalous, -1, 1))
    assert [r.anomalous for r in detector.iter_results(GOOD + BAD)] == anomalous.tolist()
    (score,) = detector.anomaly_scores(GOOD[0])
    assert detector.set_threshold(score).predict(GOOD[0]) == [1]  # not above it
    assert detector.set_threshold(np.nextafter(score, 0)).predict(GOOD[0]) == [-1]


def test_every_kind_of_input_gives_the_same_scores(detector, tmp_path):
    pictures = GOOD[:3]
    expected = detector.anomaly_scores(pictures)
    batch = np.stack(pictures)
    tensors = torch.from_numpy(batch).permute(0, 3, 1, 2)
    images = [Image.fromarray(each) for each in pictures]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    encoded = io.BytesIO()
    images[0].save(encoded, "PNG")
    same = {
        "array": batch,
        "float array": batch.astype(np.float64) / 255,
        "tensor": tensors,
        "list of tensors": list(tensors),
        "float tensor": tensors.float() / 255,
        "PIL": images,
        "paths": paths,
        "strings": [str(path) for path in paths],
        "folder": tmp_path,
        "iterator": iter(pictures),
    }
    for kind, given in same.items():
        np.testing.assert_allclose(detector.anomaly_scores(given), expected, rtol=1e-5, err_msg=kind)
    for one in (pictures[0], tensors[0], images[0], paths[0], encoded.getvalue()):
        np.testing.assert_allclose(detector.anomaly_scores(one), expected[:1], rtol=1e-5)
    assert detector.anomaly_scores([]).shape == detector.predict([]).shape == (0,)
    assert detector.anomaly_maps([]).shape == (0, SIDE, SIDE)


def test_scores_do_not_depend_on_the_batch(detector):
    alone = [detector.anomaly_scores(each)[0] for each in GOOD]
    np.testing.assert_allclose(detector.anomaly_scores(GOOD), alone, rtol=1e-5)
    detector.set_params(batch_size=5)
    np.testing.assert_allclose(detector.anomaly_scores(GOOD), alone, rtol=1e-5)


def test_pictures_are_read_as_they_are_needed(detector):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield GOOD[0]

    results = detector.iter_results(endless())
    for _ in range(3):
        next(results)
    assert read <= detector.batch_size


def test_unreadable_pictures_are_named_and_the_rest_goes_on(detector, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    results = list(detector.iter_results([GOOD[0], broken, GOOD[1]], on_error="skip"))
    assert [result.error is None for result in results] == [True, False, True]
    assert "broken.png" in results[1].error
    assert results[1].source == broken
    assert results[1].score is results[1].anomalous is results[1].anomaly_map is None
    assert results[0].size == (SIDE, SIDE)
    with pytest.raises(InputError, match=r"broken\.png"):
        detector.anomaly_scores([GOOD[0], broken])
    with pytest.raises(InputError, match="on_error"):
        list(detector.iter_results(GOOD, on_error="ignore"))
    only_broken = list(detector.iter_results([broken], on_error="skip"))
    assert len(only_broken) == 1 and only_broken[0].error


def test_maps_show_the_defect(detector):
    maps = detector.anomaly_maps(BAD)
    assert maps.shape == (len(BAD), SIDE, SIDE) and maps.dtype == np.float32
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    inside[DEFECT] = True
    for each in maps:
        assert each[inside].mean() > 3 * each[~inside].mean()


def test_gradient_maps_are_those_of_the_model_and_leave_the_scores_alone(detector):
    scores, energy_maps = detector.anomaly_scores(BAD), detector.anomaly_maps(BAD)
    detector.set_params(map_kind="gradient", batch_size=4)
    maps = detector.anomaly_maps(BAD)
    tensors = torch.from_numpy(np.stack(BAD)).permute(0, 3, 1, 2).float() / 255
    gradients = detector.model_.anomaly_map(tensors, kind="gradient").numpy()
    for smoothed, plain, energy_map in zip(maps, gradients, energy_maps, strict=True):
        # Smoothing moves little from one place to another.
        assert smoothed.sum() == pytest.approx(plain.sum(), rel=0.05)
        assert np.corrcoef(smoothed.ravel(), plain.ravel())[0, 1] > 0.6
        assert np.corrcoef(smoothed.ravel(), energy_map.ravel())[0, 1] < 0.6
    np.testing.assert_allclose(detector.anomaly_scores(BAD), scores, rtol=1e-5)


def test_score_is_the_mean_of_the_top_of_the_map(detector):
    for result in detector.iter_results(BAD):
        top = np.sort(result.anomaly_map, axis=None)[-round(0.01 * SIDE**2) :]
        assert result.score == pytest.approx(top.mean(), rel=1e-5)


def test_held_out_scores_come_from_the_other_pictures(adapted):
    for i in (0, 7):
        others = make().fit(NORMAL[:i] + NORMAL[i + 1 :])
        expected = others.anomaly_scores(NORMAL[i])[0]
        assert adapted.threshold_.scores[i] == pytest.approx(expected, rel=0.01)
    # Their own pictures in the dictionary would make them lower.
    assert np.mean(adapted.threshold_.scores) > 1.1 * adapted.anomaly_scores(NORMAL).mean()


def test_large_supports_are_held_out_in_groups():
    pictures = [picture(300 + seed) for seed in range(23)]
    first, again, other_groups = (make(seed=seed).fit(pictures) for seed in (0, 0, 1))
    assert len(first.threshold_.scores) == 23 and min(first.threshold_.scores) > 0
    assert first.threshold_ == again.threshold_
    assert first.threshold_.scores != other_groups.threshold_.scores


def test_one_picture_is_enough_but_uncalibrated():
    detector = make().fit(NORMAL[0])
    assert detector.threshold_.kind == "uncalibrated"
    assert "one normal" in str(detector.threshold_)
    # Its positions have not coded themselves.
    assert detector.threshold_.value > detector.anomaly_scores(NORMAL[0])[0]
    detector.update(GOOD, representative=True)
    assert detector.threshold_.kind == "conformal"
    assert len(detector.threshold_.scores) == len(GOOD)


def test_set_threshold(detector):
    before = detector.threshold_
    assert before.kind == "conformal" and before.value == max(before.scores)
    assert detector.set_threshold(0.5).threshold_.kind == "manual"
    assert detector.threshold_.value == 0.5
    assert detector.set_threshold(false_alarm=0.5).threshold_.value < before.value
    assert detector.set_threshold(false_alarm=0.001).threshold_.kind == "extrapolated"
    assert detector.threshold_.value > before.value
    assert detector.set_threshold(false_alarm=0.1).threshold_ == before
    detector.set_threshold(bad=BAD)
    assert detector.threshold_.kind == "known-bad"
    middle = (max(before.scores) + detector.anomaly_scores(BAD).min()) / 2
    assert detector.threshold_.value == pytest.approx(middle)
    for wrong in ({}, {"value": 1, "bad": BAD}, {"value": float("nan")}, {"false_alarm": 0}):
        with pytest.raises(InputError):
            detector.set_threshold(**wrong)
    with pytest.raises(InputError, match="score no higher"):
        detector.set_threshold(bad=np.zeros((SIDE, SIDE, 3), np.uint8))  # no features, no energy
    assert detector.threshold_.kind == "known-bad"  # what failed has changed nothing


def test_points_out_a_support_picture_unlike_the_rest(adapted):
    assert adapted.suspects_ == []
    detector = make().fit([*NORMAL[:4], BAD[0], *NORMAL[4:]])
    assert [index for index, _ in detector.suspects_] == [4]


@pytest.mark.parametrize("through_file", [False, True])
def test_update_accepts_a_good_part_wrongly_rejected(detector, tmp_path, through_file):
    if through_file:
        detector.save(tmp_path / "part.fsad")
        detector = FewShotDetector.load(tmp_path / "part.fsad", backbone=TinyBackbone())
    threshold = detector.threshold_
    assert detector.predict(odd(1)) == [-1]
    detector.update(odd(1))
    assert detector.predict(odd(1)) == [1]
    assert detector.threshold_ == threshold  # one picked by hand is no fair sample
    assert detector.n_support_ == 11
    assert (detector.predict(GOOD) == 1).mean() >= 0.8
    assert (detector.predict(BAD) == -1).all()


def test_update_with_a_fair_sample_calibrates(detector):
    scores = detector.anomaly_scores(GOOD)
    before = detector.threshold_.scores
    detector.update(GOOD, representative=True)
    np.testing.assert_allclose(detector.threshold_.scores, [*before, *scores], rtol=1e-5)
    assert detector.threshold_.kind == "conformal"
    detector.set_threshold(0.4).update(GOOD[0], representative=True)
    assert (detector.threshold_.value, detector.threshold_.kind) == (0.4, "manual")
    assert len(detector.threshold_.scores) == 10 + len(GOOD) + 1


def test_dictionary_is_thinned(detector):
    assert detector.model_.sparse_coding.num_atoms == 100
    assert detector.update(GOOD).model_.sparse_coding.num_atoms == 100
    default = make(sparse_coding=None, input_size=96).fit(NORMAL[:4])
    assert default.model_.sparse_coding.num_atoms == 256 < 4 * 24**2


@pytest.mark.parametrize("settings", [{}, {"center": True, "drift": 1}], ids=str)
def test_region_of_interest(settings):
    roi = np.zeros((SIDE, SIDE), dtype=bool)
    roi[:, :20] = True  # the defects of BAD lie right of it
    all_atoms = SparseCodingLayer(**settings)
    whole = make(sparse_coding=all_atoms).fit(NORMAL[:4])
    part = make(sparse_coding=all_atoms, roi=roi).fit(NORMAL[:4])
    assert whole.model_.sparse_coding.num_atoms == 4 * 12 * 12
    assert part.model_.sparse_coding.num_atoms == 4 * 12 * 5
    clean = [picture(200 + seed) for seed in range(len(BAD))]
    noise = [(slice(0, SIDE), slice(27, SIDE))]
    hidden = [picture(200 + seed, noise[0]) for seed in range(len(BAD))]
    np.testing.assert_allclose(part.anomaly_scores(hidden), part.anomaly_scores(clean), rtol=1e-5)
    assert (whole.anomaly_scores(hidden) > 2 * whole.anomaly_scores(clean)).all()
    maps = part.anomaly_maps(hidden)
    assert (maps[:, ~roi] == 0).all() and (maps[:, roi] > 0).all()
    inside = picture(1, (slice(10, 20), slice(5, 15)))
    assert part.predict(inside) == [-1]


def test_nothing_outside_the_region_of_interest_tells_of_a_drift():
    """Neither of support, held out, joining later or scored; nor in a gradient's map."""
    roi = np.zeros((SIDE, SIDE), dtype=bool)
    roi[:, :20] = True
    found = []
    for outside in (None, (slice(0, SIDE), slice(27, SIDE))):
        normal = [picture(seed, outside) for seed in range(8)]
        layer = SparseCodingLayer(center=True, drift=1, max_atoms=100)
        detector = make(sparse_coding=layer, roi=roi, map_kind="gradient").fit(normal[:4])
        detector.update(normal[4:], representative=True)
        scores = detector.threshold_.scores, detector.anomaly_scores(normal)
        found.append([*scores, detector.anomaly_maps(normal[0])[0, :, :14]])
    for clean, noisy in zip(*found, strict=True):
        np.testing.assert_allclose(noisy, clean, rtol=1e-4)


def test_augment_turns_the_region_of_interest_too():
    """Noise outside of it must not become normal."""
    roi = np.zeros((SIDE, SIDE), dtype=bool)
    roi[: SIDE // 2] = True
    below, above = slice(SIDE // 2 + 4, SIDE), slice(0, SIDE // 2)
    detector = make(roi=roi, augment=True).fit([picture(i, below) for i in range(4)])
    clean, noisy = detector.anomaly_scores([picture(50, below), picture(51, above)])
    assert noisy > 3 * clean


def test_roi_is_resized_and_may_not_be_empty():
    roi = np.zeros((4 * SIDE, 4 * SIDE), dtype=np.uint8)
    roi[: 2 * SIDE] = 7  # anything but 0 counts
    maps = make(roi=roi).fit(NORMAL[:2]).anomaly_maps(BAD[0])
    assert (maps[0, : SIDE // 2] > 0).all() and (maps[0, SIDE // 2 :] == 0).all()
    with pytest.raises(InputError, match="empty"):
        make(roi=np.zeros((SIDE, SIDE))).fit(NORMAL[:2])


def test_tiles_keep_the_size_of_large_pictures():
    shape = (100, 140)
    normal = [picture(seed, shape=shape) for seed in range(4)]
    detector = make(tile=SIDE, map_kind="energy").fit(normal)
    defect = slice(70, 80), slice(110, 120)
    bad = picture(50, defect, shape)
    assert detector.predict([bad, picture(51, shape=shape)]).tolist() == [-1, 1]
    (anomaly_map,) = detector.anomaly_maps(bad)
    assert anomaly_map.shape == shape
    row, column = np.unravel_index(anomaly_map.argmax(), shape)
    assert 66 <= row < 84 and 106 <= column < 124
    other = picture(52, shape=(60, 60))
    sizes = [result.anomaly_map.shape for result in detector.iter_results([bad, other])]
    assert sizes == [shape, (60, 60)]
    with pytest.raises(InputError, match="iter_results"):
        detector.anomaly_maps([bad, other])
    with pytest.raises(InputError, match="smaller tiles"):
        detector.anomaly_scores(picture(53, shape=(60, 40)))


def test_a_single_tile_is_the_picture_itself(adapted):
    tiled = make(tile=SIDE, input_size=256).fit(NORMAL)
    np.testing.assert_allclose(tiled.anomaly_maps(BAD), adapted.anomaly_maps(BAD), rtol=1e-4, atol=1e-6)


def test_augment_makes_turned_parts_normal(adapted):
    turned = [np.rot90(each) for each in GOOD]
    augmented = make(augment=True).fit(NORMAL)
    assert (adapted.predict(turned) == -1).all()
    assert (augmented.predict(turned) == 1).mean() >= 0.8
    assert (augmented.predict(BAD) == -1).all()


def test_scikit_learn_manners():
    layer = SparseCodingLayer(max_atoms=50)
    detector = make(sparse_coding=layer, false_alarm=0.2)
    assert detector.get_params()["sparse_coding"] is layer
    copied = clone(detector)
    assert copied.false_alarm == 0.2 and not hasattr(copied, "threshold_")
    assert copied.set_params(false_alarm=0.3).false_alarm == 0.3
    assert detector.fit_predict(NORMAL).shape == (10,)
    assert not layer.is_adapted  # a parameter: its settings are used, not itself


def test_the_users_module_is_left_alone():
    module = TinyBackbone().train()
    FewShotDetector(module, input_size=SIDE).fit(NORMAL[:2])
    assert module.training and module.weights.requires_grad


def test_fitting_twice_gives_the_same(adapted):
    again = make(device="auto" if not torch.cuda.is_available() else "cpu").fit(NORMAL)
    np.testing.assert_array_equal(again.anomaly_scores(BAD), adapted.anomaly_scores(BAD))


def test_not_adapted():
    for use in (
        lambda d: d.predict(GOOD),
        lambda d: d.update(GOOD),
        lambda d: d.set_threshold(1.0),
        lambda d: d.save("never.fsad"),
    ):
        with pytest.raises(NotAdaptedError, match="fit"):
            use(make())


@pytest.mark.parametrize(
    "parameters",
    [
        {"input_size": 0},
        {"tile": 2.5},
        {"batch_size": 0},
        {"map_kind": "heat"},
        {"false_alarm": 1.0},
    ],
)
def test_parameters_that_cannot_be_used(parameters):
    with pytest.raises(InputError, match=next(iter(parameters))):
        make(**parameters).fit(NORMAL[:2])


def test_no_normal_pictures():
    with pytest.raises(InputError, match="no normal pictures"):
        make().fit([])
    with pytest.raises(InputError, match="int"):
        make().fit(3)


def test_numbers_that_are_not_finite_never_come_out(detector):
    with torch.no_grad():
        detector.model_.backbone.module.weights[0] = float("nan")
    with pytest.raises(DivergedError, match="the backbone gave NaN"):
        detector.anomaly_scores(GOOD)


def test_a_failed_fit_leaves_an_unfitted_detector(detector):
    with pytest.raises(InputError):
        detector.fit(["no such picture.png"])
    with pytest.raises(NotAdaptedError, match="call fit"):
        detector.predict(GOOD)
