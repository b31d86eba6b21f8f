"""Figures by matplotlib, which the extra ``plots`` brings."""

from __future__ import annotations

import io
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fsad.errors import FsadError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def need_matplotlib() -> None:
    """Raises FsadError where it is missing; call it before the work that is to be drawn."""
    if find_spec("matplotlib") is None:
        raise FsadError("plots are drawn by matplotlib; run: pip install 'fsad[plots]'")


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return file.getvalue()
