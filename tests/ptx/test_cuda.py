"""What nvcc makes of CUDA C++: launches by the host's own code, source lines, planted bugs."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from . import Gpu, HostLibrary, PtxFault, compile_ptx, nvcc

if nvcc() is None:
    pytest.skip("nvcc was not found: no PTX to run but the hand-written", allow_module_level=True)

# The row sums of a matrix, one block a row. `{...}` is where a bug goes in.
ROW_SUMS = """
struct Params {
  const float* x;
  float* sums;
  int columns;
};

__global__ void row_sums(Params p) {
  extern __shared__ float partial[];
  const int t = threadIdx.x;
  float sum = 0;
  for (int i = t; i <END> p.columns; i += blockDim.x) sum += p.x[blockIdx.x * p.columns + i];
  partial[t] = sum;
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    <SYNC>
    if (t < half) partial[t] += partial[t + half];
  }
  __syncthreads();
  if (t == 0) p.sums[blockIdx.x] = partial[0];
}

extern "C" const char* run(const Params* p, int rows, int shared) {
  cudaFuncSetAttribute(row_sums, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536);
  row_sums<<<rows, 128, shared>>>(*p);
  const cudaError_t error = cudaGetLastError();
  return error ? cudaGetErrorString(error) : nullptr;
}
"""
X = np.random.default_rng(0).normal(size=(5, 301)).astype(np.float32)


class Params(ctypes.Structure):
    _fields_ = [("x", ctypes.c_void_p), ("sums", ctypes.c_void_p), ("columns", ctypes.c_int)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cuda")


def run(folder: Path, end: str = "<", sync: str = "__syncthreads();", shared: int = 512) -> HostLibrary:
    source = folder / "row_sums.cu"
    source.write_text(ROW_SUMS.replace("<END>", end).replace("<SYNC>", sync))
    gpu = Gpu()
    library = HostLibrary(gpu, [source])
    x, sums = gpu.array(X, "x"), gpu.empty(len(X), np.float32, "sums")
    library.call("run", ctypes.byref(Params(x.ptr, sums.ptr, X.shape[1])), len(X), shared)
    np.testing.assert_allclose(sums.numpy(), X.sum(1), rtol=1e-5)
    return library


def test_host_launch(folder):
    (name, counters), *more = run(folder).launches
    assert name == "row_sums(Params)"
    assert not more
    assert counters.total("used_bytes", "global_load") == X.nbytes
    lines = ROW_SUMS.splitlines()
    load = next(i for i, line in enumerate(lines, 1) if "sum += p.x" in line)
    used = {line: n for (file, line), n in counters.by_line("used_bytes").items() if "row_sums" in file}
    assert used[load] == X.nbytes


@pytest.mark.parametrize(
    ("rule", "bug"),
    [
        ("race|uninitialised", {"sync": ""}),
        ("race|uninitialised", {"sync": "__syncwarp();"}),
        ("out of bounds", {"end": "<="}),
        ("out of bounds", {"shared": 508}),
        ("divergence|race", {"sync": "if (t < half) __syncthreads();"}),
    ],
)
def test_bug(folder, rule, bug):
    with pytest.raises(PtxFault, match=rf"^\[({rule})\](?s:.*)row_sums\.cu:\d+\)"):
        run(folder, **bug)


def test_more_shared_memory_than_asked_for_is_refused(folder):
    with pytest.raises(RuntimeError, match="refused a launch"):
        run(folder, shared=65540)


def test_compile_and_launch_by_name():
    ptx = compile_ptx(
        "template <class T> __global__ void twice(T* x) { x[threadIdx.x] *= 2; }\n"
        "template __global__ void twice(float*); template __global__ void twice(double*);"
    )
    gpu = Gpu()
    program = gpu.load(ptx)
    for name, dtype in (("twice<float>", np.float32), ("twice<double>", np.float64)):
        x = gpu.array(np.arange(40, dtype=dtype))
        program.launch(name, 1, 40, [x])
        np.testing.assert_array_equal(x.numpy(), 2 * np.arange(40))
    with pytest.raises(KeyError, match="2 kernels match 'twice'"):
        program.launch("twice", 1, 40, [x])
