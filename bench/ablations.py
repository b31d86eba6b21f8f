"""What the parts of the training do: two trainings each that differ in one of them alone.

    python bench/ablations.py FOLDER [--updates 300] [--episodes 2] [--size 32] [--seed 0]

Each arm is `fsad train --procedural 300 --shots 3 --queries 3` with the changes of ``ARMS`` as ``--set``, on
the same tasks in the same order; one that was interrupted is resumed, a finished one is only judged. FOLDER
gets their folders, a plot of both arms' curves for each pair, and table.md, which is printed too.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
from sklearn.metrics import roc_auc_score

from fsad.episodes import Episodes
from fsad.episodic import EpisodeLoss
from fsad.figures import new_figure, write_png
from fsad.model_file import replace_file
from fsad.networks import load_network
from fsad.recipe import NETWORK, Recipe, run
from fsad.trainer import CHECKPOINT, Schedule

ARMS = {
    "default": [],
    "soft": ['sparse_coding={"shrinkage":"soft"}'],
    "noise-start": ['corruptions=["noise-start"]'],
    "not-sparse": ['sparse_coding={"shrinkage":"none"}'],
    "field-3": ['sparse_coding={"receptive_field":3}'],
}
PAIRS = {
    "shrinkage": {"default": "SigShrink", "soft": "soft shrinkage"},  # Fig. 5
    "field": {"default": "receptive field 1", "field-3": "receptive field 3"},  # table 3
    "sparsity": {"default": "sparse", "not-sparse": "not sparse"},  # table 4
    "start": {"default": "patches of noise", "noise-start": "noise alone"},  # section 3.3
}
CURVES = ("loss", "reconstruction", "separation")
COLUMNS = ("loss", "L_rec", "L_sep", "E(q)", "E(q̂)", "E(q̂) − E(q)", "AUROC, noise", "AUROC, defects")
TASKS = 50  # to judge on, of products never trained on


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--episodes", type=int, default=2, help="an update")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    given = {
        "architecture": {"name": "small_resnet", "stride": 4, "seed": chosen.seed},  # as of `fsad train`
        "procedural": 300,
        "shots": 3,
        "queries": 3,
        "size": chosen.size,
        "seed": chosen.seed,
    }
    schedule = Schedule(chosen.updates, chosen.episodes)
    logs, lines = {}, [f"| arm | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, changes in ARMS.items():
        recipe, folder = Recipe.of(given, changes), chosen.folder / name
        run(recipe, schedule, folder, resume=(folder / CHECKPOINT).exists())
        with open(folder / "log.csv", newline="") as file:
            logs[name] = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
        cells = [f"{cell:.4g}" for cell in (*final(logs[name]), *judge(recipe, folder))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    for pair, arms in PAIRS.items():
        draw(chosen.folder / f"{pair}.png", {label: logs[name] for name, label in arms.items()})
    table = "\n".join(lines) + "\n"
    replace_file(chosen.folder / "table.md", table.encode())
    print(table, end="")


def final(log: list[dict[str, float]]) -> list[float]:
    """Means of the last quarter of the updates."""
    return [mean(row[name] for row in log[-max(1, len(log) // 4) :]) for name in CURVES]


def judge(recipe: Recipe, folder: Path) -> list[float]:
    """On tasks never trained on: energies without and with a patch of noise, and AUROC within a task."""
    loss, patches = recipe.loss(), recipe.held_out_episodes()
    assert isinstance(loss, EpisodeLoss)
    loss.model.backbone = load_network(folder / NETWORK)[0]
    normal, corrupted, noise = scores(loss, patches)
    *_, defects = scores(loss, replace(patches, corruptions=recipe.defects))
    return [normal, corrupted, corrupted - normal, noise, defects]


def scores(loss: EpisodeLoss, episodes: Episodes) -> tuple[float, float, float]:
    """Mean energies of queries as they are and corrupted, and the mean AUROC."""
    found = []
    for support, query, corrupted, *_ in (episodes[number] for number in range(TASKS)):
        energies = loss.scores(support, torch.cat([query, corrupted]))
        auroc = roc_auc_score([0] * len(query) + [1] * len(corrupted), energies)
        found.append((*(float(part.mean()) for part in energies.split(len(query))), float(auroc)))
    normal, other, aurocs = zip(*found, strict=True)
    return mean(normal), mean(other), mean(aurocs)


def draw(path: Path, logs: dict[str, list[dict[str, float]]]) -> None:
    """One panel a loss, one curve a training: running means of a tenth of the updates."""
    figure = new_figure(12, 3.5)
    for axes, name in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        for label, log in logs.items():
            values = torch.tensor([row[name] for row in log])
            width = max(1, len(values) // 10)
            axes.plot(range(width, len(values) + 1), values.unfold(0, width, 1).mean(1), label=label)
        axes.set(title=name, xlabel="update")
        axes.legend()
    write_png(path, figure)


if __name__ == "__main__":
    main()
