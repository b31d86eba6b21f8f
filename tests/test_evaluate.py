"""Evaluation: same draws for all, resumable run by run, numbers as computed by hand."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import lookalikes
import numpy as np
import pytest
import torch
from command import fsad
from PIL import Image
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from fsad.backbones import load_backbone
from fsad.baselines import METHODS, Kind, NearestNeighbour
from fsad.cli import app
from fsad.datasets import Category, Picture, _frames, load
from fsad.errors import InputError
from fsad.evaluate import EXAMPLE_SIZE, Protocol, drawn, examples, run_evaluation
from fsad.evaluation_plots import write_plots
from fsad.evaluation_tables import lead_table, table, write_tables
from fsad.frames import score_maps
from fsad.images import resize
from fsad.maml import Autoencoder
from fsad.metrics import frame_auc
from fsad.networks import SmallResNet, save_network
from fsad.procedural import ProceduralTask
from fsad.trained_autoencoder import TrainedAutoencoder
from fsad.video import Video, VideoCategory

SIZE = 32


def make_category(seed=0, masks=True):
    product = ProceduralTask(seed, SIZE)
    bad = [product.defective(number) for number in range(20, 24)]
    test = [Picture(product.normal(number).image, False, None) for number in range(10, 14)]
    test += [Picture(part.image, True, part.mask if masks else None) for part in bad]
    return Category(product.name, [product.normal(number).image for number in range(6)], test)


def write_category(root, category):
    """As folders, without masks."""
    pictures = [("train/good", picture) for picture in category.normal]
    pictures += [("test/bad" if p.anomalous else "test/good", p.source) for p in category.test]
    for number, (kind, picture) in enumerate(pictures):
        path = root / category.name / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)


def protocol(**changes):
    return Protocol(**{"backbones": ("small_resnet",), "shots": (3,), "draws": 2, "size": SIZE, **changes})


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


def test_published_figures_stand_beside_ours_of_the_same_data():
    def result(dataset, category):
        given = {"dataset": dataset, "category": category, "method": "fsad", "network": "net", "shots": 10}
        metrics = {"mIoU": 0.5, "frame AUC, normalised by video": 0.5}
        return {**given, "draw": 0, "metrics": metrics}

    paper = "| the paper's method, published | Wang et al., NeurIPS 2022, Table 1 |"
    text = table([result("mvtec", "cable"), result("mvtec", "zipper")], "mIoU", 10)
    assert f"{paper} 0.18 | 0.15 | 0.165 |" in text and "RegAD" not in text
    assert "| AE (MSE), published | Wang et al., NeurIPS 2022, Table 1 | 0.05 | 0.13 | 0.09 |" in text
    assert f"{paper} 0.18 | - | - |" in table([result("mvtec", "cable"), result("visa", "pcb1")], "mIoU", 10)
    assert "published" not in table([result("folders", "cable")], "mIoU", 10)
    scenes = [result("shanghaitech", "07"), result("shanghaitech", "08")]
    text = table(scenes, "frame AUC, normalised by video", 10)
    assert "| the paper's method, published | Wang et al., NeurIPS 2022, Table 2 | - | - | 0.8128 |" in text
    text = table([*scenes, result("avenue", "avenue")], "frame AUC, normalised by video", 10)
    titles = "| method | network | 07 | 08 | shanghaitech mean | avenue | mean | mean of sets |\n"
    assert text.startswith(titles) and "Table 2 | - | - | 0.8128 | 0.8446 | - | - |" in text


def test_draws_are_nested_and_differ():
    category = make_category()
    assert drawn(category, 5, 0)[:2] == drawn(category, 2, 0)
    assert sorted(drawn(category, 6, 3)) == list(range(6))
    assert len({tuple(drawn(category, 6, draw)) for draw in range(5)}) > 1


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path):
    """SIGKILL in the middle: what is finished stays as it is, and the results are those without a kill."""
    categories = [make_category(), make_category(1, masks=False)]
    for category in categories:
        write_category(tmp_path / "data", category)
    options = ("--backbone", "small_resnet", "--shots", 3, "--draws", 6, "--input-size", SIZE)
    command = ("evaluate", f"folders={tmp_path / 'data'}", *options, "-o", tmp_path / "killed")
    runs = tmp_path / "killed" / "runs"
    process = subprocess.Popen([sys.executable, "-m", "fsad", *map(str, command)], stderr=subprocess.PIPE)
    while len(list(runs.glob("*.json"))) < 5:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    process.kill()
    process.communicate()
    scratch = runs / "scratch"
    assert [*scratch.iterdir()]
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*.json")}
    categories, judged = load("folders", tmp_path / "data"), []
    found = run_evaluation(categories, protocol(draws=6), tmp_path / "killed", judged.append)
    assert not scratch.exists()
    assert len(before) < len(found) == len(before) + len(judged) == 2 * 6 * 6
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    whole = run_evaluation(categories, protocol(draws=6), tmp_path / "whole")
    for results in (found, whole):
        assert all(min(result.pop("seconds").values()) > 0 for result in results)  # the only difference
    assert found == whole


def test_what_was_lost_or_cut_off_is_made_again(tmp_path):
    judged, category, chosen = [], make_category(), protocol(methods=("ridge",), draws=3)
    results = run_evaluation([category], chosen, tmp_path)
    first, second, _ = (tmp_path / "runs" / f"{result['file']}.json" for result in results)
    first.with_suffix(".png").unlink()
    second.write_bytes(second.read_bytes()[:-9])
    again = run_evaluation([category], chosen, tmp_path, judged.append)
    assert [run.draw for run in judged] == [0, 1]
    assert [result["scores"] for result in again] == [result["scores"] for result in results]
    write_plots([category], again, tmp_path)


def test_other_inputs_are_another_run(tmp_path):
    """Pictures, their size, and weights under the same name: nothing old is taken for new."""

    def scores(category=None, **changes):
        results = run_evaluation(
            [category or make_category()], protocol(methods=("ridge",), draws=1, **changes), tmp_path
        )
        return results[0]["scores"]

    first = scores()
    assert scores() == first
    assert scores(size=48) != first
    changed = make_category()
    changed.test[0] = Picture(255 - changed.test[0].source, False, None)
    assert scores(changed)[0] != first[0] and scores(changed)[1:] == first[1:]
    weights = str(tmp_path / "net.safetensors")
    different = []
    for seed in (0, 1):
        save_network(
            weights, SmallResNet(8, 8, seed), {"name": "small_resnet", "width": 8}, sparse_coding=None
        )
        different.append(scores(backbones=(weights,)))
    assert different[0] != different[1]


def test_another_spelling_of_a_path_is_the_same_run(tmp_path, monkeypatch):
    """Of the data, the weights and the results; tables show the names as they are given."""
    monkeypatch.chdir(tmp_path)
    write_category(tmp_path / "data", make_category())
    save_network(
        "net.safetensors", SmallResNet(8, 8), {"name": "small_resnet", "width": 8}, sparse_coding=None
    )
    absolute, judged = str(tmp_path / "net.safetensors"), []
    for root, weights, out in (
        ("data", "./net.safetensors", Path("o")),
        (tmp_path / "data", absolute, tmp_path / "o"),
    ):
        chosen = protocol(methods=("ridge",), backbones=(weights,))
        results = run_evaluation(load("folders", root), chosen, out, judged.append)
        assert {result["network"] for result in results} == {weights}
    assert len(judged) == 2
    write_category(tmp_path / "copy" / "data", make_category())
    run_evaluation(load("folders", "copy/data"), chosen, tmp_path / "o", judged.append)
    assert len(judged) == 4  # other files


class Brightness:
    """A baseline from outside: how far a vector's length is from what it was."""

    def __init__(self, power=1):
        self.power = power

    def fit(self, features):
        self.usual = features.norm(dim=1).mean()

    def score_map(self, features):
        return (features.norm(dim=1) - self.usual).abs() ** self.power


def test_a_baseline_is_a_class_and_a_line(tmp_path, monkeypatch):
    """As docs/evaluation.md says; and a changed one is not taken for what it was."""
    write_category(tmp_path / "data", make_category())
    options = ("--backbone", "small_resnet", "--shots", 2, "--draws", 1, "--input-size", SIZE)
    given = ["evaluate", f"folders={tmp_path / 'data'}", *map(str, options), "-o", str(tmp_path / "out")]

    def scores(make):
        monkeypatch.setitem(METHODS, "brightness", Kind(make))
        done = CliRunner().invoke(app, [*given, "--method", "brightness"])
        assert "| brightness | small_resnet |" in done.output
        (row,) = json.loads((tmp_path / "out" / "results.json").read_text())
        return row["scores"], {path: path.stat().st_mtime_ns for path in tmp_path.rglob("runs/*.json")}

    first, once = scores(lambda _: Brightness())
    again, still = scores(lambda _: Brightness())
    assert (again, still) == (first, once)
    assert scores(lambda _: Brightness(2))[0] != first
    assert len(scores(lambda _: NearestNeighbour())[1]) == 3


def test_the_same_name_in_two_sets(tmp_path):
    """btad and shanghaitech both have a category 01; of one set there is one of each name."""
    first, second = make_category(), make_category(1)
    for category, dataset in ((first, "btad"), (second, "shanghaitech")):
        category.name, category.dataset = "01", dataset
    out = tmp_path / "out"
    results = run_evaluation([first, second], protocol(methods=("ridge",), draws=1), out)
    write_plots([first, second], results, out)
    assert {path.name for path in (out / "plots").iterdir()} == {
        f"{dataset}-01-3{kind}.png" for dataset in ("btad", "shanghaitech") for kind in ("", "-maps")
    }
    lines = write_tables(results, out).splitlines()
    assert lines[2] == "| method | network | btad/01 | shanghaitech/01 | mean |"
    assert [len({row["scores"][0] for row in results}), len(results)] == [2, 2]
    second.dataset = "btad"
    with pytest.raises(InputError, match="several categories are named btad 01"):
        run_evaluation([first, second], protocol(), tmp_path)


def test_masks_of_which_nothing_is_left_are_named_before_any_work(tmp_path):
    fine, thin = make_category(), make_category(1)
    line = np.zeros((SIZE, SIZE), bool)
    line[:, 4] = True  # half of a pixel at half the size, and more is needed
    thin.test = [p._replace(mask=line if p.anomalous else None) for p in thin.test]
    advice = f"left of any mask of {thin.name}; take a larger --input-size, or leave"
    with pytest.raises(InputError, match=f"at 16 x 16 pixels nothing is {advice}"):
        run_evaluation([fine, thin], protocol(size=16), tmp_path)
    assert not [*tmp_path.iterdir()]
    thin.test[-1] = thin.test[-1]._replace(mask=fine.test[-1].mask)  # one is enough
    assert run_evaluation([thin], protocol(size=16, methods=("ridge",), draws=1), tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_masks_that_cannot_be_right_are_named(tmp_path, suffix):
    write_category(tmp_path / "data", make_category())
    kind = tmp_path / "data" / make_category().name
    picture = sorted((kind / "test" / "bad").iterdir())[0]
    for path in (kind / "test" / "bad").iterdir():
        with Image.open(path) as image:
            image.save(path.with_suffix(f".{suffix}"))
        lookalikes.mask(kind / "ground_truth" / "bad" / f"{path.stem}.png", 255, np.ones((SIZE, SIZE)))
        if suffix != "png":
            path.unlink()
    mask = kind / "ground_truth" / "bad" / f"{picture.stem}.png"

    def judge():
        return run_evaluation(
            load("folders", tmp_path / "data"), protocol(methods=("ridge",)), tmp_path / "out"
        )

    lookalikes.mask(mask, 255, np.ones((30, 50)))
    with pytest.raises(InputError, match=rf"{mask.name} is 50 x 30 pixels, its picture 32 x 32; give it"):
        judge()
    lookalikes.mask(mask, 255, np.zeros((SIZE, SIZE)))
    with pytest.raises(InputError, match=rf"{mask.name} marks no pixel, but its picture counts as anomalous"):
        judge()
    assert not (tmp_path / "out").exists()
    if suffix == "jpg":  # turned on its side by its orientation
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (50, 30)).save(picture.with_suffix(".jpg"), exif=exif)
        lookalikes.mask(mask, 255, np.ones((50, 30)))
        assert len(judge()) == 2


def test_another_sparse_coding_is_another_run(tmp_path, monkeypatch):
    """Settings in the file of weights, those of a network without any, and those of another fsad."""
    judged, weights = [], tmp_path / "net.safetensors"

    def judge(network):
        chosen = protocol(methods=("fsad",), draws=1, backbones=(str(network),))
        before = len(judged)
        (result,) = run_evaluation([make_category()], chosen, tmp_path, judged.append)
        assert len(judged) > before
        return result["scores"]

    different = []
    for ridge in (1.0, 20.0):
        about = {"architecture": {"name": "small_resnet", "width": 8}, "sparse_coding": {"ridge": ridge}}
        save_network(weights, SmallResNet(8, 8), **about)
        different.append(judge(weights))
    assert different[0] != different[1]
    judge("small_resnet")
    monkeypatch.setattr("fsad.backbones.DEFAULT_SETTINGS", {"ridge": 1.0})
    judge("small_resnet")
    monkeypatch.setattr("fsad.evaluate.__version__", "another")
    judge("small_resnet")
    with pytest.raises(AssertionError):
        judge("small_resnet")


def test_maml_ae_is_compared_on_pictures(tmp_path):
    save_network(
        tmp_path / "ae.safetensors", Autoencoder(8), {"name": "autoencoder", "width": 8}, sparse_coding=None
    )
    chosen = protocol(methods=("ridge",), maml=str(tmp_path / "ae.safetensors"), draws=1)
    methods = [result["method"] for result in run_evaluation([make_category()], chosen, tmp_path / "results")]
    assert methods == ["ridge", "maml-ae"]
    with pytest.raises(InputError, match="maml-ae needs the weights"):
        run_evaluation([make_category()], protocol(maml="small_resnet"), tmp_path / "other")


def test_tables_show_mean_and_spread_over_draws():
    def result(category, draw, value):
        given = {"dataset": "folders", "category": category, "shots": 10}
        given |= {"method": "fsad", "network": "a/net.safetensors"}
        return {**given, "draw": draw, "metrics": {"image AUROC": value}}

    results = [result("bolt", 0, 0.8), result("bolt", 1, 0.9), result("nut", 0, 0.6), result("nut", 1, 0.7)]
    lines = table(results, "image AUROC", 10).splitlines()
    assert lines[0] == "| method | network | bolt | nut | mean |"
    assert lines[2] == "| fsad | a/net.safetensors | 0.850 ± 0.071 | 0.650 ± 0.071 | 0.750 ± 0.071 |"
    lines = table([*results, result("mono", 0, 0.3) | {"dataset": "elpv"}], "image AUROC", 10).splitlines()
    assert lines[0] == "| method | network | bolt | nut | folders mean | mono | mean | mean of sets |"
    means = "0.750 ± 0.071 | 0.300 | 0.683 ± 0.165 | 0.650 ± 0.212 |"
    assert lines[2].endswith(f"| 0.850 ± 0.071 | 0.650 ± 0.071 | {means}")
    other = result("bolt", 0, 0.5) | {"dataset": "mpdd"}
    assert "| folders/bolt | nut | folders mean | mpdd/bolt | mean | mean" in table(
        [*results, other], "image AUROC", 10
    )


def test_the_gain_on_further_networks_is_paired():
    def result(dataset, category, network, draw, value, method="fsad"):
        given = {"dataset": dataset, "category": category, "method": method, "network": network}
        return given | {"shots": 10, "draw": draw, "metrics": {"AP": value}}

    results = []
    for network, gain in (("untrained", 0.0), ("trained", 0.1)):
        for draw, luck in ((0, 0.0), (1, 0.2)):  # far larger than the gain, but shared
            bolt, nut = 0.3 + luck + gain, 0.4 + luck + 0.6 * gain
            results += [
                result("folders:a", "bolt", network, draw, bolt),
                result("folders:a", "nut", network, draw, nut),
            ]
            results += [result("elpv", "mono", network, draw, 0.5 + (2 + draw) * gain)]
            results += [result("elpv", "mono", network, draw, 0.1, "ridge")]
    *_, plain, gain = (line for line in table(results, "AP", 10).splitlines() if line.startswith("| fsad"))
    assert plain.startswith("| fsad | trained | 0.500 ± 0.141 | 0.560 ± 0.141 |")
    cells = ("+0.100 (+0.100 to +0.100)", "+0.060 (+0.060 to +0.060)", "+0.080 (+0.080 to +0.080)")
    last = "+0.250 (+0.200 to +0.300) | +0.137 (+0.120 to +0.153) | +0.165 (+0.140 to +0.190) |"
    assert gain == f"| fsad, gain | trained | {' | '.join(cells)} | {last}"


def test_the_lead_is_of_the_same_categories_draws_and_shots():
    def result(method, category, draw, shots, value, network="a"):
        names = {"method": method, "category": category, "network": network, "dataset": "folders"}
        return names | {"draw": draw, "shots": shots, "metrics": {"AP": value}}

    runs = [(category, draw, shots) for category in ("bolt", "nut") for draw in (0, 1) for shots in (1, 5)]
    ours = [result("fsad", *run, 0.8 + 0.01 * sum(run[1:])) for run in runs]
    behind = {1: 0.3, 5: 0.1}  # by shots
    pairs = list(zip(runs, ours, strict=True))[:-2]  # the last category's last draw is missing
    theirs = [result("ridge", *run, own["metrics"]["AP"] - behind[run[2]]) for run, own in pairs]
    alone = [result("knn", "bolt", 0, 1, 0.9)]
    lines = lead_table(ours + theirs + alone, "AP").splitlines()
    assert lines[2:] == ["| ridge | a | +0.2000 | +0.2000 to +0.2000 |"]
    assert lead_table(ours + alone, "AP") == "" == lead_table(ours + theirs, "AUPRO")
    others = [r | {"method": "maml-ae", "network": "ae.safetensors"} for r in theirs]
    others += [result("ae-mse", category, 0, 0, 0.7, network="-") for category in ("bolt", "nut")]
    assert lead_table(ours + others, "AP").splitlines()[2:] == [
        "| maml-ae | ae.safetensors, fsad on a | +0.2000 | +0.2000 to +0.2000 |",
        "| ae-mse | -, fsad on a | +0.1350 | +0.1300 to +0.1400 |",  # 0.13 in draw 0, 0.14 in draw 1
    ]


def test_wrong_protocols_are_named(tmp_path):
    with pytest.raises(InputError, match=r"unknown methods \['magic'\]"):
        protocol(methods=("magic",))
    with pytest.raises(InputError, match=r"7 shots are more than there are in .* \(6\)"):
        run_evaluation([make_category()], protocol(shots=(7,)), tmp_path)
    with pytest.raises(InputError, match="1 or more"):
        protocol(draws=0)


@pytest.mark.parametrize("anomalous", [False, True])
def test_test_pictures_of_one_kind_are_named_before_any_work(tmp_path, anomalous):
    alike = make_category(1)
    alike.test = [picture for picture in alike.test if picture.anomalous == anomalous]
    with pytest.raises(InputError, match=f"all normal or all anomalous in {alike.name}; add some"):
        run_evaluation([make_category(), alike], protocol(), tmp_path)
    assert not [*tmp_path.iterdir()]


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
