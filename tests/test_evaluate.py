"""Evaluation: same draws for all, resumable run by run, numbers as computed by hand."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from command import fsad
from PIL import Image
from sklearn.metrics import roc_auc_score

from fsad.backbones import load_backbone
from fsad.baselines import NearestNeighbour
from fsad.datasets import Category, Picture
from fsad.errors import InputError
from fsad.evaluate import Protocol, drawn, run_evaluation
from fsad.evaluation_tables import table
from fsad.frames import score_maps
from fsad.maml import Autoencoder
from fsad.networks import SmallResNet, save_network
from fsad.procedural import ProceduralTask

SIZE = 32


def make_category(seed=0, masks=True):
    product = ProceduralTask(seed, SIZE)
    bad = [product.defective(number) for number in range(20, 24)]
    test = [Picture(product.normal(number).image, False, None) for number in range(10, 14)]
    test += [Picture(part.image, True, part.mask if masks else None) for part in bad]
    return Category(product.name, [product.normal(number).image for number in range(6)], test)


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


def test_draws_are_nested_and_differ():
    category = make_category()
    assert drawn(category, 5, 0)[:2] == drawn(category, 2, 0)
    assert sorted(drawn(category, 6, 3)) == list(range(6))
    assert len({tuple(drawn(category, 6, draw)) for draw in range(5)}) > 1


def test_what_is_finished_is_not_computed_again(tmp_path):
    categories = [make_category(), make_category(1, masks=False)]
    whole = run_evaluation(categories, protocol(), tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(run):
        done.append(run)
        if len(done) == 5:
            raise Killed

    done = []
    with pytest.raises(Killed):
        run_evaluation(categories, protocol(), tmp_path / "parts", kill)
    rest = []
    assert run_evaluation(categories, protocol(), tmp_path / "parts", rest.append) == whole
    assert len(done) + len(rest) == len(whole) == protocol().count(categories) == 16
    assert not set(done) & set(rest)


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
    with pytest.raises(InputError, match="several categories are named"):
        run_evaluation([make_category(), make_category()], protocol(), tmp_path)


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
        given = {"category": category, "method": "fsad", "network": "a/net.safetensors", "shots": 10}
        return {**given, "draw": draw, "metrics": {"image AUROC": value}}

    results = [result("bolt", 0, 0.8), result("bolt", 1, 0.9), result("nut", 0, 0.6), result("nut", 1, 0.7)]
    lines = table(results, "image AUROC", 10).splitlines()
    assert lines[0] == "| method | network | bolt | nut | mean |"
    assert lines[2] == "| fsad | a/net.safetensors | 0.850 ± 0.071 | 0.650 ± 0.071 | 0.750 ± 0.071 |"


def test_wrong_protocols_are_named(tmp_path):
    with pytest.raises(InputError, match=r"unknown methods \['magic'\]"):
        protocol(methods=("magic",))
    with pytest.raises(InputError, match=r"7 shots are more than there are in .* \(6\)"):
        run_evaluation([make_category()], protocol(shots=(7,)), tmp_path)
    with pytest.raises(InputError, match="1 or more"):
        protocol(draws=0)


def test_the_command(tmp_path):
    root = tmp_path / "data" / "bolt"
    product = ProceduralTask(2, SIZE)
    for name, make, numbers in (
        ("train/good", product.normal, range(4)),
        ("test/good", product.normal, range(4, 7)),
        ("test/bad", product.defective, range(7, 10)),
    ):
        (root / name).mkdir(parents=True)
        for number in numbers:
            Image.fromarray(make(number).image).save(root / name / f"{number}.png")
    options = ("--backbone", "small_resnet", "--shots", 2, "--draws", 2, "--input-size", SIZE)
    done = fsad("evaluate", f"folders={root.parent}", *options, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "### image AUROC, 2 shots" in done.stdout and "| ridge | small_resnet |" in done.stdout
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert len(rows) == 8 == len(json.loads((tmp_path / "out" / "results.json").read_text()))
    assert "mvtec: " in fsad("evaluate", "--list").stdout
    wrong = fsad("evaluate", "folders=/nowhere")
    assert wrong.returncode == 1 and "/nowhere" in wrong.stderr
    assert fsad("evaluate").returncode == 2
