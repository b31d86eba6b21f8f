"""Find an installed torch without importing it.

The library is compiled against torch's headers and linked against its libraries. Any torch from
2.11 on will do: the stable ABI makes the result independent of which. Importing torch is out of the
question under build isolation, where pip hides the target environment from the import system.
"""

from __future__ import annotations

import re
import site
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

FLOOR = (2, 11)
REQUIREMENT = "torch>=2.11"


class Torch(NamedTuple):
    """A torch package on disk: its folder and its version, for example ``2.13.0+cpu``."""

    folder: Path
    version: str


def find_torch() -> Torch | None:
    """Return the first torch, 2.11 or newer, that has headers; None if there is none.

    Looked through, in this order: the import path of this process (the build environment), then the
    site-packages folders of its interpreter (under pip's isolation: the target environment).
    """
    folders = [*sys.path, sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    for folder in dict.fromkeys(folders):
        torch = Path(folder).resolve() / "torch"
        version = _version(torch)
        if version and _release(version) >= FLOOR and (torch / "include/torch/csrc/stable").is_dir():
            return Torch(torch, version)
    return None


def _version(torch: Path) -> str | None:
    """Read ``__version__`` from the text of ``torch/version.py``; None if there is no such file."""
    try:
        text = (torch / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^__version__ = ['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
