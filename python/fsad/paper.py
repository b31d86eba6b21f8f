"""The tables of the paper's section 4: what each compares, and the training that it takes here.

The paper gives neither backbone, size of pictures, thresholds nor length of training: those are ours. So is
the whitening of features.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from fsad.datasets import Category
from fsad.errors import InputError
from fsad.evaluate import Protocol
from fsad.model_file import replace_file
from fsad.recipe import NETWORK, Recipe, run
from fsad.trainer import CHECKPOINT, Schedule

Settings = dict[str, Any]
CODING = {"ridge": 1.0, "max_atoms": 512}
L1, L3 = ({"sparse_coding": CODING | {"receptive_field": field}, "separation": 0.0} for field in (1, 3))
NOT_SPARSE = L3 | {"sparse_coding": CODING | {"receptive_field": 3, "shrinkage": "none"}}
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
    1: Table({"l3": L3, "maml-ae": MAML}, (*BOTH, "ae-mse", "ae-ssim")),
    2: Table({"l3": L3, "maml-ae": MAML}, ("fsad",), (1, 5, 10)),
    3: Table({"l1": L1, "l3": L3}, categories=("leather", "grid", "hazelnut", "cable", "zipper")),
    4: Table({"l3": L3, "not-sparse": NOT_SPARSE}, categories=("leather", "hazelnut", "cable")),
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

    Each category is tested with networks that never saw it: those of tables 1, 3 and 4 were trained on all
    others, those of table 2 on ShanghaiTech, for its own later scenes on the first six.

    Raises InputError: the data is not that of the table.
    """
    table, scenes = TABLES[number], [text for text in given if text.startswith(SCENES)]
    later = [c.name for c in categories if c.dataset.startswith(SCENES) and c.name.partition(":")[0] > SPLIT]
    if number == 2:
        tested = [c for c in categories if c.test and (c.name in later or not c.dataset.startswith(SCENES))]
    else:
        tested = [c for c in categories if c.test and c.name in (table.categories or (c.name,))]
    if not tested or (number == 2 and not scenes):
        needed = f"{SCENES}=ROOT, and sets to test on" if number == 2 else ", ".join(table.categories)
        raise InputError(f"table {number} needs {needed or 'categories'}; got {', '.join(given)}")
    digest = hashlib.sha256(f"{sorted(given)} {default.size} {updates}".encode()).hexdigest()
    base, done = folder / "trained" / digest[:8], dict[str, Path]()
    for name, category in product(table.networks, tested):
        path = base / name / category.name / NETWORK
        out = [category.name] if number != 2 else later if category.name in later else []
        data = given if number != 2 else scenes
        recipe = Recipe(data=data, leave_out=out, size=default.size, **table.networks[name])
        same = done.setdefault(f"{name} {out}", path)
        if path.exists():
            continue
        if same != path:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, same.read_bytes())
        else:
            progress(f"training {name} without {', '.join(out) or 'any of them'}")
            resume = path.with_name(CHECKPOINT).exists()
            run(recipe, Schedule(updates=updates), path.parent, resume=resume, device=default.device)
    names = {name: str(base / name / "{category}" / NETWORK) for name in table.networks}
    maml = names.pop("maml-ae", None)
    theirs: dict[str, Any] = {"methods": table.methods, "shots": table.shots, "maml": maml, "augment": True}
    return tested, replace(default, backbones=list(names.values()), **theirs)
