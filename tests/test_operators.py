"""The native operators against the reference: values, derivatives, and the contract with torch."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product

import pytest
import torch
from operators import Case, derivatives, relative_error
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from fsad import functional

SHAPES = [
    # one of everything
    Case((1, 1, 1, 1, 1), (1, 1, 1, 1, 1)),
    # primes, several tasks, a thinned dictionary
    Case((2, 3, 7, 5, 3), (2, 2, 7, 5, 11), atoms=37),
    # one beyond a tile of 64 queries, of 48 atoms, of 16 columns
    Case((1, 1, 17, 5, 13), (1, 1, 17, 7, 7)),
    # exactly a tile
    Case((1, 1, 16, 8, 8), (1, 1, 16, 6, 8)),
    # receptive fields larger than the map
    Case((1, 2, 3, 2, 4), (1, 2, 3, 3, 2), receptive_field=5),
    Case((2, 1, 5, 6, 5), (2, 3, 5, 4, 7), receptive_field=3, atoms=41),
    # wide features, many parts of the dictionary gradient
    Case((1, 9, 150, 8, 8), (1, 1, 150, 7, 8)),
]
GRID = [
    Case((2, 1, 3, 4, 5), (2, 2, 3, 4, 4), receptive_field=field, iterations=n, shrinkage=shrinkage)
    for field, n, shrinkage in product((1, 3, 5), range(1, 7), functional.SHRINKAGES)
]


def name(case: Case) -> str:
    return f"{case.queries}-{case.support}-l{case.receptive_field}-N{case.iterations}-{case.shrinkage}"


@pytest.mark.parametrize("case", SHAPES + GRID, ids=name)
def test_float64_equals_reference(case: Case) -> None:
    native = derivatives(case, "native", torch.float64)
    for quantity, truth in derivatives(case, "reference", torch.float64).items():
        assert relative_error(native[quantity], truth) < 1e-12, quantity


@pytest.mark.parametrize("case", SHAPES + GRID[::5], ids=name)
def test_float32_errs_at_most_twice_as_much_as_pytorch(case: Case) -> None:
    truth = derivatives(case, "reference", torch.float64)
    plain = derivatives(case, "reference", torch.float32)
    native = derivatives(case, "native", torch.float32)
    for quantity, value in truth.items():
        # Where plain PyTorch happens to be exact, a few roundings are allowed.
        allowed = max(2 * relative_error(plain[quantity], value), 4 * torch.finfo(torch.float32).eps)
        assert relative_error(native[quantity], value) <= allowed, quantity


@pytest.mark.parametrize("case", GRID[::2], ids=name)
def test_gradcheck(case: Case) -> None:
    small = Case(
        (1, 1, 2, 2, 2), (1, 1, 2, 2, 3), case.receptive_field, None, case.iterations, case.shrinkage
    )
    inputs = tuple(small.tensors(seed=4).values())

    def native(*tensors: torch.Tensor) -> torch.Tensor:
        return small.code(*tensors, backend="native")

    assert gradcheck(native, inputs)
    assert gradgradcheck(native, inputs)


@pytest.mark.parametrize("case", [SHAPES[1], SHAPES[5]], ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(case: Case, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    queries, support = (
        functional.channels_last(tensors[key].detach()).requires_grad_() for key in ("queries", "support")
    )
    settings = ([0.3, 0.2], [5.0, 5.0], 2, case.receptive_field)
    dictionary = (tensors["scale"], support, case.index(), torch.full((2,), 0.3, dtype=dtype))
    opcheck(torch.ops.fsad.istc, (queries, *dictionary, *settings))
    opcheck(
        torch.ops.fsad.peak_atom, (queries.detach(), support.detach(), case.index(), case.receptive_field)
    )
    residual, history = torch.ops.fsad.istc(queries, *dictionary, *settings)
    gradient = torch.randn(residual.shape, dtype=dtype, requires_grad=True)
    for need_atoms in (True, False):
        saved = (gradient, history.detach(), queries, *dictionary, *settings, need_atoms)
        opcheck(torch.ops.fsad.istc_backward, saved)
        cotangents = [torch.randn_like(queries), torch.randn_like(tensors["scale"]), None]
        if need_atoms:
            cotangents[2] = torch.randn_like(support)
        detached = [v.detach() if isinstance(v, torch.Tensor) else v for v in (*cotangents, *saved)]
        opcheck(torch.ops.fsad.istc_double_backward, tuple(detached))


def test_no_queries() -> None:
    case = Case((1, 0, 4, 3, 3), (1, 1, 4, 3, 3), receptive_field=3)
    for backend in ("native", "reference"):
        results = derivatives(case, backend, torch.float64)
        assert results["residual"].shape == (1, 0, 36, 3, 3)
        assert results["d support"].count_nonzero() == 0


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
    case = SHAPES[5]
    tensors = {key: tensor.detach() for key, tensor in case.tensors().items()}
    expected = case.code(**tensors, backend="native")
    strided = {key: tensor.repeat_interleave(2, -1)[..., ::2] for key, tensor in tensors.items()}
    strided["queries"] = tensors["queries"].movedim(2, -1).contiguous().movedim(-1, 2)
    assert torch.equal(case.code(**strided, backend="native"), expected)


@pytest.mark.parametrize("case", SHAPES, ids=name)
def test_peak_correlation_equals_reference(case: Case) -> None:
    tensors = case.tensors()
    arguments = (tensors["queries"], tensors["support"])
    options = {"receptive_field": case.receptive_field, "atom_index": case.index()}
    native = functional.peak_correlation(*arguments, **options, backend="native")
    reference = functional.peak_correlation(*arguments, **options, backend="reference")
    rows = functional.dictionary_rows(tensors["support"], case.index(), case.receptive_field)
    every = functional.reference.im2col(tensors["queries"], case.receptive_field) @ rows.mT
    torch.testing.assert_close(native, every.abs().amax(-1))
    torch.testing.assert_close(native, reference)
    gradients = [torch.autograd.grad(peak.sum(), arguments) for peak in (native, every.abs().amax(-1))]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


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
    settings = ([0.1], [1.0], 2, 1)
    with pytest.raises(RuntimeError, match=r"atoms must be .*got \(1, 1, 1, 6, 3\)"):
        torch.ops.fsad.istc(queries, scale, atoms[..., :3].contiguous(), None, step, *settings)
    with pytest.raises(RuntimeError, match="atoms must be contiguous"):
        torch.ops.fsad.istc(queries, scale, atoms.mT.contiguous().mT, None, step, *settings)
    with pytest.raises(RuntimeError, match="dtype of the queries"):
        torch.ops.fsad.istc(queries, scale.double(), atoms, None, step, *settings)
    with pytest.raises(RuntimeError, match="holds 6, but there are 6 positions"):
        torch.ops.fsad.istc(queries, scale, atoms, torch.tensor([[0, 6]]), step, *settings)
    with pytest.raises(RuntimeError, match="float32 or float64"):
        torch.ops.fsad.istc(queries.half(), scale, atoms, None, step, *settings)


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
