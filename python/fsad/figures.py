"""PNG files; figures by matplotlib, which the extra ``plots`` brings; log and curves of a training."""

import csv
import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fsad.episodes import Episode
from fsad.errors import FsadError
from fsad.model_file import replace_csv, replace_file

PANELS = {
    "energy": ("normal", "sampled", "corrupted"),
    "squared error": ("reconstruction", "start"),
    "loss": ("loss", "contrast"),
    "gradient norm": ("gradient",),
}


def need_matplotlib() -> None:
    """Raises FsadError where it is missing; call it before the work that is to be drawn."""
    if find_spec("matplotlib") is None:
        raise FsadError("plots are drawn by matplotlib; run: pip install 'fsad[plots]'")


def new_figure(width: float, height: float) -> Any:
    """A matplotlib.figure.Figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def write_png(path: Path, drawn: Any) -> None:
    """Write a figure, or pixels, uint8 (H, W) or (H, W, 3), whole or not at all."""
    file = io.BytesIO()
    if isinstance(drawn, np.ndarray):
        Image.fromarray(drawn).save(file, "PNG")
    else:
        drawn.savefig(file, format="png", dpi=80)
    replace_file(path, file.getvalue())


class TrainingLog:
    """Rows of numbers, one an update, and plots of them.

    Args:
        folder: where the files are.
        update: the next update; what an interrupted training logged from there on is forgotten.
    """

    def __init__(self, folder: Path, update: int) -> None:
        need_matplotlib()  # an error now rather than after the first updates
        self.folder, self.rows = folder, list[dict[str, float]]()
        if (folder / "log.csv").exists():
            with open(folder / "log.csv", newline="", encoding="utf-8") as file:
                rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
            self.rows = [row for row in rows if row["update"] < update]

    def flush(self) -> None:
        rows = ({**row, "update": int(row["update"])} for row in self.rows)
        replace_csv(self.folder / "log.csv", list(self.rows[-1]), rows)

    def draw(self, episode: Episode, sample: Tensor) -> None:
        """Curves of all rows; and q, q̂ and LD(q̂) of an episode, one row each."""
        figure = new_figure(10, 6)
        for axes, (title, names) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
            for name in (name for name in names if name in self.rows[-1]):
                axes.plot(*_smooth([(row["update"], row[name]) for row in self.rows]), label=name)
            axes.set(title=title, xlabel="update")
            if axes.lines:
                axes.legend()
        write_png(self.folder / "curves.png", figure)
        rows = [episode.query, episode.corrupted, sample.cpu()]
        grid = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
        pixels = (grid.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        write_png(self.folder / "samples.png", pixels)


def _smooth(points: list[tuple[float, float]], groups: int = 200) -> list[list[float]]:
    """Means of neighbouring points, so that a curve has at most ``groups`` of them."""
    table = torch.tensor(points, dtype=torch.float64)
    return torch.stack([part.mean(0) for part in table.split(-(-len(table) // groups))]).T.tolist()
