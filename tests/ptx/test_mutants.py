"""The mutator itself: what it finds in a source, and that damage of each main kind is noticed."""

from __future__ import annotations

import re
import shutil

import pytest

from . import PtxFault, nvcc
from .mutation.operators import OPERATORS, mutants

if nvcc() is None:
    pytest.skip("nvcc was not found: no damaged kernels to run", allow_module_level=True)

from .mutants import TABLE, row
from .mutation.battery import run
from .mutation.cases import CASES
from .mutation.machine import Machine, Undamaged
from .mutation.source import device_digest
from .passes import CSRC

SOURCE = """
struct Tile {
  __device__ __forceinline__ float at(int row) const { return values[row * 4]; }  // row < 4
  const float* values;
};

// Not on the device: i < 3.
inline int host(int i) { return i < 3 ? i : 3; }

template <class Real>
__global__ void __launch_bounds__(128) kernel(const Tile tile, int count, Real* to) {
  const int i = threadIdx.x;
  copies_arrive<1>();
  __syncthreads();
  Real sum = 0;
  for (int row = 0; row < 4; ++row) sum += 2 * tile.at(row);
  if (i < count && tile.values) to[i] = sum;
  if (count) to[0] = count ? sum : 0;
}
"""
CHANGES = {
    "Tile::at": ["`[row * 4 + 1]`"],
    "kernel": [
        "`i = threadIdx.x + 1`",
        "removed",
        "one group more may be pending",
        "removed",
        "a turn fewer",
        "a turn more",
        "`+=` made `-=`",
        "without the factor `2`",
        "`row + 1` to at",
        "`i < count` always true",
        "`tile.values` always true",
        "`[i + 1]`",
        *["`count` always true", "`count` always false"] * 2,
        *["left out"] * 3,
    ],
}


def test_changes_of_a_small_source(tmp_path):
    path = tmp_path / "kernel.cu"
    path.write_text(SOURCE)
    found = mutants(tmp_path)
    assert {scope: sorted(m.what for m in found if m.scope == scope) for scope in CHANGES} == {
        scope: sorted(changes) for scope, changes in CHANGES.items()
    }
    assert {m.scope for m in found} == set(CHANGES)
    texts = {m.apply(SOURCE) for m in found}
    assert len(texts) == len(found)
    assert SOURCE.replace("  __syncthreads();", "  ;") in texts
    assert SOURCE.replace("row < 4; ++row", "row <= 4; ++row") in texts
    assert SOURCE.replace("i < count && tile.values", "true && tile.values") in texts


def test_every_kind_is_found_in_the_kernels():
    found = mutants(CSRC / "cuda")
    assert {m.kind for m in found} == {operator.__name__ for operator in OPERATORS}
    text = "".join(re.sub(r"//.*", "", path.read_text()) for path in (CSRC / "cuda").glob("*"))
    for kind, calls in [("barriers", r"__sync(threads|warp)\("), ("waits", r"copies_arrive<.*>\(\);")]:
        removed = [m for m in found if m.kind == kind and m.what == "removed" and "commit" not in m.line_text]
        assert len(removed) == len(re.findall(calls, text))
    assert len({m.key for m in found}) == len(found)
    assert min(sum(m.kind == kind for m in found) for kind in ("bounds", "arguments", "integers")) > 50


def test_the_table_is_of_the_present_device_code():
    page = TABLE.read_text()
    assert f"device code, {device_digest(CSRC / 'cuda')}, to" in page, (
        "docs/mutants.md is of other device code: run `cd tests; python -m ptx.mutants`, which takes an hour"
    )
    lines = page.partition("|---|---|---|---|\n")[2].splitlines()
    found = mutants(CSRC / "cuda")
    assert len(lines) == len(found)
    assert not [m.key for line, m in zip(lines, found, strict=True) if not line.startswith(row(m))]


def test_device_code_alone_counts(tmp_path):
    path = tmp_path / "kernel.cu"
    path.write_text(SOURCE)
    before = device_digest(tmp_path)
    path.write_text(SOURCE.replace("i < 3 ? i", "i < 9 ? i").replace("row < 4\n", "why\n"))
    assert device_digest(tmp_path) == before
    path.write_text(SOURCE.replace("row * 4", "row * 5"))
    assert device_digest(tmp_path) != before


SAMPLE = {
    r"Ring::next_stage .*__syncthreads.* removed": r"race|uninitialised",
    r"Ring::next_stage .*copies_arrive.* removed": r"cp\.async",
    r"Ring::copy_rows .*pass\.band\.rows` always true": r"uninitialised|out of bounds",
}


@pytest.mark.slow
def test_a_sample_is_noticed(tmp_path):
    """A barrier, a wait and a bounds check, through the whole chain, on the first problem's forward."""
    undamaged = Undamaged(CSRC, tmp_path / "undamaged")
    # Of all kernels only those of this problem.
    wanted = re.compile(r"(Pass<float>.*ForwardStep|RowLayout.*float|float.*RowLayout)")
    kept = [number for number, piece in enumerate(undamaged.pieces) if wanted.search(piece.instantiations)]
    undamaged.pieces = [undamaged.pieces[number] for number in kept]
    undamaged.includes = [undamaged.includes[number] for number in kept]
    undamaged.prepare()
    run(Machine(undamaged, CSRC, None, tmp_path), CASES[0], "forward", None)
    for number, (pattern, rule) in enumerate(SAMPLE.items()):
        (mutant,) = [m for m in mutants(CSRC / "cuda") if re.search(pattern, m.key)]
        csrc = tmp_path / str(number)
        shutil.copytree(CSRC, csrc)
        path = csrc / "cuda" / mutant.path.name
        path.write_text(mutant.apply(path.read_text()))
        machine = Machine(undamaged, csrc, mutant, csrc)
        with pytest.raises(PtxFault, match=rule):
            run(machine, CASES[0], "forward", None)
