"""The native operators against the reference: values, derivatives, and the contract with torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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
    check_relative_energy,
    derivatives,
)
from torch.fx.experimental.proxy_tensor import make_fx

import fsad_ext
from fsad import arguments, functional

pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.mark.parametrize("case", SHAPES + GRID, ids=str)
def test_float64_equals_reference(case: Case) -> None:
    check_float64(case)


@pytest.mark.parametrize("case", SHAPES + GRID[::5], ids=str)
def test_float32_errs_at_most_twice_as_much_as_pytorch(case: Case) -> None:
    check_precision(case, torch.float32)


@pytest.mark.parametrize("case", GRID[::2], ids=str)
def test_gradcheck(case: Case) -> None:
    check_derivatives(case)


@pytest.mark.parametrize("case", GRID[::7], ids=str)
def test_energy_where_the_double_backward_leaves_its_share_out(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, whose kernels do not take it along."""
    monkeypatch.setattr(fsad_ext.ops, "FUSED", ())
    check_float64(case)
    check_derivatives(case)


@pytest.mark.parametrize("case", [SHAPES[1], SHAPES[5]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(case: Case, dtype: torch.dtype) -> None:
    check_contract(case, dtype)


def test_no_queries() -> None:
    check_no_queries()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case((1, 2, 20, 15, 15), (1, 2, 20, 8, 8), receptive_field=3),  # threads share the queries
        Case((1, 1, 64, 1, 2), (1, 2, 64, 40, 40)),  # or the atoms
        Case((1, 1, 64, 1, 7), (1, 2, 64, 40, 40)),
        Case((1, 1, 2, 1, 1), (1, 1, 2, 64, 64), receptive_field=3),  # to gather them is most of the work
        Case((1, 1, 2, 1, 8), (1, 1, 2, 64, 64), receptive_field=3, atoms=4001),
    ],
    ids=str,
)
def test_results_do_not_depend_on_threads(case: Case, dtype: torch.dtype) -> None:
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


@pytest.mark.parametrize("atoms", [64, 1122])  # threads share groups of queries, or the atoms of one
def test_relative_energy_does_not_depend_on_threads(atoms: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(1, 1, 40, 5, 7 if atoms > 64 else 200, generator=generator)
    support = torch.randn(1, 1, 40, 1, atoms, generator=generator)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(functional.relative_energy(queries, support, [0.4, 0.2], step=1e-3, tau=50.0))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(other, results[0], strict=True))


def test_memory_layout_of_the_caller_does_not_matter() -> None:
    check_layouts(SHAPES[5])


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_peak_correlation_equals_reference(case: Case) -> None:
    check_peak_correlation(case)


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_relative_energy_equals_its_parts(case: Case) -> None:
    check_relative_energy(case)


def test_peak_of_several_is_the_first() -> None:
    """Atoms at odds by sign only, in one tile and in others."""
    atoms = torch.zeros(1, 1, 1, 300, 8)
    atoms[..., [5, 20, 150, 299], :] = torch.tensor([-1.0, 1.0, 1.0, -1.0])[:, None]
    for count in (2, 40):
        peak = torch.ops.fsad.peak_atom(torch.ones(1, 1, 1, count, 8), atoms, None, 1)
        assert peak.tolist() == [count * [5]]


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


class Coding(torch.nn.Module):
    def forward(self, queries: torch.Tensor, backend: str = "native") -> torch.Tensor:
        return functional.istc(queries, torch.eye(4), [0.1], step=0.1, tau=3.0, backend=backend)


@pytest.mark.parametrize(
    "trace",
    [
        lambda module, queries: module,
        lambda module, queries: lambda z: torch.vmap(module)(z[None])[0],
        lambda module, queries: torch.export.export(module, (queries,)).module(),
        lambda module, queries: torch.compile(module, fullgraph=True),
        lambda module, queries: make_fx(module)(queries),
        lambda module, queries: make_fx(module, pre_dispatch=True)(queries),
        lambda module, queries: torch.jit.trace(module, (queries,)),
    ],
    ids=["as it is", "vmap", "export", "compile", "make_fx", "before dispatch", "jit"],
)
def test_what_was_traced_without_requires_grad_has_derivatives(trace: Callable[..., Any]) -> None:
    queries = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    code = trace(Coding(), queries.clone())
    code(queries)
    gradients = []
    for function in (code, partial(Coding(), backend="reference")):
        leaf = queries.clone().requires_grad_()
        function(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


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


@pytest.mark.parametrize(("shrinkage", "sharpness"), [("soft", None), ("sigshrink", 300.0)])
def test_leaving_out_empty_codes_changes_nothing(shrinkage: str, sharpness: float | None) -> None:
    """Atoms whose codes are zero, or below rounding, are left out of sums: all, some or none of them."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(300, 20, generator=generator).double(), dim=1)
    queries = torch.randn(70, 20, generator=generator).double()
    queries[:30] *= 1e-3  # a panel of queries without codes, or nearly
    lambdas = [0.25, 0.2, 0.17]
    tau = None if sharpness is None else sharpness / lambdas[-1]
    results = {}
    for backend in ("native", "reference"):
        z, d = (tensor.clone().requires_grad_() for tensor in (queries, atoms))
        residual = functional.istc(z, d, lambdas, step=0.1, tau=tau, shrinkage=shrinkage, backend=backend)
        results[backend] = [residual, *torch.autograd.grad(residual.square().sum(), (z, d))]
    for value, truth in zip(results["native"], results["reference"], strict=True):
        assert (value - truth).norm() <= 1e-12 * truth.norm()


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("shrinkage", arguments.SHRINKAGES)
def test_an_atom_that_is_no_number_shows(shrinkage: str, count: int) -> None:
    """Neither shrinkage nor leaving out empty codes hides it, in values or in gradients."""
    atoms = torch.randn(200, 8)
    atoms[150, 3] = torch.nan
    queries = torch.randn(count, 8, requires_grad=True)
    tau = 1e4 if shrinkage == "sigshrink" else None
    residual = functional.istc(queries, atoms, [0.1, 0.1], step=0.01, tau=tau, shrinkage=shrinkage)
    assert residual.isnan().any(1).all()
    (gradient,) = torch.autograd.grad(residual[:, 0].sum(), queries)
    assert gradient.isnan().any(1).all()


def test_dictionary_gradients_are_computed_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dictionary that requires grad costs nothing where autograd.grad wants the queries' gradient alone."""
    leaf = torch.randn(6, 4, requires_grad=True)
    queries = torch.randn(5, 4, requires_grad=True)
    asked = []
    operator = torch.ops.fsad.istc_backward
    monkeypatch.setattr(
        torch.ops.fsad,
        "istc_backward",
        lambda *arguments: asked.append(arguments[-1]) or operator(*arguments),
    )
    for atoms in (leaf, 2 * leaf):
        residual = functional.istc(queries, atoms, [0.1], step=0.1, tau=3.0)
        for inputs in (queries, atoms, leaf, (queries, leaf)):
            torch.autograd.grad(residual.sum(), inputs, retain_graph=True)
        residual.sum().backward()
        assert asked == [False, True, True, True, True]
        asked.clear()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_residual_may_be_changed_in_place(backend: str) -> None:
    queries, atoms = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    residual = functional.istc(queries, atoms, [0.3, 0.2], step=0.05, tau=5.0, backend=backend)
    residual.mul_(2).sum().backward()
    assert queries.grad is not None


def test_subnormals_are_zero_in_the_kernels_and_nowhere_else() -> None:
    tiny = torch.full((300_000, 2), 1e-40)  # enough for all of torch's threads
    residual = functional.istc(tiny, torch.eye(2), [0.0], step=0.5, tau=None, shrinkage="none")
    assert residual.count_nonzero() == 0
    assert (tiny / 2).count_nonzero() == tiny.numel()


PRECISION = Path(__file__).with_name("test_precision.py")
SAME_COMPARISONS = (
    "test_float64_equals_reference or test_float32_errs or test_peak or test_results_do_not or leaving_out "
    "or relative"
)


def compare_again(**environment: str) -> None:
    """The comparisons with the reference in a new process, where other kernels are used."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-k", SAME_COMPARISONS, __file__, str(PRECISION)],
        env={**os.environ, **environment},
        cwd=environment.get("PYTHONPATH"),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-2000:]
    assert " passed" in run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("isa", sorted({*fsad_ext.build_info()["cpu"]} - {torch.ops.fsad.cpu_isa()}))
def test_other_kernels(isa: str) -> None:
    """Of what was compiled but for what is in use, of which the tests above are."""
    if not has_isa(isa):
        pytest.skip(f"this processor has no {isa}")
    compare_again(FSAD_CPU_ISA=isa)


@pytest.mark.slow
def test_avx512_kernels_with_emulated_lanes(tmp_path: Path) -> None:
    """The kernels compiled for 64-byte vectors, which the compiler puts together from what there is."""
    source = Path(__file__).parents[1]
    package = Path(shutil.copytree(fsad_ext.LIBRARY.parent, tmp_path / "fsad_ext"))
    torch_folder = Path(torch.__file__).parent
    flags = {**os.environ, "CXXFLAGS": "-DFSAD_VECTOR_BYTES=64 -Wno-psabi", "FSAD_CUDA": "0"}
    scripts = Path(sys.executable).parent
    configure = [scripts / "cmake", "-S", source, "-B", tmp_path / "build", "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={scripts / 'ninja'}"]
    configure += [f"-DTORCH_DIR={torch_folder}", f"-DTORCH_VERSION={torch.__version__}", "-DFSAD_VERSION=0"]
    for command in (configure, [scripts / "cmake", "--build", tmp_path / "build"]):
        run = subprocess.run(command, env=flags, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    shutil.copy(tmp_path / "build" / "libfsad.so", package)
    code = "import fsad_ext; print(fsad_ext.build_info()['version'])"
    version = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True)
    assert version.strip() == "0"  # the library that was just built
    compare_again(PYTHONPATH=str(tmp_path), FSAD_CPU_ISA="avx2" if has_isa("avx2") else "portable")


def has_isa(isa: str) -> bool:
    code = "import torch, fsad_ext; torch.ops.fsad.cpu_isa()"
    environment = {**os.environ, "FSAD_CPU_ISA": isa}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode == 0


def test_unknown_instruction_set_is_refused() -> None:
    code = "import torch, fsad_ext; print(torch.ops.fsad.cpu_isa())"
    env = {**os.environ, "FSAD_CPU_ISA": "avx1024"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode != 0
    assert "FSAD_CPU_ISA is 'avx1024'" in run.stderr
