"""What the measurements were made on; no dates and no names."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

import fsad
import fsad_ext  # noqa: F401  (registers torch.ops.fsad)


def facts() -> dict[str, str]:
    return {
        "processor": _processor(),
        "caches": _caches(),
        "threads": f"{torch.get_num_threads()} of torch, {os.cpu_count()} logical processors",
        "kernels": f"fsad {fsad.__version__}, {torch.ops.fsad.cpu_isa()}",
        "torch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}",
        "system": f"Python {platform.python_version()}, {' '.join(platform.libc_ver())}",
    }


def markdown(facts: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    return fields.get("model name", platform.machine())


def _caches() -> str:
    """Of the first core, as the kernel tells: "L1 32K, L2 1024K, L3 32768K"."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (index / "type").read_text().strip() != "Instruction":
            found[(index / "level").read_text().strip()] = (index / "size").read_text().strip()
    return ", ".join(f"L{level} {size}" for level, size in found.items()) or "unknown"
