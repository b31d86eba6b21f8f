"""The command as a stranger runs it: in a process of its own, on files."""

import csv
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from fsad.synthetic import make_parts

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


def write_parts(folder: Path, count: int, **options) -> list[Path]:
    """Procedural parts as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:02}.png" for i in range(count)]
    for path, part in zip(paths, make_parts(count, size=96, **options), strict=True):
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
