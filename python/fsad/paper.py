"""The tables of the paper's section 4: what each compares, and the training that it takes here.

The paper gives neither backbone, size of pictures, thresholds nor length of training: those are ours. So is
the whitening of features.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from fsad.datasets import Category
from fsad.errors import InputError
from fsad.evaluate import Protocol
from fsad.recipe import NETWORK, Recipe, run
from fsad.trainer import CHECKPOINT, Schedule

Settings = dict[str, Any]
CODING = {"ridge": 1.0, "max_atoms": 512}
L1, L3 = ({"sparse_coding": CODING | {"receptive_field": field}} for field in (1, 3))
NOT_SPARSE = {"sparse_coding": L3["sparse_coding"] | {"shrinkage": "none"}}
MAML = {"method": "maml-ae"}
BOTH = ("fsad", "fsad-gradient")  # its energy, and its map of gradients
SPLIT = "06"  # the last scene of ShanghaiTech that is trained on where scenes of it are tested on


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

    Raises:
        InputError: the data is not that of the table.
    """
    table, scenes = TABLES[number], [text for text in given if text.startswith("shanghaitech")]
    if number == 2:
        later = sorted(c.name for c in categories if c.dataset.startswith("shanghaitech") and c.name > SPLIT)
        tested = [c for c in categories if c.name in later or not c.dataset.startswith("shanghaitech")]
    else:
        tested = [c for c in categories if c.name in (table.categories or (c.name,))]
    tested = [category for category in tested if category.test]
    if not tested or (number == 2 and not scenes):
        needed = "shanghaitech=ROOT, and sets to test on" if number == 2 else ", ".join(table.categories)
        raise InputError(f"table {number} needs {needed or 'categories'}; got {', '.join(given)}")
    base = folder / "trained" / f"{default.size}px-{updates}"
    done: dict[str, Path] = {}
    for category in tested:
        for name, changes in table.networks.items():
            path = base / name / category.name / NETWORK
            out = [category.name] if number != 2 else later if category.name in later else []
            data = given if number != 2 else scenes
            recipe = Recipe(data=data, leave_out=out, size=default.size, **changes)
            key = json.dumps(asdict(recipe))
            if not path.exists() and key in done:  # the same for several
                path.parent.mkdir(parents=True)
                shutil.copy(done[key], path)
            elif not path.exists():
                progress(f"training {name} without {', '.join(out) or 'any of them'}")
                resume = path.with_name(CHECKPOINT).exists()
                run(recipe, Schedule(updates=updates), path.parent, resume=resume, device=default.device)
            done[key] = path
    names = {name: str(base / name / "{category}" / NETWORK) for name in table.networks}
    maml = names.pop("maml-ae", None)
    theirs = {"methods": table.methods, "shots": table.shots, "maml": maml, "augment": True}
    return tested, Protocol(**(asdict(default) | theirs | {"backbones": list(names.values())}))
