"""docs/roofline.md is what its script prints, from the constants of tiling.h and counts that hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fsad import reference

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import make_roofline
from roofline import eager, memory, passes, tiling

VIEWS = {
    "view",
    "t",
    "transpose",
    "expand",
    "detach",
    "_unsafe_view",
    "alias",
    "slice",
    "select",
    "unsqueeze",
}


def test_the_page_is_what_the_script_prints():
    assert make_roofline.PAGE.read_text() == make_roofline.page(), "run `python docs/make_roofline.py`"


def test_numbers_come_from_the_source():
    source = (tiling.CUDA / "tiling.h").read_text()
    now = tiling.parse(source)
    changed = source.replace(f"kFusedSteps = {now.fused_steps};", "kFusedSteps = 29;")
    changed = changed.replace(f"kWantedBlocks = {now.wanted_blocks};", "kWantedBlocks = 31;")
    assert (tiling.parse(changed).fused_steps, tiling.parse(changed).wanted_blocks) == (29, 31)
    with pytest.raises(ValueError, match="LOGIC"):
        tiling.parse(source.replace("std::min({", "std::max({"))


def test_bytes_of_a_small_launch():
    """One tile of either side and one step: two resident or streamed matrices, each read once, and sums."""
    size = memory.Size(queries=64, atoms=32, width=32)
    kernel = passes.forward_step(0)
    owned, streamed, sums, step = 64 * 128, 2 * 32 * 128, 64 * 128, 4 * 32
    assert memory.global_bytes(kernel, size, 4, 164 << 10) == owned + streamed + sums + step


def test_rows_are_padded_to_sectors():
    widths = {(152, 4): 152, (152, 2): 160, (3, 2): 16, (3, 8): 4}  # by channels and size of an element
    assert {key: tiling.padded_width(*key) for key in widths} == widths


class Trace(TorchDispatchMode):
    """Counts operators, matrix products, and arrays of one size that they read and write."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.arrays, self.products, self.operators = size, 0, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.name().split("::")[1].split(".")[0]
        if name not in VIEWS:
            touched = [*tree_leaves(args), *tree_leaves(result)]
            self.arrays += sum(isinstance(x, torch.Tensor) and x.numel() == self.size for x in touched)
            self.products += name in ("mm", "bmm")
            self.operators += 1
        return result

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.arrays, self.products, self.operators


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("which", passes.PASSES, ids=lambda which: which.label)
def test_counts_of_eager(which, steps):
    """As autograd runs it: the dictionary a parameter or not, its gradient differentiated again or not."""
    k, n, d = 97, 61, 13
    queries = torch.randn(1, n, d, requires_grad=True)
    atoms = torch.randn(1, k, d, requires_grad=which.gradient)
    weights = torch.randn(1, n, d, requires_grad=True)
    trace = Trace(k * n)
    settings = (torch.ones(1), [0.1] * steps, [10.0] * steps, "sigshrink")
    if which.name == "forward":
        with trace:
            reference.istc(queries, atoms, *settings)
    else:
        residual = reference.istc(queries, atoms, *settings)
        double = which.name == "double"
        wanted = [queries, *([atoms] if which.gradient and (which.dual or not double) else [])]
        if not double:
            with trace:
                torch.autograd.grad(residual, wanted, weights)
        else:
            gradients = torch.autograd.grad(residual, wanted, weights, create_graph=True)
            cotangents = [torch.randn_like(gradient) for gradient in gradients]
            with trace:
                torch.autograd.grad(gradients, [weights, queries, atoms], cotangents, allow_unused=True)
    assert trace.counts == eager.counts(which, steps)
