"""Recipes: what ``fsad train`` is told, checked, and the products that it trains on and leaves out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from fsad.errors import InputError
from fsad.recipe import Recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rain=1", "'rain' is no setting"),
        ("steps=two", "not JSON"),
        ("sparse_coding=3", "sparse_coding must be a mapping, got 3"),
        ('sparse_coding={"foo":1}', "cannot use sparse_coding=.*unexpected keyword argument 'foo'"),
        ('sparse_coding={"lambda_max":"a"}', "cannot use sparse_coding="),
        ('architecture={"foo":3}', "cannot use architecture=.*unexpected keyword argument 'foo'"),
        ('architecture={"width":"a"}', "cannot use architecture="),
        ('architecture={"stride":4.0}', "stride 4 or 8, got 32 and 4.0"),
        ('architecture={"temperature":0}', "expected a temperature above 0, or None, got 0"),
        ("data=5", "data must be a list of strings, got 5"),
        ('corruptions="noise"', "corruptions must be a list of strings, got 'noise'"),
        ('size="big"', "size must be a whole number, got 'big'"),
        ("shots=null", "shots must be a whole number, got None"),
        ("shots=2.5", "shots must be a whole number, got 2.5"),
        ('seed="a"', "seed must be a whole number, got 'a'"),
        ("seed=-1", "a seed of 0 or more; got 10, 4, 64 and -1"),
        ("augment=3", "augment must be true or false, got 3"),
        ('step_size="a"', "step_size must be a finite number, got 'a'"),
        ("reconstruction=true", "reconstruction must be a finite number, got True"),
        ("noise=NaN", "noise must be a finite number, got nan"),
        ('architecture={"name":"vgg"}', "unknown network 'vgg'"),
        ("reconstruction=-1", "cannot weigh"),
        ('method="gan"', "method must be one of"),
    ],
)
def test_wrong_recipes_are_named(change, message):
    with pytest.raises(InputError, match=message):
        recipe = Recipe.of({"procedural": 1}, [change])
        recipe.loss(), recipe.episodes()


def test_a_seed_that_torch_cannot_take_is_named_by_both_methods():
    for method in ("episodic", "maml-ae"):
        with pytest.raises(InputError, match="cannot use"):
            Recipe(
                procedural=1,
                method=method,
                seed=10**23,
                architecture={"name": "small_resnet", "seed": 10**23},
            ).loss()


def test_recipes_are_json_and_leave_categories_out(tmp_path, monkeypatch):
    for name in ("bolt", "nut"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / name / f"{i}.png")
    given = {"data": [str(tmp_path)], "leave_out": ["nut"], "shots": 2, "queries": 1}
    recipe = Recipe.of(given, ["steps=3", 'sparse_coding={"iterations":2}'])
    assert recipe.steps == 3 and recipe.sparse_coding["iterations"] == 2
    json.dumps(recipe.episodes().describe())
    assert recipe.episodes().describe()["categories"] == [["bolt", 3]]
    held_out = replace(recipe, corruptions=["noise-start"]).held_out_episodes()
    assert held_out.describe()["categories"] == [["nut", 3]]
    assert held_out.corruptions == ("noise",)  # whatever is trained on, so that trainings compare
    shutil.copytree(tmp_path / "nut", (small := tmp_path.with_name("small")) / "few")
    too_few = {**given, "data": [str(small)], "leave_out": ["few"], "procedural": 2, "queries": 3}
    assert len(Recipe.of(too_few, []).held_out_episodes().categories) == 100
    with pytest.raises(InputError, match="no category is named gear"):
        Recipe.of({**given, "leave_out": ["gear"]}, []).episodes()
    with pytest.raises(InputError, match="is given twice; its products would count as others' too"):
        Recipe.of({**given, "data": [str(tmp_path), f"{tmp_path}/."]}, []).episodes()
    for lot in ("a/lot=1", "b/lot=1"):  # no data set, and not the same
        shutil.copytree(tmp_path / "nut", tmp_path.with_name("lots") / lot / "nut")
    lots = [str(tmp_path.with_name("lots") / lot) for lot in ("a/lot=1", "b/lot=1")]
    assert len(Recipe.of({**given, "data": lots, "leave_out": []}, []).episodes().categories) == 2
    monkeypatch.chdir(tmp_path)  # a set without a folder is not in this one
    assert len(Recipe.of({**given, "data": ["elpv", "."], "leave_out": []}, []).episodes().categories) > 2
    with pytest.raises(InputError, match="elpv is given twice"):
        Recipe.of({**given, "data": ["elpv", "elpv"], "leave_out": []}, []).episodes()
    with pytest.raises(InputError, match=r"procedural are kept for evaluation; .* --procedural NUMBER"):
        Recipe.of({**given, "data": ["procedural"]}, []).episodes()
