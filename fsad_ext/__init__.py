"""The native operators: loads the library into torch, which then knows ``torch.ops.fsad``.

Raises ImportError with one sentence when torch is missing or too old, when the operating system is
not supported, or when the library has not been built.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

TORCH_FLOOR = (2, 11)
LIBRARY = Path(__file__).with_name("libfsad.so")


def _load_library() -> None:
    """Load libfsad.so, after checking everything that would otherwise end in a linker's message."""
    if not sys.platform.startswith("linux"):
        raise ImportError(f"fsad supports Linux only so far, and this is {sys.platform}.")
    floor = ".".join(map(str, TORCH_FLOOR))
    needed = f"fsad needs PyTorch {floor} or newer"
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"{needed}, and none is installed: pip install 'torch>={floor}'") from None
    release = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if release is None or (int(release[1]), int(release[2])) < TORCH_FLOOR:
        advice = f"pip install --upgrade 'torch>={floor}'"
        raise ImportError(f"{needed}, and {torch.__version__} is installed: {advice}")
    if not LIBRARY.exists():
        raise ImportError(
            f"fsad's native library has not been built (no {LIBRARY}): run `pip install -e .` in "
            "the source tree, or leave the source tree if fsad is installed elsewhere."
        )
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        raise ImportError(
            f"fsad's native library does not load under torch {torch.__version__} "
            f"({error.__cause__ or error}); build it again: "
            "pip install --force-reinstall --no-deps --no-cache-dir ."
        ) from None


_load_library()

from fsad_ext.ops import DEVICES, build_info  # noqa: E402  (the library comes first)

__all__ = ["DEVICES", "LIBRARY", "TORCH_FLOOR", "build_info"]
