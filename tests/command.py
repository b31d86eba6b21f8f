"""The command as a stranger runs it: in a process of its own, on files."""

import csv
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from fsad.procedural import DEFECTS, ProceduralTask

SMALL = ("--input-size", "64")  # quick


def fsad(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Run `fsad`; whatever is wrong with the input, it must never answer with a traceback."""
    result = subprocess.run(
        [sys.executable, "-m", "fsad", *map(os.fspath, map(_text, arguments))],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        **options,
    )
    assert "Traceback" not in result.stdout + result.stderr, result.stderr
    return result


def _text(argument: object) -> str | os.PathLike:
    return argument if isinstance(argument, os.PathLike) else str(argument)


def write_parts(
    folder: Path, count: int, kind: str = "disc", seed: int = 0, defective: bool = False
) -> list[Path]:
    """Procedural parts of one product, for each seed others, as PNG files; the kinds of defect take turns."""
    task = ProceduralTask(178, 96, kind)  # a weave whose spots are plain even at the size of `SMALL`
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:02}.png" for i in range(count)]
    for i, path in enumerate(paths):
        number = 1000 * seed + i
        part = task.defective(number, DEFECTS[i % len(DEFECTS)]) if defective else task.normal(number)
        Image.fromarray(part.image).save(path)
    return paths


def read_scores(folder: Path) -> dict[str, tuple[float, bool]]:
    """scores.csv as {image: (score, anomalous)}."""
    with open(folder / "scores.csv", newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == ["image", "score", "anomalous"]
        return {row["image"]: (float(row["score"]), row["anomalous"] == "1") for row in reader}


def files(folder: Path) -> set[str]:
    """Everything under a folder, hidden files too."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
