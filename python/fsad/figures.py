"""PNG files, and figures by matplotlib, which the extra ``plots`` brings."""

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fsad.errors import FsadError
from fsad.model_file import replace_file


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
