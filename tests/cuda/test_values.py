"""Values and derivatives of the CUDA kernels against the reference: test_operators.py's comparisons."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from operators import (
    GRID,
    SHAPES,
    Case,
    check_derivatives,
    check_float64,
    check_no_queries,
    check_peak_correlation,
    check_precision,
    derivatives,
    relative_error,
)

LARGER = [
    # many tiles; fused
    Case((1, 4, 144, 16, 16), (1, 2, 144, 16, 16)),
    # as wide as is fused for float32, for 16 bits, and one unit of 16 bytes wider
    Case((1, 1, 160, 9, 9), (1, 1, 160, 9, 9)),
    Case((1, 1, 192, 9, 9), (1, 1, 192, 9, 9)),
    Case((1, 1, 200, 9, 9), (1, 1, 200, 9, 9)),
    # banded: wide, and many steps
    Case((2, 2, 32, 9, 9), (2, 3, 32, 9, 9), receptive_field=5, atoms=200),
    Case((1, 2, 96, 12, 12), (1, 1, 96, 12, 12), iterations=6),
]
# Without shrinkage, six steps on the grid's narrow maps grow beyond what float16 can hold.
BOUNDED = [case for case in GRID[::5] if case.shrinkage != "none" or case.iterations < 6]
SIXTEEN_BITS = (torch.bfloat16, torch.float16)
ON_GPU = {"device": "cuda:0"}


@pytest.mark.parametrize("case", SHAPES + GRID + LARGER, ids=str)
def test_float64_equals_reference(case: Case) -> None:
    check_float64(case, **ON_GPU)


@pytest.mark.parametrize("case", SHAPES + GRID[::5] + LARGER, ids=str)
def test_float32_errs_at_most_twice_as_much_as_pytorch(case: Case) -> None:
    check_precision(case, torch.float32, **ON_GPU)


@pytest.mark.usefixtures("needs_16_bits")
@pytest.mark.parametrize("case", SHAPES + BOUNDED + LARGER, ids=str)
@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=str)
def test_sixteen_bits_err_at_most_twice_as_much_as_pytorch(case: Case, dtype: torch.dtype) -> None:
    check_precision(case, dtype, **ON_GPU)


@pytest.mark.parametrize("case", LARGER, ids=str)
def test_tf32_is_used_where_torch_allows_it(case: Case, set_precision: Callable[[str], None]) -> None:
    truth = derivatives(case, "reference", torch.float64)
    plain = derivatives(case, "reference", torch.float32, **ON_GPU)
    full = derivatives(case, "native", torch.float32, **ON_GPU)
    set_precision("tf32")
    short = derivatives(case, "native", torch.float32, **ON_GPU)
    assert not torch.equal(short["residual"], full["residual"])
    for quantity, value in truth.items():
        # Operands of 11 bits in place of 24, 13 fewer.
        usual = max(2 * relative_error(plain[quantity], value), 4 * torch.finfo(torch.float32).eps)
        assert relative_error(short[quantity], value) <= usual * 2**13, quantity


@pytest.mark.parametrize("case", [SHAPES[5], LARGER[0], LARGER[4]], ids=str)
def test_cpu_and_gpu_agree(case: Case) -> None:
    on_gpu = derivatives(case, "native", torch.float64, **ON_GPU)
    for quantity, value in derivatives(case, "native", torch.float64).items():
        assert relative_error(on_gpu[quantity], value) < 1e-12, quantity


@pytest.mark.parametrize("case", GRID[::2], ids=str)
def test_gradcheck(case: Case) -> None:
    check_derivatives(case, **ON_GPU)


def test_no_queries() -> None:
    check_no_queries(**ON_GPU)


@pytest.mark.parametrize("case", SHAPES + LARGER, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_peak_correlation_equals_reference(case: Case, dtype: torch.dtype) -> None:
    check_peak_correlation(case, dtype, **ON_GPU)


@pytest.mark.usefixtures("needs_16_bits")
@pytest.mark.parametrize("case", SHAPES + LARGER, ids=str)
@pytest.mark.parametrize("dtype", SIXTEEN_BITS, ids=str)
def test_peak_correlation_in_sixteen_bits(case: Case, dtype: torch.dtype) -> None:
    check_peak_correlation(case, dtype, **ON_GPU)
