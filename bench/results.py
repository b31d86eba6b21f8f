"""Where results stay between runs: one JSON file a section, with the machine that it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import machine

BENCH = Path(__file__).parent
FOLDER = BENCH.parent / "build" / "bench"


def folder(quick: bool) -> Path:
    """``--quick`` measures nothing worth keeping: what it writes stays apart."""
    return FOLDER / "quick" if quick else FOLDER


def save(name: str, result: Any, quick: bool) -> None:
    path = folder(quick) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine.facts(), "result": result}, indent=1))


def load(name: str, quick: bool) -> dict[str, Any] | None:
    path = folder(quick) / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None
