"""Quality and time side by side as ``max_atoms`` falls: how the detector's default is chosen.

    python bench/product.py FOLDER ... [--elpv] [--max-atoms full,1400,256] [--draws 5]

A folder is a category in MVTec AD's layout (train/good, test/good, test/<defect>), or holds such categories.
The table is printed, and joins bench/REPORT.md the next time that is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import results
import torch
from measure import Times, interleave
from pictures import BACKBONE_OF, SHOTS, SIZE, default_backbone, default_layer, stages, synthetic
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fsad import datasets
from fsad.frames import score_maps
from fsad.images import list_images, load_image, resize

TITLE = "Quality and time as `max_atoms` falls"
SIZES = "full,4096,2048,1400,1024,512,256,128"
ALLOWED_LOSS = 0.005
LIMITS = {"adapt": 1.5, "fit": 3, "energy map": 2, "gradient map": 6}  # multiples of the backbone


class Category(NamedTuple):
    name: str
    normal: Sequence[Path]
    test: Sequence[Path]
    anomalous: Sequence[bool]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--elpv", action="store_true", help="also the solar cells of `fsad demo`, installed")
    parser.add_argument("--max-atoms", default=SIZES, help=f'numbers, or "full" for all (default: {SIZES})')
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="keep the result apart, as report.py --quick does"
    )
    chosen = parser.parse_args()
    categories = [category for folder in chosen.folders for category in read(folder)]
    if chosen.elpv:
        mono = datasets.load("elpv")[0]
        test, anomalous = zip(*((picture.source, picture.anomalous) for picture in mono.test), strict=True)
        categories.append(Category("solar cells", mono.normal, test, anomalous))
    backbone, sizes = default_backbone(), chosen.max_atoms.split(",")
    result = {
        "draws": chosen.draws,
        "auroc": {c.name: auroc(backbone, c, sizes, chosen.draws) for c in categories},
        "seconds": {size: seconds(backbone, size, chosen.rounds) for size in sizes},
    }
    results.save("product", result, chosen.quick)
    print(markdown(result))


def read(folder: Path) -> list[Category]:
    """The category that a folder is, or those that it holds.

    Raises FileNotFoundError if there is none.
    """
    found = [
        f
        for f in (folder, *sorted(folder.iterdir()))
        if (f / "train" / "good").is_dir() and (f / "test").is_dir()
    ]
    if not found:
        raise FileNotFoundError(
            f"no category in {folder}: expected train/good and test/, there or one level down"
        )
    categories = []
    for each in found:
        kinds = [(kind, list_images(kind)) for kind in sorted((each / "test").iterdir())]
        test = [path for _, paths in kinds for path in paths]
        anomalous = [kind.name != "good" for kind, paths in kinds for _ in paths]
        categories.append(Category(each.name, list_images(each / "train" / "good"), test, anomalous))
    return categories


@torch.no_grad()
def auroc(
    backbone: Callable[[Tensor], Tensor], category: Category, sizes: Sequence[str], draws: int
) -> dict[str, list[float]]:
    """Image AUROC, draw by draw, for each size."""
    normal, test = features(backbone, category.normal), features(backbone, category.test)
    values: dict[str, list[float]] = {size: [] for size in sizes}
    for draw in range(draws):
        chosen = np.random.default_rng(draw).choice(len(normal), SHOTS, replace=False)
        support = normal[sorted(chosen)]
        for size in sizes:
            layer = default_layer(max_atoms=atoms(size)).adapt(support)
            layer.load_compact(layer.compact())  # rounded as the detector's is
            scores = [score_maps(layer(part).energy, SIZE)[1] for part in test.split(8)]
            values[size].append(roc_auc_score(category.anomalous, torch.cat(scores).numpy()))
            print(f"  {category.name}, draw {draw}, {size} atoms: {values[size][-1]:.4f}", flush=True)
    return values


def features(backbone: Callable[[Tensor], Tensor], paths: Sequence[Path]) -> Tensor:
    """(len(paths), c, h, w), read and computed a few at a time."""
    parts = []
    for i in range(0, len(paths), 8):
        images = np.stack([resize(load_image(path), SIZE) for path in paths[i : i + 8]])
        parts.append(backbone(torch.from_numpy(images).permute(0, 3, 1, 2)))
    return torch.cat(parts)


def seconds(backbone: Any, size: str, rounds: int) -> dict[str, list[float]]:
    """The rounds' seconds of every stage; they depend on the pictures' number and size alone."""
    layer = default_layer(max_atoms=atoms(size))
    normal, picture = synthetic(SHOTS), synthetic(1, defective=True, seed=1)
    return interleave(stages(backbone, layer, normal, picture), rounds).seconds


def atoms(size: str) -> int | None:
    return None if size == "full" else int(size)


def markdown(result: dict[str, Any], plots: Path | None = None) -> str:
    names = list(result["auroc"])
    heads = [*names, "mean", "lost", *(f"{stage} (≤ {limit})" for stage, limit in LIMITS.items())]
    lines = [
        f"Image AUROC, mean ± standard deviation over {result['draws']} draws of {SHOTS} normal pictures;",
        f"what the mean over categories loses against the full dictionary (at most {ALLOWED_LOSS}); times as",
        f"multiples of the backbone's on the same pictures, {SHOTS} for adapt and fit, one for the maps.",
        "What misses its limit is bold.",
        "",
        f"| max_atoms | {' | '.join(heads)} |",
        "|---" * (1 + len(heads)) + "|",
    ]
    means = {size: _mean(result, size) for size in result["seconds"]}
    for size, seconds in result["seconds"].items():
        cells = [_spread(result["auroc"][name][size]) for name in names]
        lost = means["full"] - means[size] if names and "full" in means else None
        cells.append(f"{means[size]:.4f}" if names else "-")
        cells.append("-" if lost is None else _marked(f"{lost:+.4f}", lost <= ALLOWED_LOSS))
        for stage, limit in LIMITS.items():
            ratio = Times(seconds).ratio(stage, BACKBONE_OF[stage])
            cells.append(_marked(f"{ratio:.2f}", ratio <= limit))
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(result: dict[str, Any], size: str) -> float:
    return mean(mean(values[size]) for values in result["auroc"].values()) if result["auroc"] else 0.0


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _marked(text: str, met: bool) -> str:
    return text if met else f"**{text}**"


if __name__ == "__main__":
    main()
