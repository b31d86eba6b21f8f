"""Without a GPU, or without kernels for it, every test here is skipped and says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

import fsad_ext


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: these tests need one")
    if "cuda" not in fsad_ext.DEVICES:
        pytest.skip("a CUDA device, but this build of fsad has no kernels for it: build it where nvcc is")


@pytest.fixture
def needs_16_bits(_needs_a_gpu: None) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("bfloat16 and float16 need compute capability 8.0 or newer")


@pytest.fixture
def set_precision(_needs_a_gpu: None) -> Iterator[Callable[[str], None]]:
    """Sets the precision of torch's float32 matrix products for the time of a test."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("TF32 needs compute capability 8.0 or newer")
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision

    def change(precision: str) -> None:
        matmul.fp32_precision = precision

    yield change
    change(before)
