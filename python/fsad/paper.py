"""The tables of the paper's section 4: what each compares, and the training that it takes here.

The paper gives neither backbone, size of pictures, thresholds nor length of training: those are ours. So is
the whitening of features, which the networks called "paper" do without.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from fsad import __version__
from fsad.datasets import Category, fingerprint
from fsad.errors import InputError
from fsad.evaluate import Protocol, check, load_networks
from fsad.evaluation_tables import DIFFERENCE
from fsad.model_file import replace_file
from fsad.recipe import NETWORK, Recipe, run
from fsad.sparse_coding import SparseCodingLayer
from fsad.trainer import CHECKPOINT, Schedule

Settings = dict[str, Any]
CODING = {"ridge": 1.0, "max_atoms": 512}
L1, L3 = ({"sparse_coding": CODING | {"receptive_field": field}, "separation": 0.0} for field in (1, 3))
NOT_SPARSE = L3 | {"sparse_coding": CODING | {"receptive_field": 3, "shrinkage": "none"}}
# η = 1, features as they are, absolute thresholds. Features are scaled down, by a number that training goes
# on from: η‖D‖₂² must stay below 2, and is 0.1 to 0.5 of an untrained network's at 256 px. Energies and
# thresholds are of the scale's square, and what multiplies energies in the loss makes up for it.
SCALE = 5e-4
RAW = SparseCodingLayer.paper(max_atoms=512, lambda_max=250 * SCALE**2, lambda_min=50 * SCALE**2)
PAPER = {
    "architecture": {"name": "small_resnet", "stride": 4, "temperature": SCALE},
    "sparse_coding": RAW.config(),
    "step_size": 0.01 / SCALE**2,
    "contrast": 4 / SCALE**2,
    "restraint": 32 / SCALE**4,
    "separation": 0.0,
}
PRESETS = {"l3": L3, "paper": PAPER}
MAML = {"method": "maml-ae"}
BOTH = ("fsad", "fsad-gradient")  # its energy, and its map of gradients
SCENES, SPLIT = "shanghaitech", "06"  # its scenes up to this one train networks for those after it


class Table(NamedTuple):
    """networks: to train, by name, with what differs from the recipe; maml-ae among them is compared too."""

    networks: dict[str, Settings]
    methods: tuple[str, ...] = BOTH
    shots: tuple[int, ...] = (10,)
    categories: tuple[str, ...] = ()  # all


TABLES = {
    1: Table(PRESETS | {"maml-ae": MAML}, (*BOTH, "ae-mse", "ae-ssim")),
    2: Table(PRESETS | {"maml-ae": MAML}, ("fsad",), (1, 5, 10)),
    3: Table({"l1": L1} | PRESETS, categories=("leather", "grid", "hazelnut", "cable", "zipper")),
    4: Table(PRESETS | {"not-sparse": NOT_SPARSE}, categories=("leather", "hazelnut", "cable")),
}


def prepare(
    number: int,
    given: Sequence[str],
    categories: Sequence[Category],
    folder: Path,
    updates: int,
    default: Protocol,
    progress: Callable[[str], object] = lambda name: None,
) -> tuple[list[Category], Protocol]:
    """Train in ``folder``/trained what is not there yet; the categories to test on, and how.

    A network is there if it was trained on the same pictures with the same settings by the same fsad.

    Each category is tested with networks that never saw it: those of tables 1, 3 and 4 were trained on all
    others, those of table 2 on ShanghaiTech, for its own later scenes on the first six.

    Raises InputError: the data is not that of the table.
    """
    table, on_scenes, data, seen = TABLES[number], number == 2, given, categories
    tested = [c for c in categories if c.test and c.name in (table.categories or (c.name,))]
    later = list[str]()
    if on_scenes:
        data = [text for text in given if text.startswith(SCENES)]
        seen = [c for c in categories if c.dataset.startswith(SCENES)]
        later = [c.name for c in seen if c.name.partition(":")[0] > SPLIT]
        tested = [c for c in tested if c.name in later or not c.dataset.startswith(SCENES)]
    if not tested or not data:
        what = f"{SCENES}=ROOT, and sets to test on" if on_scenes else ", ".join(table.categories)
        raise InputError(f"table {number} needs {what or 'categories'}; got {', '.join(given)}")
    schedule = Schedule(updates=updates)
    recipes = {name: Recipe(size=default.size, **settings) for name, settings in table.networks.items()}
    prints = sorted(c.name.encode() + fingerprint(source) for c in seen for source in c.normal)
    pictures = hashlib.sha256(b"".join(prints)).hexdigest()
    bases = {}
    for name, recipe in recipes.items():
        about = json.dumps([__version__, pictures, asdict(recipe), asdict(schedule)], sort_keys=True)
        bases[name] = folder / "trained" / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"
    names = {name: str(base / "{category}" / NETWORK) for name, base in bases.items()}
    maml = names.pop("maml-ae", None)
    theirs = replace(default, methods=table.methods, shots=table.shots, maml=maml, augment=True)
    protocol = replace(theirs, backbones=list(names.values()))
    # Before any training: both of them at once, and the networks that are there.
    check(tested, replace(protocol, methods=[*table.methods, *default.methods], maml=maml or default.maml))
    load_networks(tested, default)
    needed = []  # of each network and category: what it must not have seen, its path
    for name, category in product(recipes, tested):
        out = (later if category.name in later else []) if on_scenes else [category.name]
        needed.append((name, out, bases[name] / category.name / NETWORK))
    done = {f"{name} {out}": path for name, out, path in needed if path.exists()}
    for name, out, path in needed:
        if path.exists():
            continue
        if same := done.get(f"{name} {out}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, same.read_bytes())
        else:
            progress(f"training {name} without {', '.join(out) or 'any of them'}")
            resume = path.with_name(CHECKPOINT).exists()
            recipe = replace(recipes[name], data=data, leave_out=out)
            run(recipe, schedule, path.parent, resume=resume, device=default.device)
            done[f"{name} {out}"] = path
    return tested, protocol


def add_differences(results: Sequence[dict[str, Any]]) -> None:
    """The third column of table 4 among the metrics of fsad's energy; other scores have other units."""
    for result in results:
        if result["method"] == "fsad":
            result["metrics"][DIFFERENCE] = 1e4 * result["difference of errors"]
