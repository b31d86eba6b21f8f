"""What an evaluation found, as pictures: curves and scores, and heat maps beside the truth (as in Fig. 3).

All comes from the stored runs: nothing is scored again.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.metrics import roc_curve

from fsad.datasets import Category, read_mask, read_picture
from fsad.evaluate import ALL, EXAMPLE_SIZE, examples
from fsad.evaluation_tables import numbers_of_shots
from fsad.figures import new_figure, write_png
from fsad.images import resize
from fsad.metrics import MAX_FPR

RATES = np.linspace(0, 1, 201)  # where ROC curves are averaged


def write_plots(categories: Sequence[Category], results: Sequence[dict[str, Any]], folder: Path) -> None:
    """In ``folder``/plots, for each category and number of shots: <name>.png, and <name>-maps.png.

    Names that several data sets use begin with that of the data set.
    """
    (folder / "plots").mkdir(exist_ok=True)
    count = Counter(category.name for category in categories)
    for category in categories:
        name = category.name if count[category.name] == 1 else f"{category.dataset}-{category.name}"
        about = category.dataset, category.name
        own = [result for result in results if (result["dataset"], result["category"]) == about]
        for shots in numbers_of_shots(own):
            rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
            for result in own:
                if result["shots"] in (shots, ALL):
                    rows[f"{result['method']}\n{result['network']}"].append(result)
            path = folder / "plots" / f"{name.replace(':', '-')}-{shots}.png"
            write_png(path, _curves(rows))
            maps = {row: Image.open(folder / "runs" / f"{r[0]['file']}.png") for row, r in rows.items()}
            write_png(path.with_stem(f"{path.stem}-maps"), _maps(category, maps))


def _curves(rows: dict[str, list[dict[str, Any]]]) -> Any:
    """ROC and PRO, means over draws; below, the first draw's scores of normal and anomalous pictures."""
    height = -(-(len(rows) + 2) // 4)
    figure = new_figure(14, 3.5 * height)
    roc, pro, *places = figure.subplots(height, 4, squeeze=False).flat
    roc.set(title="ROC, pictures", xlabel="false-positive rate", ylabel="found")
    pro.set(title="PRO, pixels", xlabel="false-positive rate", ylabel="found of a component")
    for (name, runs), axes in zip(rows.items(), places, strict=False):
        rates = [roc_curve(run["anomalous"], run["scores"]) for run in runs]
        found = np.mean([np.interp(RATES, false, true) for false, true, _ in rates], 0)
        roc.plot([0, *RATES], [0, *found], label=_short(name))
        if "PRO curve" in runs[0]:
            curve = np.mean([run["PRO curve"] for run in runs], 0)
            pro.plot(np.linspace(0, MAX_FPR, len(curve)), curve)
        scores, anomalous = np.array(runs[0]["scores"]), np.array(runs[0]["anomalous"])
        axes.hist([scores[~anomalous], scores[anomalous]], 30, histtype="step", label=["normal", "anomalous"])
        axes.set_title(_short(name), fontsize=7)
        axes.locator_params(axis="x", nbins=4)
    for axes in places[len(rows) :]:
        axes.set_axis_off()
    for axes in (roc, places[0]):
        axes.legend(fontsize=6)
    return figure


def _short(name: str) -> str:
    """The end of a long path is what tells networks apart."""
    method, _, network = name.partition("\n")
    return f"{method}\n{network.removesuffix('/{category}/network.safetensors')[-24:]}"


def _maps(category: Category, maps: Mapping[str, Image.Image]) -> Any:
    """Anomalous pictures, what is wrong with them, and each method's maps, row by row."""
    shown = [category.test[i] for i in examples(category)]
    rows = {"picture": [resize(read_picture(picture.source), EXAMPLE_SIZE) for picture in shown]}
    if category.has_masks:
        rows["truth"] = [read_mask(picture.mask, EXAMPLE_SIZE) for picture in shown]
    rows |= {name: np.split(np.asarray(image), len(shown)) for name, image in maps.items()}
    figure = new_figure(1.6 * len(shown) + 0.3, 1.6 * len(rows))
    grid = figure.subplots(len(rows), len(shown), squeeze=False)
    for axes, (name, pictures) in zip(grid, rows.items(), strict=True):
        axes[0].set_ylabel(_short(name), fontsize=6)
        for each, picture in zip(axes, pictures, strict=True):
            # One scale a row: without it each map would reach from black to white, also an empty one.
            most = 1 if name == "truth" else 255
            each.imshow(picture, cmap="gray" if name == "truth" else "inferno", vmin=0, vmax=most)
            each.set(xticks=[], yticks=[])
    return figure
