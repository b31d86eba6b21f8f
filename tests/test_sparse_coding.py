"""fsad.SparseCodingLayer: the stored and the stateless form, and the life of the dictionary."""

from __future__ import annotations

import copy
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from features import maps
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fsad
from fsad import functional, reference, whitening
from fsad.errors import DivergedError, InputError, NotAdaptedError

pytestmark = pytest.mark.usefixtures("two_threads")
SETTINGS = [
    {},
    {"receptive_field": 3},
    {"max_atoms": 50},
    {"max_atoms": 50, "receptive_field": 3, "shrinkage": "soft"},
    {"step": "lipschitz", "schedule": "absolute", "tau": 50.0},
    {"step": 0.003, "normalize": False, "schedule": [0.3, 0.2, 0.1]},
    {"shrinkage": "none"},
    {"center": True},
    {"center": True, "step": "lipschitz", "max_atoms": 50, "receptive_field": 3},
    {"center": True, "drift": 0.35, "max_atoms": 50, "receptive_field": 3},
    {"center": True, "drift": 0.35, "step": "lipschitz"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_stored_equals_stateless_equals_reference(settings: dict) -> None:
    support, features = maps(3, 8, 6, 5), maps(2, 8, 4, 7, seed=1)
    layer = fsad.SparseCodingLayer(**settings)
    stateless = layer(features, support)
    stored = layer.adapt(support)(features)
    plain = fsad.SparseCodingLayer(**settings, backend="reference")(features, support)
    area = layer.receptive_field**2
    assert stored.residual.shape == (2, 8 * area, 4, 7) and stored.energy.shape == (2, 4, 7)
    torch.testing.assert_close(stored.energy, stored.residual.square().mean(1))
    torch.testing.assert_close(stateless.residual, stored.residual)
    torch.testing.assert_close(plain.residual, stored.residual, atol=2e-5, rtol=1e-4)


def test_energy_step_by_step() -> None:
    """The whole layer, written out by hand for one query over its whitened dictionary (section 3.1)."""
    support, features = maps(2, 4, 3, 3, dtype=torch.float64), maps(1, 4, 1, 1, seed=1, dtype=torch.float64)
    rows = torch.nn.functional.normalize(support.movedim(1, -1).flatten(0, 2), dim=1)
    moment = rows.T @ rows / len(rows)
    ridge = 0.1 * moment.trace() / 4 * torch.eye(4, dtype=torch.float64)
    whitener = torch.linalg.inv(torch.linalg.cholesky(moment + ridge))
    atoms = rows @ whitener.T
    layer = fsad.SparseCodingLayer().double().adapt(support)
    norm = (atoms.norm() / layer.atoms.norm()).item()  # by power iteration, with a margin of 1 %
    assert norm == pytest.approx(1.01 * torch.linalg.matrix_norm(atoms, 2).item(), rel=0.01)
    atoms = atoms / norm
    query = torch.nn.functional.normalize(features.flatten(), dim=0) @ whitener.T
    peak = (atoms @ query).abs().max()
    codes = torch.zeros(len(rows), dtype=torch.float64)
    for lam in (0.5 * 5 ** (-1 / 3), 0.5 * 5 ** (-2 / 3), 0.1):
        u = codes + atoms @ (query - codes @ atoms)
        codes = u * torch.sigmoid(10 / (lam * peak) * (u.abs() - lam * peak))
    expected = (query - codes @ atoms).square().mean()
    torch.testing.assert_close(layer(features).energy.squeeze(), expected)
    torch.testing.assert_close(layer(features, codes=True).codes.flatten(), codes)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_codes_explain_the_residual(settings: dict) -> None:
    layer = fsad.SparseCodingLayer(**settings).double().adapt(maps(3, 8, 6, 5).double())
    features = maps(2, 8, 4, 7, seed=1).double()
    code = layer(features, reconstruction=True, codes=True)
    index = layer.atom_index[None] if len(layer.atom_index) else None
    atoms = functional.dictionary_rows(layer.atoms, index, layer.receptive_field)[0]
    query = whitening.unit_length(features, 1) if layer.normalize else features
    if layer.center:
        query = query - layer.mean[:, None, None]
    if layer.drift:
        bound = layer.drift**2 * layer.moment.trace()[None]
        query = query - whitening.drift(query[None], bound)[0, :, :, None, None]
    if layer.step == "whiten":
        query = whitening.apply(layer.whitener[None], query[None])[0]
    rows = reference.im2col(query[None], layer.receptive_field)[0]
    rebuilt = code.codes.movedim(1, -1).flatten(0, 2) @ atoms
    torch.testing.assert_close(rows - rebuilt, code.residual.movedim(1, -1).flatten(0, 2))


def test_batched_tasks_equal_single_tasks() -> None:
    support, features = maps(3, 2, 5, 4, 4), maps(3, 1, 5, 6, 6, seed=1)
    layer = fsad.SparseCodingLayer(receptive_field=3, max_atoms=20, center=True)
    together = layer(features, support, reconstruction=True, codes=True)
    for task in range(3):
        alone = layer(features[task], support[task], reconstruction=True, codes=True)
        for one, all_tasks in zip(alone, together, strict=True):
            torch.testing.assert_close(one, all_tasks[task], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("receptive_field", [1, 3])
def test_reconstruction_is_the_dictionary_times_the_codes(receptive_field: int) -> None:
    support, features = maps(2, 5, 4, 4).double(), maps(1, 5, 3, 3, seed=1).double()
    layer = fsad.SparseCodingLayer(receptive_field=receptive_field).double().adapt(support)
    code = layer(features, reconstruction=True, codes=True)
    atoms = reference.im2col(layer.atoms, receptive_field)[0]
    whitened = code.codes.movedim(1, -1) @ atoms
    forth = torch.linalg.inv(layer.whitener)
    expected = torch.einsum("ij,bhwjo->bhwio", forth, whitened.unflatten(-1, (5, -1))).flatten(-2)
    torch.testing.assert_close(code.reconstruction.movedim(1, -1), expected)
    # and what is left of the query is the residual
    query = whitening.apply(layer.whitener[None], whitening.unit_length(features, 1)[None])
    rows = reference.im2col(query, receptive_field)[0]
    torch.testing.assert_close(rows - whitened.flatten(0, 2), code.residual.movedim(1, -1).flatten(0, 2))


@pytest.mark.parametrize("step", ["whiten", "lipschitz"])
def test_centred_by_the_mean_of_adapt(step: str) -> None:
    """As if the mean of the first support had been taken off everything by hand, border patches included."""
    first, second, features = (maps(2, 6, 5, 5, seed=i).double() for i in range(3))
    mean = first.mean((0, 2, 3))[:, None, None]
    settings = {"normalize": False, "receptive_field": 3, "max_atoms": 30, "step": step}
    plain = fsad.SparseCodingLayer(**settings).double().adapt(first - mean).extend(second - mean)
    centred = fsad.SparseCodingLayer(center=True, **settings).double().adapt(first).extend(second)
    expected = plain(features - mean, reconstruction=True)
    code = centred(features, reconstruction=True)
    torch.testing.assert_close(code.energy, expected.energy)
    offset = mean.flatten().repeat_interleave(9)[:, None, None]
    torch.testing.assert_close(code.reconstruction, expected.reconstruction + offset)


@pytest.mark.parametrize("settings", [{}, {"center": True}, {"center": True, "drift": 0.35}], ids=str)
def test_derivatives_run_through_features_and_dictionary(settings: dict) -> None:
    """With a fixed η nothing is held constant, so that finite differences see the same function."""
    layer = fsad.SparseCodingLayer(step=0.05, iterations=2, **settings)
    inputs = (maps(1, 3, 2, 2, seed=1).double().requires_grad_(), maps(1, 3, 2, 2).double().requires_grad_())

    def energy(features: Tensor, support: Tensor) -> Tensor:
        return layer(features, support).energy

    assert gradcheck(energy, inputs)
    assert gradgradcheck(energy, inputs)


@pytest.mark.parametrize(
    "settings", [{}, {"receptive_field": 3, "step": "lipschitz"}, {"center": True, "drift": 0.35}], ids=str
)
def test_derivatives_equal_the_reference(settings: dict) -> None:
    gradients = []
    for backend in ("native", "reference"):
        layer = fsad.SparseCodingLayer(**settings, backend=backend)
        inputs = [maps(1, 4, 3, 3, seed=1).double(), maps(2, 4, 3, 3).double()]
        inputs = [tensor.requires_grad_() for tensor in inputs]
        first = torch.autograd.grad(layer(*inputs).energy.sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(tensor.square().sum() for tensor in first), inputs)
        gradients.append([*first, *second])
    for native, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(native, plain)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_dictionary_travels(settings: dict) -> None:
    support, features = maps(3, 8, 6, 5), maps(2, 8, 4, 7, seed=1)
    layer = fsad.SparseCodingLayer(**settings).adapt(support)
    expected = layer(features).energy
    assert torch.equal(copy.deepcopy(layer)(features).energy, expected)
    other = fsad.SparseCodingLayer(**json.loads(json.dumps(layer.config()))).adapt(maps(1, 8, 3, 3))
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(features).energy, expected)
    assert other.num_atoms == layer.num_atoms
    parent = torch.nn.Sequential(fsad.SparseCodingLayer(**settings))
    parent.load_state_dict({f"0.{key}": value for key, value in layer.state_dict().items()})
    torch.testing.assert_close(parent[0](features).energy, expected)
    compact = fsad.SparseCodingLayer(**settings).load_compact(layer.compact(torch.float32))
    torch.testing.assert_close(compact(features).energy, expected, atol=1e-6, rtol=1e-4)


def test_thinning_covers_the_support() -> None:
    """Greedy selection keeps the one odd position, which a random choice of 5 in 200 would likely miss."""
    support = maps(2, 6, 10, 10) * 0.01 + torch.arange(1.0, 7)[:, None, None]
    support[1, :, 3, 4] = torch.tensor([9.0, -5, 3, -1, 0, 2])
    layer = fsad.SparseCodingLayer(max_atoms=5).adapt(support)
    assert layer.num_atoms == 5
    odd = whitening.unit_length(support[1, :, 3, 4], 0)
    assert (layer.support.flatten(1) - odd).norm(dim=1).min() < 1e-6


@pytest.mark.parametrize("settings", [{}, {"receptive_field": 3}], ids=str)
def test_extend_equals_adapting_to_all(settings: dict) -> None:
    first, second, features = maps(2, 6, 5, 5), maps(3, 6, 5, 5, seed=2), maps(1, 6, 5, 5, seed=3)
    layer = fsad.SparseCodingLayer(**settings)
    expected = layer.adapt(torch.cat([first, second]))(features).energy
    extended = layer.adapt(first).extend(second)
    torch.testing.assert_close(extended(features).energy, expected, atol=1e-6, rtol=1e-4)
    assert extended.num_atoms == 5 * 25


def test_extend_keeps_max_atoms_and_learns_the_new() -> None:
    """Two kinds of feature: after the second has joined, it is rebuilt about as well as the first."""
    kinds = [0.1 * maps(2, 6, 8, 8, seed=i) + maps(6, 1, 1, seed=10 + i) for i in range(2)]
    layer = fsad.SparseCodingLayer(max_atoms=40).adapt(kinds[0])
    known, strange = (layer(kind).energy.mean() for kind in kinds)
    assert strange > 5 * known
    layer.extend(kinds[1])
    known, joined = (layer(kind).energy.mean() for kind in kinds)
    assert joined < 2 * known
    assert layer.num_atoms == 40


def test_mask_keeps_positions_out_of_the_dictionary() -> None:
    support = maps(2, 4, 6, 6)
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[2:4, 1:5] = True
    masked = fsad.SparseCodingLayer().adapt(support, mask)
    cropped = fsad.SparseCodingLayer().adapt(support[:, :, 2:4, 1:5])
    features = maps(1, 4, 3, 3, seed=1)
    assert masked.num_atoms == 16
    torch.testing.assert_close(masked(features).energy, cropped(features).energy)
    with pytest.raises(InputError, match="leaves no position"):
        masked.adapt(support, torch.zeros(6, 6, dtype=torch.bool))
    with pytest.raises(InputError, match=r"mask must be bool \(6, 6\)"):
        masked.adapt(support, mask[:5])


def test_normal_features_have_less_energy_than_strange_ones() -> None:
    support = maps(4, 16, 8, 8) + 3 * maps(16, 1, 1, seed=9)
    layer = fsad.SparseCodingLayer().adapt(support)
    normal = maps(1, 16, 8, 8, seed=1) + 3 * maps(16, 1, 1, seed=9)
    strange = normal + 3 * maps(16, 1, 1, seed=10)
    assert layer(strange).energy.mean() > 1.2 * layer(normal).energy.mean()


def test_constant_and_zero_features_give_finite_energies() -> None:
    supports = (torch.zeros(2, 4, 3, 3), torch.ones(1, 4, 3, 3))
    for support, settings in product(supports, ({}, {"center": True}, {"center": True, "drift": 0.35})):
        layer = fsad.SparseCodingLayer(receptive_field=3, **settings).adapt(support)
        for features in (torch.zeros(1, 4, 3, 3), maps(1, 4, 3, 3)):
            assert layer(features).energy.isfinite().all()


def test_equal_vectors_have_no_direction_to_whiten() -> None:
    """Their mean is theirs up to rounding, which must not become the scale of what differs."""
    support = maps(1, 152, 1, 1).expand(3, -1, 8, 8)
    layer = fsad.SparseCodingLayer(center=True, ridge=100.0)
    features = maps(1, 152, 4, 4, seed=1)
    stateless = layer(features, support).energy
    assert stateless.max() < 1
    torch.testing.assert_close(layer.adapt(support)(features).energy, stateless)


def test_the_dictionary_of_a_centred_layer_fits_no_other() -> None:
    layers = [fsad.SparseCodingLayer(center=center).adapt(maps(1, 8, 4, 4)) for center in (False, True)]
    for one, other in (layers, layers[::-1]):
        with pytest.raises(InputError, match=f"this layer has center={one.center}, the saved one"):
            fsad.SparseCodingLayer(center=one.center).load_state_dict(other.state_dict())
    with pytest.raises(InputError, match="do not fit"):
        fsad.SparseCodingLayer(center=True).load_compact(layers[0].compact())


def test_a_diverging_step_is_refused() -> None:
    support, features = maps(3, 8, 6, 6), maps(1, 8, 6, 6, seed=1)
    paper = fsad.SparseCodingLayer.paper(receptive_field=1)
    with pytest.raises(DivergedError, match=r"step=1 diverges: .* must be below 2"):
        paper.adapt(support)
    with pytest.raises(DivergedError, match="too large for this dictionary"):
        paper(features, support)
    assert paper.adapt(0.001 * support)(0.001 * features).energy.isfinite().all()


def test_bad_features_are_refused() -> None:
    layer = fsad.SparseCodingLayer()
    with pytest.raises(NotAdaptedError, match="call adapt"):
        layer(maps(1, 8, 4, 4))
    with pytest.raises(InputError, match="NaN"):
        layer.adapt(maps(1, 8, 4, 4) * float("nan"))
    with pytest.raises(InputError, match="empty"):
        layer.adapt(maps(0, 8, 4, 4))
    assert not layer.is_adapted
    layer.adapt(maps(1, 8, 4, 4))
    with pytest.raises(InputError, match="6 channels, the dictionary 8"):
        layer(maps(1, 6, 4, 4))
    with pytest.raises(InputError, match="8 channels, the new support 6"):
        layer.extend(maps(1, 6, 4, 4))
    with pytest.raises(DivergedError, match="NaN"):
        layer(maps(1, 8, 4, 4) * float("nan"))
    with pytest.raises(InputError, match="need their support"):
        layer(maps(2, 1, 8, 4, 4))
    with pytest.raises(InputError, match=r"feature maps \(T, B, c, h, w\)"):
        layer(maps(2, 1, 8, 4, 4), maps(2, 8, 4, 4))
    with pytest.raises(InputError, match=r"torch\.int64"):
        layer(torch.ones(1, 8, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    "settings",
    [
        {"iterations": 0},
        {"iterations": 33},
        {"lambda_min": 0.0},
        {"lambda_max": 0.05},
        {"schedule": "cosine"},
        {"schedule": [0.1]},
        {"sharpness": 0},
        {"shrinkage": "hard"},
        {"receptive_field": 2},
        {"step": "newton"},
        {"step": -1.0},
        {"max_atoms": 0},
        {"backend": "fast"},
        {"ridge": 0.0},
        {"center": "no"},
        {"drift": 0.35},
        {"drift": -1.0, "center": True},
        {"drift": None, "center": True},
        {"drift": 11, "center": True},
    ],
    ids=str,
)
def test_bad_settings_are_named(settings: dict) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        fsad.SparseCodingLayer(**settings)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_and_autocast_are_computed_in_float32(dtype: torch.dtype) -> None:
    support, features = maps(2, 8, 5, 5), maps(1, 8, 5, 5, seed=1)
    layer = fsad.SparseCodingLayer().adapt(support)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(features).energy, layer(features).energy.float())
        inside = layer(features.to(dtype)).energy
    outside = layer(features.to(dtype).float()).energy
    assert inside.dtype == torch.float32 and torch.equal(inside, outside)


def test_compile_first_order() -> None:
    layer = fsad.SparseCodingLayer(receptive_field=3, max_atoms=30).adapt(maps(2, 8, 5, 5))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    gradients = []
    for form in (layer, compiled):
        features = maps(2, 8, 5, 5, seed=1).requires_grad_()
        gradients.append(torch.autograd.grad(form(features).energy.sum(), features)[0])
    torch.testing.assert_close(*gradients)
    stateless = fsad.SparseCodingLayer()
    compiled = torch.compile(stateless, fullgraph=True, backend="aot_eager")
    arguments = (maps(1, 8, 5, 5), maps(2, 8, 5, 5, seed=1))
    torch.testing.assert_close(compiled(*arguments).energy, stateless(*arguments).energy)


def test_export() -> None:
    layer = fsad.SparseCodingLayer(max_atoms=30).adapt(maps(2, 8, 5, 5))
    features = maps(2, 8, 5, 5, seed=1)
    exported = torch.export.export(layer, (features,)).module()
    torch.testing.assert_close(exported(features).energy, layer(features).energy)


def test_threads_share_a_layer() -> None:
    layer = fsad.SparseCodingLayer(receptive_field=3).adapt(maps(2, 8, 9, 9))
    inputs = [maps(1, 8, 9, 9, seed=seed) for seed in range(8)]
    expected = [layer(features).energy for features in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda features: layer(features).energy, inputs))
    assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))


def test_memory_is_that_of_the_residuals_not_of_the_codes() -> None:
    """What autograd keeps: the N residuals and a few maps, not k×n codes (k·n would be 10 MB here)."""
    layer = fsad.SparseCodingLayer(schedule="absolute", step=1e-3, normalize=False)
    features, support = maps(1, 8, 40, 40).requires_grad_(), maps(1, 8, 40, 40, seed=1)
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(features, support)
    assert kept < 20 * features.numel() * 4


def test_settings_are_fixed():
    layer = fsad.SparseCodingLayer(iterations=2)
    with pytest.raises(
        AttributeError, match=r"settings are fixed; use dataclasses\.replace\(layer, iterations"
    ):
        layer.iterations = 4
    assert len(dataclasses.replace(layer, iterations=4).lambdas) == 4
