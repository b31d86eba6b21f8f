"""What a training leaves to look at: a CSV log of numbers, and PNGs of curves and samples."""

import csv
from pathlib import Path

import torch
from torch import Tensor

from fsad.episodes import Episode
from fsad.errors import InputError
from fsad.figures import need_matplotlib, new_figure, write_png
from fsad.model_file import replace_csv

PANELS = {
    "energy": ("normal", "sampled", "corrupted"),
    "squared error": ("reconstruction", "start"),
    "loss": ("loss", "contrast", "separation"),
    "gradient norm": ("gradient",),
}


class TrainingLog:
    """Rows of numbers, one an update, and plots of them.

    Args:
        folder: where the files are.
        update: the next update; what an interrupted training logged from there on is forgotten.
    """

    def __init__(self, folder: Path, update: int) -> None:
        need_matplotlib()  # an error now rather than after the first updates
        self.folder, self.path, self.rows = folder, folder / "log.csv", list[dict[str, float]]()
        if self.path.exists():
            try:
                with open(self.path, newline="", encoding="utf-8") as file:
                    rows = ({k: float(v) for k, v in row.items()} for row in csv.DictReader(file))
                    self.rows = [row for row in rows if row["update"] < update]
            except (TypeError, ValueError, KeyError) as error:  # cut off, or saved by another program
                advice = "remove it to go on without the earlier rows"
                raise InputError(f"{self.path} is damaged ({error}); {advice}") from error

    def flush(self) -> None:
        """Write all rows, if there are any."""
        if self.rows:
            rows = ({**row, "update": int(row["update"])} for row in self.rows)
            replace_csv(self.path, list(self.rows[-1]), rows)

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
