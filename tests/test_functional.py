"""fsad.functional: formulas against hand-computed values, and what it says of bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fsad import arguments, functional
from fsad.errors import InputError

pytestmark = pytest.mark.usefixtures("two_threads")


def test_shrinkages_by_hand() -> None:
    u = torch.tensor([-2.0, -0.25, 0.0, 0.25, 2.0], dtype=torch.float64)
    torch.testing.assert_close(
        functional.soft_shrink(u, 0.5), torch.tensor([-1.5, 0.0, 0.0, 0.0, 1.5]).double()
    )
    expected = [x / (1 + math.exp(-4 * (abs(x) - 0.5))) for x in u.tolist()]
    torch.testing.assert_close(functional.sigshrink(u, 0.5, 4), torch.tensor(expected).double())


def test_sigshrink_tends_to_a_hard_threshold() -> None:
    u = torch.tensor([-0.6, -0.4, 0.4, 0.6])
    torch.testing.assert_close(functional.sigshrink(u, 0.5, 1e4), torch.tensor([-0.6, 0.0, 0.0, 0.6]))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_istc_by_hand(backend: str) -> None:
    """One atom, two soft steps with η = ½: α₁ = ½·2 − ¼ = ¾; α₂ = ¾ + ½(2 − ¾) − ⅛ = 1¼."""
    query, atom = torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, 0.0]])
    residual = functional.istc(
        query, atom, [0.25, 0.125], step=0.5, tau=None, shrinkage="soft", backend=backend
    )
    torch.testing.assert_close(residual, torch.tensor([[0.75, 3.0]]))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_tasks_are_independent_and_have_their_own_step(backend: str) -> None:
    queries, atoms, steps = torch.randn(3, 5, 4), torch.randn(3, 6, 4), torch.tensor([0.1, 0.2, 0.05])
    options = {"tau": [20.0, 40.0], "backend": backend}
    together = functional.istc(queries, atoms, [0.3, 0.1], step=steps, **options)
    for task in range(3):
        alone = functional.istc(queries[task], atoms[task], [0.3, 0.1], step=float(steps[task]), **options)
        torch.testing.assert_close(together[task], alone)


def test_sparse_code_is_istc_over_unfolded_patches() -> None:
    features, support = torch.randn(2, 3, 4, 5), 0.2 * torch.randn(2, 3, 4, 4)
    options = {"step": 0.5, "tau": 30.0}
    residual = functional.sparse_code(features, support, [0.2, 0.1], receptive_field=3, **options)

    def rows(maps: Tensor) -> Tensor:
        return torch.nn.functional.unfold(maps, 3, padding=1).mT.flatten(0, 1)

    expected = functional.istc(rows(features), rows(support), [0.2, 0.1], **options)
    torch.testing.assert_close(residual.movedim(1, -1).flatten(0, 2), expected)


def test_scaled_queries_with_scaled_thresholds_scale_the_residual() -> None:
    """The iteration is homogeneous: q·istc(z/q; λ, τ) = istc(z; qλ, τ/q)."""
    features, support = torch.randn(1, 3, 4, 5), 0.3 * torch.randn(1, 3, 4, 4)
    q = 1.7
    scaled = q * functional.sparse_code(
        features, support, [0.2, 0.1], scale=torch.full((20,), 1 / q), step=0.5, tau=30.0
    )
    absolute = functional.sparse_code(features, support, [0.2 * q, 0.1 * q], step=0.5, tau=30.0 / q)
    torch.testing.assert_close(scaled, absolute)


def test_ill_fitting_arguments_are_named() -> None:
    queries, atoms = torch.randn(5, 4), torch.randn(6, 4)

    def refused(message: str, queries: Tensor = queries, atoms: Tensor = atoms, **changes) -> None:
        settings = {"lambdas": [0.1], "step": 0.1, "tau": 1.0} | changes
        with pytest.raises(InputError, match=message):
            functional.istc(queries, atoms, **settings)

    refused("4 channels, the dictionary 3", atoms=atoms[:, :3])
    refused(r"T on both or on neither", queries=queries[None])
    refused("bfloat16 or float16, got torch.int64", queries=queries.long())
    refused("backend='reference'", queries=queries.half(), atoms=atoms.half())
    refused("share dtype and device", atoms=atoms.double())
    refused("empty", atoms=atoms[:0])
    refused("thresholds λ ≥ 0", lambdas=[-0.1])
    refused("1 to 32", lambdas=[])
    refused("1 to 32", lambdas=[0.1] * 33)
    refused("finite", lambdas=[float("nan")])
    refused("number or a sequence", lambdas=None)
    refused("tau", tau=None)
    refused("tau > 0", tau=[1.0, 2.0])
    refused("tau > 0", tau=0.0)
    refused("take a smaller tau", tau=1e14)
    refused("must not require grad", tau=torch.tensor(1.0, requires_grad=True))
    refused("must not require grad", lambdas=torch.tensor([0.1], requires_grad=True))
    refused("step must be", step=0.0)
    refused("step must be", step=float("inf"))
    refused("step must be", step="x")
    refused("one a task", step=torch.ones(3))
    refused("must be tensors", queries=[[1.0]])
    refused("shrinkage must be one of", shrinkage="hard")
    refused("backend must be one of", backend="fast")


def test_ill_fitting_maps_are_named() -> None:
    features, support = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    settings = {"step": 0.1, "tau": 1.0}
    with pytest.raises(InputError, match="receptive_field must be odd"):
        functional.sparse_code(features, support, [0.1], receptive_field=2, **settings)
    with pytest.raises(InputError, match=r"one factor a query patch, \(1, 32\)"):
        functional.sparse_code(features, support, [0.1], scale=torch.ones(31), **settings)
    with pytest.raises(InputError, match="atom_index must be int64"):
        functional.sparse_code(features, support, [0.1], atom_index=torch.ones(3), **settings)


def test_a_device_without_kernels_is_never_served_silently() -> None:
    features, support = torch.randn(1, 3, 4, 4, device="meta"), torch.randn(1, 3, 4, 4, device="meta")
    with pytest.raises(InputError, match="no native kernels for device 'meta'"):
        functional.sparse_code(features, support, [0.1], step=0.1, tau=1.0, backend="native")
    with pytest.warns(UserWarning, match="no native kernels for device 'meta'") as warned:
        functional.sparse_code(features, support, [0.1], step=0.1, tau=1.0)
    with pytest.warns(UserWarning, match="running the plain PyTorch reference") as warned_of_vectors:
        functional.istc(features[0, :, 0], support[0, :, 0], [0.1], step=0.1, tau=1.0)
    for each in (*warned, *warned_of_vectors):
        assert each.filename == __file__  # it names the caller's line


def test_tf32_is_allowed_where_torch_allows_it_for_matrix_products() -> None:
    """Also after a mix of torch's older and newer settings, which torch's older getters refuse to read."""
    matmul = torch.backends.cuda.matmul
    try:
        assert not arguments.tf32_is_allowed()
        torch.set_float32_matmul_precision("high")
        assert arguments.tf32_is_allowed()
        matmul.allow_tf32 = False
        assert not arguments.tf32_is_allowed()
        matmul.fp32_precision = "tf32"
        with pytest.raises(RuntimeError, match="mix of the legacy and new"):
            torch.get_float32_matmul_precision()
        assert arguments.tf32_is_allowed()

        def marked(x: Tensor) -> Tensor:
            return x + arguments.tf32_is_allowed()

        compiled = torch.compile(marked, fullgraph=True, backend="eager")
        assert compiled(torch.zeros(1)) == 1
        matmul.fp32_precision = "ieee"
        assert compiled(torch.zeros(1)) == 0
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = "none"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_on_the_reference(dtype: torch.dtype) -> None:
    features, support = torch.randn(1, 1, 3, 4, 5).to(dtype), (0.3 * torch.randn(1, 2, 3, 4, 4)).to(dtype)
    settings = {"receptive_field": 3, "backend": "reference"}
    schedule = {"lambdas": [0.2, 0.1], "step": 0.125, "tau": 30.0}
    residual = functional.sparse_code(features, support, **schedule, **settings)
    exact = functional.sparse_code(features.double(), support.double(), **schedule, **settings)
    assert residual.dtype == dtype
    torch.testing.assert_close(residual.double(), exact, rtol=0, atol=16 * torch.finfo(dtype).eps)
    peak = functional.peak_correlation(features, support, **settings)
    exact = functional.peak_correlation(features.double(), support.double(), **settings)
    torch.testing.assert_close(peak, exact.to(dtype))
