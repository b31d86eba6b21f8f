"""The native operators against the reference: values, derivatives, and the contract with torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from operators import (
    GRID,
    SHAPES,
    Case,
    check_contract,
    check_derivatives,
    check_float64,
    check_layouts,
    check_no_queries,
    check_peak_correlation,
    check_precision,
    derivatives,
)

from fsad import functional


@pytest.mark.parametrize("case", SHAPES + GRID, ids=str)
def test_float64_equals_reference(case: Case) -> None:
    check_float64(case)


@pytest.mark.parametrize("case", SHAPES + GRID[::5], ids=str)
def test_float32_errs_at_most_twice_as_much_as_pytorch(case: Case) -> None:
    check_precision(case, torch.float32)


@pytest.mark.parametrize("case", GRID[::2], ids=str)
def test_gradcheck(case: Case) -> None:
    check_derivatives(case)


@pytest.mark.parametrize("case", [SHAPES[1], SHAPES[5]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(case: Case, dtype: torch.dtype) -> None:
    check_contract(case, dtype)


def test_no_queries() -> None:
    check_no_queries()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_results_do_not_depend_on_threads(dtype: torch.dtype) -> None:
    case = Case((1, 2, 20, 15, 15), (1, 2, 20, 8, 8), receptive_field=3)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            runs.append(derivatives(case, "native", dtype))
    finally:
        torch.set_num_threads(threads)
    for quantity, value in runs[0].items():
        assert all(torch.equal(value, run[quantity]) for run in runs[1:]), quantity


def test_memory_layout_of_the_caller_does_not_matter() -> None:
    check_layouts(SHAPES[5])


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_peak_correlation_equals_reference(case: Case) -> None:
    check_peak_correlation(case)


def test_third_order_raises() -> None:
    queries = torch.randn(3, 4, requires_grad=True)
    residual = functional.istc(queries, torch.eye(4), [0.1], step=0.1, tau=3.0, backend="native")
    (first,) = torch.autograd.grad(residual.square().sum(), queries, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), queries, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(second.sum(), queries)


def test_forward_mode_raises() -> None:
    def code(queries: torch.Tensor) -> torch.Tensor:
        return functional.istc(queries, torch.eye(4), [0.1], step=0.1, tau=3.0, backend="native")

    with pytest.raises(functional.InputError, match="forward-mode"):
        torch.func.jvp(code, (torch.randn(3, 4),), (torch.randn(3, 4),))


def test_func_transforms_raise_or_work_as_documented() -> None:
    def code(queries: torch.Tensor, backend: str = "native") -> torch.Tensor:
        return functional.istc(queries, torch.eye(4), [0.1], step=0.1, tau=3.0, backend=backend)

    queries = torch.randn(2, 3, 4)
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(lambda q: code(q).sum())(queries[0])
    assert torch.func.grad(lambda q: code(q, "reference").sum())(queries[0]).isfinite().all()
    torch.testing.assert_close(torch.vmap(code)(queries), torch.stack([code(q) for q in queries]))


def test_operators_name_what_does_not_fit() -> None:
    queries, atoms = torch.randn(1, 1, 1, 5, 4), torch.randn(1, 1, 1, 6, 4)
    step, scale = torch.ones(1), torch.ones(1, 5)
    settings = ([0.1], [1.0], 2, 1, False)
    with pytest.raises(RuntimeError, match=r"atoms must be .*got \(1, 1, 1, 6, 3\)"):
        torch.ops.fsad.istc(queries, scale, atoms[..., :3].contiguous(), None, step, *settings)
    with pytest.raises(RuntimeError, match="atoms must be contiguous"):
        torch.ops.fsad.istc(queries, scale, atoms.mT.contiguous().mT, None, step, *settings)
    with pytest.raises(RuntimeError, match="dtype of the queries"):
        torch.ops.fsad.istc(queries, scale.double(), atoms, None, step, *settings)
    with pytest.raises(RuntimeError, match="holds 6, but there are 6 positions"):
        torch.ops.fsad.istc(queries, scale, atoms, torch.tensor([[0, 6]]), step, *settings)
    with pytest.raises(RuntimeError, match="float32 or float64 on the CPU, got Half"):
        torch.ops.fsad.istc(queries.half(), scale, atoms, None, step, *settings)
    with pytest.raises(RuntimeError, match="float32, float64, bfloat16 or float16, got Int"):
        torch.ops.fsad.istc(queries.int(), scale, atoms, None, step, *settings)


@pytest.mark.slow
def test_portable_kernels() -> None:
    """The same comparison on the instruction set that every processor has, in a process of its own."""
    tests = "test_float64_equals_reference or test_float32_errs or test_peak"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-k", tests, __file__],
        env={**os.environ, "FSAD_CPU_ISA": "portable"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-2000:]
    assert " passed" in run.stdout


def test_unknown_instruction_set_is_refused() -> None:
    code = "import torch, fsad_ext; print(torch.ops.fsad.cpu_isa())"
    env = {**os.environ, "FSAD_CPU_ISA": "avx1024"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode != 0
    assert "FSAD_CPU_ISA is 'avx1024'" in run.stderr
