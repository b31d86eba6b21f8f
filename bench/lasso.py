"""scikit-learn's coordinate descent beside ISTA on the native kernels, at equal objective.

Both minimise ½‖z − Da‖² + w·|a|₁: ``sparse_encode`` takes w as alpha (it divides by the number of features
itself, as its Lasso's objective does), and soft shrinkage with a constant λ = ηw is proximal gradient
descent.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fresh
import numpy as np
import torch
from measure import Times, interleave
from torch import Tensor

from fsad import arguments, functional, reference

TITLE = "scikit-learn's `sparse_encode` (lasso_cd)"
WIDTH, QUERIES = 64, 1024
ATOMS = (64, 128, 256, 512)
PENALTIES = (0.7, 0.5)  # w, of the median query's max|Dᵀz|, beyond which its code is zero
AGREEMENT = 1e-3


def measure(quick: bool) -> list[dict[str, Any]]:
    atoms = ATOMS[:2] if quick else ATOMS
    return [fresh.call("lasso:compare", k, p, 2 if quick else 7) for p in PENALTIES for k in atoms]


def compare(atoms: int, penalty: float, rounds: int) -> dict[str, Any]:
    """Find the iterations that reach the same objective, then time them; for a fresh process."""
    generator = torch.Generator().manual_seed(0)
    # Without a common mean: ISTA needs about ‖D‖₂² times as many steps as the best conditioned D.
    z, d = (
        torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=generator), dim=1)
        for count in (QUERIES, atoms)
    )
    weight = penalty * (z @ d.T).abs().amax(1).median().item()
    step = 1 / torch.linalg.eigvalsh((d.T @ d).double())[-1].item()

    def objective(codes: Tensor) -> float:
        residual = z.double() - codes.double() @ d.double()
        return residual.square().sum().item() / 2 + weight * codes.abs().sum().item()

    def descend(sweeps: int) -> Tensor:
        return torch.from_numpy(_sparse_encode(z.numpy(), d.numpy(), weight, sweeps))

    def shrink(steps: int) -> Tensor:
        thresholds, eta = [weight * step] * steps, torch.tensor([step])
        return reference.istc_codes(z[None], d[None], eta, thresholds, thresholds, "soft")[0]

    best = objective(descend(1000))
    steps, excess = _first(lambda count: objective(shrink(count)) / best - 1, arguments.MAX_ITERATIONS)
    sweeps, _ = _first(lambda count: objective(descend(count)) / best - 1, 1000)
    threads = torch.get_num_threads()

    def native(threads: int) -> None:
        torch.set_num_threads(threads)
        functional.istc(
            z, d, [weight * step] * steps, step=step, tau=None, shrinkage="soft", backend="native"
        )

    contenders: dict[str, Callable[[], object]] = {
        "native": lambda: native(threads),
        "native, one thread": lambda: native(1),
        "lasso_cd": lambda: _sparse_encode(z.numpy(), d.numpy(), weight, 1000),
        "lasso_cd, stopped": lambda: _sparse_encode(z.numpy(), d.numpy(), weight, sweeps),
    }
    return {
        "atoms": atoms,
        "penalty": penalty,
        "steps": steps,
        "excess": excess,
        "sweeps": sweeps,
        "nonzero": (descend(1000) != 0).double().mean().item(),
        "threads": threads,
        "seconds": interleave(contenders, rounds).seconds,
    }


def markdown(result: list[dict[str, Any]], plots: Path) -> str:
    lines = [
        f"d = {WIDTH}, n = {QUERIES}, random unit vectors; w is the penalty, as a share of the median",
        "query's max|Dᵀz|. N is raised until the objective exceeds the minimum by no more than 1e-3 of it.",
        f"ISTA needs the step 1/‖D‖₂² to converge, and a call takes at most {arguments.MAX_ITERATIONS}",
        "steps: where they do not suffice, what is left is bold. Native times are on",
        f"{result[0]['threads']} thread(s), and once more on one, as scikit-learn's are. It computes in",
        "float64 (its fixed tolerance of 1e-8 is out of reach in float32, where it runs to its limit of",
        'iterations): once to its own end, once "stopped" after the fewest sweeps that come within the same',
        "1e-3. It returns codes, native residuals.",
        "",
        "| w | k | nonzero | N | excess | native, ms | on one thread "
        "| lasso_cd | sweeps | lasso_cd, stopped |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in result:
        times = Times(entry["seconds"])
        excess = f"{entry['excess']:.1e}"
        milliseconds = {name: f"{1000 * times.median(name):.2f}" for name in times.seconds}
        lines.append(
            f"| {entry['penalty']} | {entry['atoms']} | {entry['nonzero']:.1%} | {entry['steps']} "
            f"| {excess if entry['excess'] <= AGREEMENT else f'**{excess}**'} | {milliseconds['native']} "
            f"| {milliseconds['native, one thread']} | {milliseconds['lasso_cd']} | {entry['sweeps']} "
            f"| {milliseconds['lasso_cd, stopped']} |"
        )
    return "\n".join(lines)


def _sparse_encode(queries: np.ndarray, atoms: np.ndarray, weight: float, sweeps: int) -> np.ndarray:
    from sklearn.decomposition import sparse_encode
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # stopping early is meant
        doubles = queries.astype(np.float64), atoms.astype(np.float64)
        return sparse_encode(*doubles, algorithm="lasso_cd", alpha=weight, max_iter=sweeps)


def _first(excess: Callable[[int], float], limit: int) -> tuple[int, float]:
    """The fewest iterations that agree, or the limit, and the relative excess there."""
    for count in range(1, limit + 1):
        left = excess(count)
        if left <= AGREEMENT:
            break
    return count, left
