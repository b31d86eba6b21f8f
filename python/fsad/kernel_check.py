"""Every native kernel against the plain PyTorch reference in float64: errors, and times.

One check a device, precision, kernel and code path, over shrinkages, receptive fields and numbers of steps.
The error is ‖result − truth‖ / ‖truth‖, the largest of all cases, where truth is computed from the inputs as
the dtype stores them. Allowed is four times the error that plain PyTorch makes in the same dtype, and a few
roundings; for float64, whose truth is no better than the result, and for TF32, which torch uses as it likes,
the error in float32 scaled to their precision.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsad import arguments, functional

# Channels, then images, height and width of the queries and of the support; two tasks.
SMALL = (7, (2, 6, 5), (3, 6, 5))
WIDE = (32, (1, 9, 11), (3, 10, 9))  # l = 3: first products along diagonals, a depth of more than one part
LARGE = (16, (1, 32, 32), (4, 32, 32))  # many tiles of a GPU's kernels, and something to time

EPS = {torch.finfo(dtype).dtype: torch.finfo(dtype).eps for dtype in arguments.DTYPES} | {"tf32": 2.0**-10}
PRECISIONS = {"cpu": ("float32", "float64"), "cuda": tuple(EPS)}
SIZES = {"cpu": (SMALL, WIDE), "cuda": (SMALL, LARGE)}
Results = dict[str, tuple[list[Tensor], float]]  # of each kernel, and milliseconds


def check_kernels(devices: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """What was found: an entry for each device, precision, kernel and path; what was left out, and why."""
    found: dict[tuple[str, ...], list[tuple[float, float, float]]] = {}
    left_out = []
    for device in devices:
        precisions = PRECISIONS[device]
        if device != "cpu" and (capability := torch.cuda.get_device_capability()) < (8, 0):
            precisions = tuple(name for name in precisions if EPS[name] <= EPS["float32"])
            needed = "bfloat16, float16 and TF32 on cuda: they need compute capability 8.0 or newer"
            has = "{}.{}".format(*capability)
            left_out.append(f"{needed}, and {torch.cuda.get_device_name()} has {has}")
        for problem, name in product(_problems(device), precisions):
            for kernel, numbers in _compare(problem, device, name).items():
                path = problem.path(kernel, device, _dtype(name))
                found.setdefault((device, name, kernel, path), []).append(numbers)
    checks: list[dict[str, Any]] = []
    for (device, dtype, kernel, path), cases in sorted(found.items()):
        where = {"device": device, "dtype": dtype, "kernel": kernel, "path": path, "cases": len(cases)}
        worst = zip(("error", "allowed", "milliseconds"), np.max(cases, 0).tolist(), strict=True)
        ok = all(error <= allowed for error, allowed, _ in cases)  # a NaN is not
        checks.append({**where, **dict(worst), "ok": ok})
    return checks, left_out


@dataclass(frozen=True)
class _Problem:
    size: tuple[int, tuple[int, ...], tuple[int, ...]]
    field: int
    steps: int
    shrinkage: str

    def path(self, kernel: str, device: str, dtype: torch.dtype) -> str:
        """Which code computes it, by the library's own word: an instruction set, or a path of the GPU."""
        channels, *sides = self.size
        z, d = (torch.empty(2, *maps, channels, dtype=dtype, device=device) for maps in sides)
        steps = 0 if kernel == "peak" else self.steps
        return torch.ops.fsad.path(z, d, None, steps, self.field, "backward" in kernel)

    def run(self, device: str, dtype: torch.dtype, backend: str, stored: torch.dtype) -> Results:
        """Results and milliseconds of every kernel, from random values rounded to ``stored``."""
        channels, (images, *queries), (support_images, *support) = self.size
        generator = torch.Generator().manual_seed(self.field)

        def random(*shape: int, size: float = 1.0) -> Tensor:
            values = size * torch.randn(shape, generator=generator, dtype=torch.float64)
            return values.to(stored).to(device, dtype)

        width, atoms = channels * self.field**2, support_images * support[0] * support[1]
        # ‖D‖₂ ≈ 1, thresholds about as large as ηDᵀz, small steps: well-conditioned even in 16 bits.
        size, step = 1 / (atoms**0.5 + width**0.5), 0.25
        z = random(2, images, channels, *queries).requires_grad_()
        d = random(2, support_images, channels, *support, size=size).requires_grad_()
        g, v = random(2, images, width, *queries), random(2, images, channels, *queries)
        spread = step * size * width**0.5
        lambdas = [spread * factor for factor in (1.5, 1.2, 1.0, 0.8, 0.7)[: self.steps]]
        tau = 3 / spread if self.shrinkage == "sigshrink" else None
        options: dict[str, Any] = {"receptive_field": self.field, "backend": backend}
        settings = options | {"step": step, "tau": tau, "shrinkage": self.shrinkage}

        forward = _timed(device, lambda: [functional.sparse_code(z, d, lambdas, **settings)])
        backward = _timed(device, lambda: torch.autograd.grad(forward[0], (z, d), g, create_graph=True))
        double = _timed(device, lambda: torch.autograd.grad(backward[0], (z, d), (v, d.detach())))
        with torch.no_grad():
            peak = _timed(device, lambda: [functional.peak_correlation(z, d, **options)])
            shares = (0.5, 0.4, 0.3, 0.2, 0.1)[: self.steps]
            settings["tau"] = 30.0 if tau else None
            relative = _timed(device, lambda: functional.relative_energy(z, d, shares, **settings))
        every = {"forward": forward, "backward": backward, "double backward": double}
        return every | {"peak": peak, "relative": relative}


def cpu_milliseconds() -> float:
    """Time of coding 1,024 queries over 4,096 atoms of 64 channels on the CPU, and of the gradient."""
    generator = torch.Generator().manual_seed(0)
    queries, atoms = (torch.randn(count, 64, generator=generator) for count in (1024, 4096))
    queries.requires_grad_()

    def once() -> Sequence[Tensor]:
        residual = functional.istc(queries, atoms, [0.02, 0.01], step=1e-4, tau=1e3)
        return torch.autograd.grad(residual.sum(), queries)

    return min(_timed("cpu", once)[1] for _ in range(5))


def _problems(device: str) -> list[_Problem]:
    every = [_Problem(*c) for c in product(SIZES[device], (1, 3, 5), (3, 5), arguments.SHRINKAGES)]
    # Soft shrinkage's derivative jumps at the threshold, which one of millions of codes crosses by rounding.
    return [problem for problem in every if problem.size == SMALL or problem.shrinkage != "soft"]


def _dtype(precision: str) -> torch.dtype:
    return torch.float32 if precision == "tf32" else getattr(torch, precision)


@contextmanager
def _products_in(precision: str) -> Iterator[None]:
    """Have torch's setting of float32 products on a GPU be that, TF32 or full."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _compare(problem: _Problem, device: str, precision: str) -> dict[str, tuple[float, float, float]]:
    """Error, allowed error and milliseconds of each native kernel."""
    native = _measure(problem, device, precision, "native")
    usual = "float32" if precision in ("float64", "tf32") else precision
    plain = _measure(problem, device, usual, "reference")
    eps = EPS[precision]
    roundings = (16 if eps <= EPS["float32"] else 2) * eps
    allowed = {kernel: 4 * error * eps / EPS[usual] + roundings for kernel, (error, _) in plain.items()}
    return {kernel: (error, allowed[kernel], spent) for kernel, (error, spent) in native.items()}


def _measure(problem: _Problem, device: str, precision: str, backend: str) -> dict[str, tuple[float, float]]:
    """The largest relative error of the tensors of each kernel, NaN if there is one; and milliseconds."""
    dtype, measured = _dtype(precision), {}
    with _products_in(precision):
        if device == "cuda" and backend == "native":  # the first run of a kernel loads it
            problem.run(device, dtype, backend, dtype)
        results = problem.run(device, dtype, backend, dtype)
    truths = problem.run(device, torch.float64, "reference", dtype)
    with torch.no_grad():
        for kernel, (tensors, spent) in results.items():
            pairs = zip(tensors, truths[kernel][0], strict=True)
            errors = torch.stack([(x.double() - e).norm() / e.norm() for x, e in pairs])
            measured[kernel] = float(errors.max()), spent
    return measured


def _timed(device: str, compute: Callable[[], Sequence[Tensor]]) -> tuple[list[Tensor], float]:
    """Results and milliseconds, by the device's own clock where it has one."""
    if device == "cpu":
        start = time.perf_counter()
        return list(compute()), 1e3 * (time.perf_counter() - start)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    results = list(compute())
    after.record()
    after.synchronize()
    return results, before.elapsed_time(after)
