"""Model files of a detector: saved, loaded, refused; and backbones by name."""

import copy

import numpy as np
import pytest
import torch
from detectors import BAD, GOOD, NORMAL, SIDE, TinyBackbone, make, odd

from fsad import FewShotDetector, SparseCodingLayer
from fsad.errors import InputError, ModelFileError
from fsad.model_file import read_model, write_model
from fsad.networks import Autoencoder, save_network


def test_saved_and_loaded_detector_decides_alike(adapted, tmp_path):
    roi = np.ones((SIDE, SIDE), dtype=bool)
    roi[:8] = False
    layer = SparseCodingLayer(receptive_field=3, max_atoms=50)
    third = make(sparse_coding=layer, roi=roi, false_alarm=0.3, map_kind="gradient").fit(NORMAL)
    for detector in (adapted, third):
        detector.save(tmp_path / "part.fsad")
        loaded = FewShotDetector.load(tmp_path / "part.fsad", backbone=TinyBackbone())
        np.testing.assert_array_equal(loaded.anomaly_scores(GOOD + BAD), detector.anomaly_scores(GOOD + BAD))
        np.testing.assert_array_equal(loaded.anomaly_maps(BAD), detector.anomaly_maps(BAD))
        assert loaded.threshold_ == detector.threshold_
        assert loaded.suspects_ == detector.suspects_
        assert loaded.n_support_ == detector.n_support_
        kept = ("false_alarm", "map_kind", "input_size", "augment", "seed")
        assert all(getattr(loaded, name) == getattr(detector, name) for name in kept)
        loaded.update(odd(1))
        detector = copy.deepcopy(detector).update(odd(1))
        np.testing.assert_array_equal(loaded.anomaly_scores(BAD), detector.anomaly_scores(BAD))
    refitted = loaded.fit(NORMAL)
    np.testing.assert_array_equal(refitted.anomaly_scores(BAD), third.anomaly_scores(BAD))
    assert [path.name for path in tmp_path.iterdir()] == ["part.fsad"]


def test_load_wants_the_same_backbone(adapted, tmp_path):
    path = tmp_path / "part.fsad"
    adapted.save(path)
    with pytest.raises(ModelFileError, match="backbone=module"):
        FewShotDetector.load(path)
    with pytest.raises(ModelFileError, match="same, or adapt again"):
        FewShotDetector.load(path, backbone=TinyBackbone(seed=1))


def test_pictures_get_the_size_of_the_training(tmp_path):
    """Where none is given; of ``fsad-small`` that is 64, of networks that were not trained here 256."""
    detector = FewShotDetector("fsad-small").fit(NORMAL[:3])
    assert detector.anomaly_maps(BAD[:1]).shape == (1, 64, 64)
    given = FewShotDetector("fsad-small", input_size=64).fit(NORMAL[:3])
    np.testing.assert_array_equal(detector.anomaly_scores(BAD), given.anomaly_scores(BAD))
    detector.save(tmp_path / "part.fsad")
    loaded = FewShotDetector.load(tmp_path / "part.fsad")
    np.testing.assert_array_equal(loaded.anomaly_scores(BAD), given.anomaly_scores(BAD))
    assert FewShotDetector(TinyBackbone()).fit(NORMAL[:2]).input_size_ == 256


def test_maml_ae_is_no_feature_extractor(tmp_path):
    path = tmp_path / "maml.safetensors"
    save_network(path, Autoencoder(8), {"name": "autoencoder", "width": 8}, sparse_coding=None)
    with pytest.raises(InputError, match=r"maml.safetensors holds MAML-AE, which .* rather than features"):
        FewShotDetector(str(path)).fit(NORMAL[:2])


def test_named_backbone_is_found_again(tmp_path):
    detector = FewShotDetector("small_resnet", input_size=64).fit(NORMAL[:3])
    detector.save(tmp_path / "part.fsad")
    loaded = FewShotDetector.load(tmp_path / "part.fsad")
    np.testing.assert_array_equal(loaded.anomaly_scores(BAD), detector.anomaly_scores(BAD))


@pytest.mark.parametrize("where", ["parameters", "sparse_coding", "threshold"])
def test_a_file_that_says_too_much_or_too_little_is_refused(detector, tmp_path, where):
    """As another version of fsad might have written it, with a valid checksum."""
    detector.save(tmp_path / "part.fsad")
    tensors, saved = read_model(tmp_path / "part.fsad")
    saved[where]["unheard_of"] = 1
    write_model(tmp_path / "part.fsad", tensors, saved)
    with pytest.raises(ModelFileError, match="another version"):
        FewShotDetector.load(tmp_path / "part.fsad", backbone=TinyBackbone())
    del saved[where]
    write_model(tmp_path / "part.fsad", tensors, saved)
    with pytest.raises(ModelFileError, match="another version"):
        FewShotDetector.load(tmp_path / "part.fsad", backbone=TinyBackbone())


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors, saved: saved["threshold"].update(value="x"),
        lambda tensors, saved: saved["threshold"].update(kind="x"),
        lambda tensors, saved: tensors.update(patches=tensors["patches"][:, :5].clone()),
        lambda tensors, saved: tensors["moment"].fill_(float("nan")),
        lambda tensors, saved: (
            tensors.update(mean=torch.zeros(3)) or saved["sparse_coding"].update(center=True)
        ),
    ],
)
def test_a_file_of_nonsense_is_refused(detector, tmp_path, damage):
    detector.save(tmp_path / "part.fsad")
    tensors, saved = read_model(tmp_path / "part.fsad")
    damage(tensors, saved)
    write_model(tmp_path / "part.fsad", tensors, saved)
    with pytest.raises(ModelFileError):
        FewShotDetector.load(tmp_path / "part.fsad", backbone=TinyBackbone())
