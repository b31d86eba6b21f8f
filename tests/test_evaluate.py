"""Evaluation: same draws for all, resumable run by run, numbers as computed by hand."""

from __future__ import annotations

import csv
import json

import lookalikes
import numpy as np
import pytest
import torch
from command import fsad
from evaluations import SIZE, make_category, protocol, write_category
from PIL import Image
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from fsad.backbones import load_backbone
from fsad.baselines import NearestNeighbour
from fsad.cli import app
from fsad.datasets import Category, Picture, _frames, load
from fsad.errors import InputError
from fsad.evaluate import EXAMPLE_SIZE, drawn, examples, run_evaluation
from fsad.evaluation_plots import write_plots
from fsad.evaluation_tables import table, write_tables
from fsad.frames import score_maps
from fsad.images import resize
from fsad.metrics import frame_auc
from fsad.networks import Autoencoder, SmallResNet, save_network
from fsad.trained_autoencoder import TrainedAutoencoder
from fsad.video import Video, VideoCategory


def test_a_score_is_what_the_method_gives(tmp_path):
    category = make_category()
    results = run_evaluation([category], protocol(methods=("nearest-neighbour",)), tmp_path)
    assert [result["draw"] for result in results] == [0, 1]
    network = load_backbone("small_resnet").eval()

    def features(pictures):
        stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            return network(stacked)

    chosen = [category.normal[i] for i in drawn(category, 3, 1)]
    method = NearestNeighbour().fit(features(chosen))
    maps, scores = score_maps(method.score_map(features([p.source for p in category.test])), SIZE)
    assert results[1]["scores"] == pytest.approx(scores.tolist(), rel=1e-5)
    assert results[1]["metrics"]["image AUROC"] == roc_auc_score([0] * 4 + [1] * 4, scores)
    masks = np.stack([np.zeros((SIZE, SIZE)) if p.mask is None else p.mask for p in category.test])
    expected = roc_auc_score(masks.ravel(), maps.numpy().ravel())
    assert results[1]["metrics"]["pixel AUROC"] == pytest.approx(expected, abs=1e-6)
    chosen = [category.normal[i] for i in drawn(category, 3, 0)]
    method = NearestNeighbour().fit(features(chosen))
    maps, _ = score_maps(
        method.score_map(features([category.test[i].source for i in examples(category)])), SIZE
    )
    shown = np.concatenate([resize(each.numpy()[:, :, None], EXAMPLE_SIZE)[:, :, 0] for each in maps])
    stored = np.asarray(Image.open(tmp_path / "runs" / f"{results[0]['file']}.png"))
    expected = 255 * (shown - shown.min()) / (shown.max() - shown.min())
    np.testing.assert_allclose(stored, expected, atol=0.51)


def test_frames_of_videos(tmp_path):
    """The frame metrics are those of the scores, cut into videos; a film's frames are seen as pictures."""
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8) // (1 + i % 5) for i in range(14)]
    bad = np.isin(np.arange(10), (3, 4, 8))
    videos = [Video("a", frames[4:10], bad[:6]), Video("b", frames[10:], bad[6:])]
    category = _frames(VideoCategory("gate", [frames[:2], frames[2:4]], videos), "difference")
    (result,) = run_evaluation([category], protocol(methods=("ridge",), draws=1), tmp_path)
    scores = np.array(result["scores"])
    parts = [(bad[:6], scores[:6]), (bad[6:], scores[6:])]
    assert result["metrics"]["frame AUC"] == frame_auc(parts, False) == result["metrics"]["image AUROC"]
    assert result["metrics"]["frame AUC, normalised by video"] == frame_auc(parts, True)
    differences = np.stack(
        [0.5 + (frames[4 + i] / 255 - frames[4 + max(0, i - 2)] / 255) / 2 for i in range(6)]
    )
    stored = Category(
        "gate", category.normal, [Picture(d.astype(np.float32), False, None) for d in differences]
    )
    stored.test.append(Picture(frames[0], True, None))
    (again,) = run_evaluation([stored], protocol(methods=("ridge",), draws=1), tmp_path / "again")
    assert again["scores"][:6] == pytest.approx(scores[:6].tolist(), rel=1e-4)


def test_views_of_videos_side_by_side(tmp_path):
    lookalikes.ucsd(tmp_path, "UCSDped2")
    categories = [*load(f"ucsd-ped2={tmp_path}"), *load(f"ucsd-ped2:stack={tmp_path}")]
    out = tmp_path / "out"
    results = run_evaluation(categories, protocol(methods=("fsad",), draws=1, shots=(10,)), out)
    write_plots(categories, results, out)
    assert {path.name for path in (out / "plots").iterdir()} == {
        f"UCSDped2{view}-10{kind}.png" for view in ("", "-stack") for kind in ("", "-maps")
    }
    assert not [*out.rglob("*:*")]
    lines = write_tables(results, out).partition("normalised by video, 10 shots")[2].splitlines()
    assert lines[2] == "| method | network | UCSDped2 | UCSDped2:stack | mean |"
    assert any("Table 2 | 0.9245 | 0.9245 |" in line for line in lines)
    rows = csv.DictReader((out / "results.csv").read_text().splitlines())
    assert [row["dataset"] for row in rows] == ["ucsd-ped2", "ucsd-ped2:stack"]


def test_flipped_and_turned_pictures_are_normal_too(tmp_path):
    """Augmented, a method adapts to all eight forms: to a memory bank, a turned one is nothing new."""
    category = make_category()
    turned = Picture(np.rot90(category.normal[drawn(category, 3, 0)[0]]).copy(), False, None)
    category.test[0] = turned
    chosen = {"methods": ("nearest-neighbour",), "draws": 1}
    plain, augmented = (
        run_evaluation([category], protocol(augment=each, **chosen), tmp_path)[0]["scores"]
        for each in (False, True)
    )
    assert augmented[0] < 0.01 < 0.1 * plain[0]
    assert all(a <= p + 1e-6 for a, p in zip(augmented, plain, strict=True))


def test_autoencoders_see_all_normal_pictures_once(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        TrainedAutoencoder, "fit", lambda self, pictures: seen.append(pictures) or fit(self, pictures)
    )
    chosen = protocol(methods=("ridge", "ae-ssim"), shots=(2, 3))
    results = run_evaluation([make_category()], chosen, tmp_path)
    assert [(r["method"], r["shots"]) for r in results] == [("ridge", 2)] * 2 + [("ridge", 3)] * 2 + [
        ("ae-ssim", 0)
    ]
    assert [len(pictures) for pictures in seen] == [6]
    for shots in (2, 3):
        assert "| ae-ssim | - |" in table(results, "AUPRO", shots)


def fit(model, pictures, own=TrainedAutoencoder.fit):
    model.updates = 1
    return own(model, pictures)


def test_weights_for_each_category(tmp_path):
    """Leave one out: "{category}" in the name of the weights."""
    categories = [make_category(), make_category(1)]
    for seed, category in enumerate(categories):
        path = tmp_path / category.name / "net.safetensors"
        path.parent.mkdir()
        save_network(path, SmallResNet(8, 8, seed), {"name": "small_resnet", "width": 8}, sparse_coding=None)
    only_ridge = {"methods": ("ridge",), "draws": 1}
    chosen = protocol(backbones=(f"{tmp_path}/{{category}}/net.safetensors",), **only_ridge)
    for category, result in zip(categories, run_evaluation(categories, chosen, tmp_path), strict=True):
        own = protocol(backbones=(f"{tmp_path}/{category.name}/net.safetensors",), **only_ridge)
        assert run_evaluation([category], own, tmp_path)[0]["scores"] == result["scores"]


def test_draws_are_nested_and_differ():
    category = make_category()
    assert drawn(category, 5, 0)[:2] == drawn(category, 2, 0)
    assert sorted(drawn(category, 6, 3)) == list(range(6))
    assert len({tuple(drawn(category, 6, draw)) for draw in range(5)}) > 1


def test_maml_ae_is_compared_on_pictures(tmp_path):
    save_network(
        tmp_path / "ae.safetensors", Autoencoder(8), {"name": "autoencoder", "width": 8}, sparse_coding=None
    )
    chosen = protocol(methods=("ridge",), maml=str(tmp_path / "ae.safetensors"), draws=1)
    methods = [result["method"] for result in run_evaluation([make_category()], chosen, tmp_path / "results")]
    assert methods == ["ridge", "maml-ae"]
    with pytest.raises(InputError, match="small_resnet does not hold MAML-AE"):
        run_evaluation([make_category()], protocol(maml="small_resnet"), tmp_path / "other")


def test_the_command(tmp_path):
    category = make_category(2)
    write_category(tmp_path / "data", category)
    options = ("--backbone", "small_resnet", "--shots", 2, "--draws", 2, "--input-size", SIZE)
    done = fsad("evaluate", f"folders={tmp_path / 'data'}", *options, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "### image AUROC, 2 shots" in done.stdout and "| ridge | small_resnet |" in done.stdout
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert len(rows) == 12 == len(json.loads((tmp_path / "out" / "results.json").read_text()))
    for name, least in ((f"{category.name}-2", 300), (f"{category.name}-2-maps", 100)):
        with Image.open(tmp_path / "out" / "plots" / f"{name}.png") as plot:
            assert min(plot.size) > least
    runner = CliRunner()
    chosen = ["--method", "fsad-gradient", "--method", "ridge", "-o", str(tmp_path / "out")]
    given = ["evaluate", f"folders={tmp_path / 'data'}", *map(str, options), *chosen]
    assert runner.invoke(app, given).exit_code == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    given[1:2] = ["folders", "--root", str(tmp_path / "data")]
    assert runner.invoke(app, given).exit_code == 0
    assert runner.invoke(app, [*given, "elpv"]).exit_code == 2
    assert [row["method"] for row in rows] == ["fsad-gradient"] * 2 + ["ridge"] * 2
    assert "mvtec: " in runner.invoke(app, ["evaluate", "--list"]).output
    assert runner.invoke(app, ["evaluate"]).exit_code == 2
    wrong = runner.invoke(app, ["evaluate", "folders=/nowhere"])
    assert isinstance(wrong.exception, InputError) and "/nowhere" in str(wrong.exception)
