"""What torch expects of operators on a GPU: streams, devices, graphs, and the same bits every time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from operators import SHAPES, Case, check_contract, check_layouts, derivatives
from torch import Tensor

from fsad import arguments, functional
from fsad.errors import InputError

FUSED = Case((2, 2, 60, 15, 15), (2, 2, 60, 8, 8))
BANDED = Case((2, 2, 20, 15, 15), (2, 4, 20, 8, 8), receptive_field=3, atoms=200, iterations=5)
BOTH = pytest.mark.parametrize("case", [FUSED, BANDED], ids=["fused", "banded"])
DTYPES = pytest.mark.parametrize("dtype", arguments.DTYPES, ids=str)


def skip_unless_supported(dtype: torch.dtype) -> None:
    if dtype.itemsize == 2 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("bfloat16 and float16 need compute capability 8.0 or newer")


def gradients(case: Case, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The residual, and the gradients of half its square."""
    residual = case.code(**tensors, backend="native")
    return residual, *torch.autograd.grad(residual, list(tensors.values()), residual.detach())


@pytest.mark.parametrize("case", [SHAPES[1], SHAPES[5]], ids=str)
@DTYPES
def test_opcheck(case: Case, dtype: torch.dtype) -> None:
    skip_unless_supported(dtype)
    check_contract(case, dtype, "cuda:0")


@BOTH
@DTYPES
def test_two_runs_give_the_same_bits(case: Case, dtype: torch.dtype) -> None:
    skip_unless_supported(dtype)
    first, second = (derivatives(case, "native", dtype, "cuda:0") for _ in range(2))
    for quantity, value in first.items():
        assert torch.equal(value, second[quantity]), quantity


@BOTH
def test_memory_layout_of_the_caller_does_not_matter(case: Case) -> None:
    check_layouts(case, "cuda:0")


@BOTH
def test_work_is_queued_on_the_current_stream(case: Case) -> None:
    values = case.tensors(torch.float32, device="cuda:0")
    expected = gradients(case, values)
    late = {name: torch.full_like(value, torch.nan).requires_grad_() for name, value in values.items()}
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # about 0.1 s, in which another stream would read NaN
        with torch.no_grad():
            for name, value in values.items():
                late[name].copy_(value)
        results = gradients(case, late)
        assert not stream.query(), "the call waited for the GPU"
    stream.synchronize()
    assert all(map(torch.equal, results, expected))


@BOTH
def test_capture_in_a_graph_and_replay(case: Case) -> None:
    static = case.tensors(torch.float32, device="cuda:0")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gradients(case, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = gradients(case, static)
    for seed in (1, 2):
        fresh = case.tensors(torch.float32, seed, "cuda:0")
        with torch.no_grad():
            for name, value in fresh.items():
                static[name].copy_(value)
        graph.replay()
        assert all(map(torch.equal, results, gradients(case, fresh)))


def test_tensors_of_another_than_the_current_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device: this test needs two")
    first = derivatives(BANDED, "native", torch.float64, "cuda:0")
    with torch.cuda.device(0):
        second = derivatives(BANDED, "native", torch.float64, "cuda:1")
        assert torch.cuda.current_device() == 0
    for quantity, value in first.items():
        torch.testing.assert_close(second[quantity], value)
    features, support = torch.randn(1, 3, 4, 4, device="cuda:1"), torch.randn(1, 3, 4, 4, device="cuda:0")
    with pytest.raises(InputError, match="share dtype and device"):
        functional.sparse_code(features, support, [0.1], step=0.1, tau=1.0)


def test_autocast_computes_in_float32() -> None:
    tensors = {
        name: tensor.detach() for name, tensor in FUSED.tensors(torch.float32, device="cuda:0").items()
    }
    with torch.autocast("cuda", torch.float16):
        inside = FUSED.code(**tensors, backend="native")
    assert torch.equal(inside, FUSED.code(**tensors, backend="native"))


def test_compiled_code_follows_torchs_setting_of_tf32(set_precision: Callable[[str], None]) -> None:
    tensors = {
        name: tensor.detach() for name, tensor in FUSED.tensors(torch.float32, device="cuda:0").items()
    }
    compiled = torch.compile(
        lambda queries, scale, support: FUSED.code(queries, scale, support, "native"),
        fullgraph=True,
        backend="aot_eager",
    )
    for precision in ("ieee", "tf32"):
        set_precision(precision)
        assert torch.equal(compiled(**tensors), FUSED.code(**tensors, backend="native")), precision


@pytest.mark.parametrize("position", [-1, 16])
def test_a_position_out_of_range_does_not_go_unnoticed(position: int) -> None:
    """In a process of its own, which cannot use the GPU afterwards."""
    code = (
        "import torch; from fsad import functional\n"
        "maps = torch.randn(1, 1, 3, 4, 4, device='cuda')\n"
        f"index = torch.tensor([[0, {position}]], device='cuda')\n"
        "functional.sparse_code(maps, maps, [0.1], step=0.1, tau=1.0, atom_index=index)\n"
        "torch.cuda.synchronize()\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode != 0
    assert "device-side assert" in run.stderr
