"""Runs of an evaluation: stored, resumed, told apart by what they depend on, and checked before any work."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import lookalikes
import numpy as np
import pytest
from evaluations import SIZE, make_category, protocol, write_category
from PIL import Image
from typer.testing import CliRunner

from fsad.baselines import METHODS, Kind, NearestNeighbour
from fsad.cli import app
from fsad.datasets import Picture, load
from fsad.errors import InputError
from fsad.evaluate import run_evaluation
from fsad.evaluation_plots import write_plots
from fsad.networks import Autoencoder, SmallResNet, save_network


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


def test_two_evaluations_do_not_share_a_folder(tmp_path):
    chosen = protocol(methods=("ridge",), draws=1)
    (tmp_path / "runs").mkdir()
    with open(tmp_path / "runs" / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=f"another evaluation is writing to {tmp_path}; wait for it"):
            run_evaluation([make_category()], chosen, tmp_path)
    assert len(run_evaluation([make_category()], chosen, tmp_path)) == 1


def test_data_sets_of_one_name_are_not_taken_for_one(tmp_path):
    given = []
    for factory in ("first", "second"):
        write_category(tmp_path / factory / "data", make_category())
        given.append(f"folders={tmp_path / factory / 'data'}")
    result = CliRunner().invoke(app, ["evaluate", *given, "-o", str(tmp_path / "judged")])
    assert isinstance(result.exception, InputError)
    assert "several data sets are named folders:data; rename a folder" in str(result.exception)


def test_what_was_lost_or_cut_off_is_made_again(tmp_path):
    judged, category, chosen = [], make_category(), protocol(methods=("ridge",), draws=3)
    results = run_evaluation([category], chosen, tmp_path)
    first, second, third = (tmp_path / "runs" / f"{result['file']}.json" for result in results)
    maps = first.with_suffix(".png")
    for lost, damage in (
        (maps.unlink, b"{}"),
        (
            lambda: maps.write_bytes(maps.read_bytes()[:-40]),
            b'{"metrics":null,"scores":null,"anomalous":null}',
        ),
        (lambda: maps.write_bytes(maps.read_bytes()[:50] + bytes(300)), b"[" * 100_000),
    ):
        judged.clear()
        lost()
        second.write_bytes(second.read_bytes()[:-9])
        third.write_bytes(damage)
        again = run_evaluation([category], chosen, tmp_path, judged.append)
        assert [run.draw for run in judged] == [0, 1, 2]
        assert [result["scores"] for result in again] == [result["scores"] for result in results]
    write_plots([category], again, tmp_path)


def test_plots_hide_nothing(tmp_path, monkeypatch):
    """ROC curves from the origin on, what is wholly anomalous as white, and maps on one scale."""
    category, drawn = make_category(), {}
    category.test = [
        picture._replace(mask=np.ones((SIZE, SIZE), bool)) if picture.anomalous else picture
        for picture in category.test
    ]
    results = run_evaluation([category], protocol(methods=("ridge",), draws=1), tmp_path)
    monkeypatch.setattr(
        "fsad.evaluation_plots.write_png", lambda path, figure: drawn.update({path.stem: figure})
    )
    write_plots([category], results, tmp_path)
    curves, maps = (drawn[f"{category.name}-{results[0]['shots']}{end}"] for end in ("", "-maps"))
    (roc,) = curves.axes[0].get_lines()
    assert [value[0] for value in roc.get_data()] == [0, 0]
    shown = [axes.images[0] for axes in maps.axes]
    columns = len(shown) // 3
    truth, energies = shown[columns : 2 * columns], shown[2 * columns :]
    assert all(image.get_clim() == (0, 1) and image.get_array().all() for image in truth)
    assert {image.get_clim() for image in energies} == {(0, 255)}


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
    exif = Image.Exif()
    exif[0x0112] = 6  # turned on its side
    Image.new("RGB", (50, 30)).save(picture.with_suffix(f".{suffix}"), exif=exif)
    lookalikes.mask(mask, 255, np.ones((50, 30)))
    assert len(judge()) == 2


def test_weights_judged_at_another_size_than_their_training_s_are_named(tmp_path):
    own = protocol(backbones=("fsad-small",), methods=("ridge",), draws=1)
    with pytest.warns(UserWarning, match="fsad-small was trained on pictures of 64 px, these have 32; give"):
        run_evaluation([make_category()], own, tmp_path)


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


def test_wrong_protocols_are_named(tmp_path):
    with pytest.raises(InputError, match=r"unknown methods \['magic'\]"):
        protocol(methods=("magic",))
    with pytest.raises(InputError, match=r"7 shots are more than there are in .* \(6\)"):
        run_evaluation([make_category()], protocol(shots=(7,)), tmp_path)
    with pytest.raises(InputError, match="1 or more"):
        protocol(draws=0)
    with pytest.raises(InputError, match="ae-mse takes sizes divisible by 16; got 40"):
        run_evaluation([make_category()], replace(protocol(methods=("ridge", "ae-mse")), size=40), tmp_path)
    with pytest.raises(OSError, match=r"net\.safetensors"):
        networks = ("small_resnet", str(tmp_path / "net.safetensors"))
        run_evaluation([make_category()], protocol(backbones=networks), tmp_path)
    save_network(tmp_path / "ae.safetensors", Autoencoder(), {"name": "autoencoder"}, sparse_coding={})
    ae = str(tmp_path / "ae.safetensors")
    for maml in (None, ae):
        with pytest.raises(InputError, match=r"ae\.safetensors holds MAML-AE.*give it as --maml-ae"):
            run_evaluation([make_category()], protocol(backbones=(ae,), maml=maml), tmp_path)
    with pytest.raises(InputError, match="small_resnet does not hold MAML-AE"):
        run_evaluation([make_category()], protocol(maml="small_resnet"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ae.safetensors"]


@pytest.mark.parametrize("anomalous", [False, True])
def test_test_pictures_of_one_kind_are_named_before_any_work(tmp_path, anomalous):
    alike = make_category(1)
    alike.test = [picture for picture in alike.test if picture.anomalous == anomalous]
    with pytest.raises(InputError, match=f"all normal or all anomalous in {alike.name}; add some"):
        run_evaluation([make_category(), alike], protocol(), tmp_path)
    assert not [*tmp_path.iterdir()]
