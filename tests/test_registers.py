"""docs/registers.md is of the present kernels, and none of those that use tensor cores spills."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import make_registers

DIGEST, ROWS = make_registers.read_page(make_registers.PAGE.read_text())


def test_the_page_is_of_the_present_sources():
    assert make_registers.digest() == DIGEST, (
        "csrc/cuda has changed since docs/registers.md was made: run `python docs/make_registers.py`"
    )


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_no_tensor_core_kernel_spills(architecture):
    rows = [row for row in ROWS if row.architecture == architecture and not row.plain]
    assert len(rows) > 20
    assert not [row.kernel for row in rows if row.spills]


def test_comments_and_spaces_do_not_matter(tmp_path):
    folder = tmp_path / "cuda"
    folder.mkdir()
    for file in (tmp_path / "istc.h", tmp_path / "shrinkage.h", folder / "a.cu"):
        file.write_text("int x;\n")
    before = make_registers.digest(tmp_path)
    (folder / "a.cu").write_text("// why\nint  x ; // what\n\n")
    assert make_registers.digest(tmp_path) == before
    (folder / "a.cu").write_text("int y;\n")
    assert make_registers.digest(tmp_path) != before


def test_what_ptxas_prints_is_understood():
    name = (
        "void fsad::cuda::stream<fsad::cuda::Shape<float, (fsad::cuda::Products)1, true, 5, 32, 3>, false, "
        "fsad::cuda::BandSums<true> >(fsad::cuda::StreamPass<float>, fsad::cuda::BandSums<true>)"
    )
    log = (
        f"ptxas info    : Compiling entry function '{name}' for 'sm_80'\n"
        "    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers, 48 bytes smem, 1361 bytes cmem[0]\n"
    )
    (row,) = make_registers.parse(log, "sm_80")
    assert row.kernel == "float32 band BandSums of atoms, 32 columns, 3 stages"
    assert (row.registers, row.stored, row.loaded, row.shared) == (255, 12, 20, 48)
    assert make_registers.cell(row) == "255, spilled 12 + 20, shared 48"
    assert not row.plain
