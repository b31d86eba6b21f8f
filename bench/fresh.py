"""Runs a function of this folder in a process of its own, where nothing that was run before can help or harm.

``call("memory:coding", ...)`` is ``memory.coding(...)`` there. Arguments and results travel as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import Any

# glibc gives arrays beyond its thresholds back to the system when they are freed, and the next one costs page
# faults again. "raised": it keeps them all.
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "raised": {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**36)},
}
# The freed pieces of the heap fit only after some calls (glibc 2.36 needs up to five for two arrays).
WARM_UPS = {"default": 1, "raised": 5}


def call(function: str, *arguments: Any, allocator: str = "default") -> Any:
    """The result of ``module:function`` on ``arguments``, from a new process under that allocator setting."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    }
    process = subprocess.run(
        [sys.executable, __file__, function, json.dumps(arguments)],
        env=inherited | ALLOCATORS[allocator],
        stdout=subprocess.PIPE,
        text=True,
    )
    if process.returncode:
        raise RuntimeError(f"{function}{arguments} failed in a fresh process; its message is above")
    return json.loads(process.stdout.splitlines()[-1])


if __name__ == "__main__":
    module, name = sys.argv[1].split(":")
    print(json.dumps(getattr(importlib.import_module(module), name)(*json.loads(sys.argv[2]))))
