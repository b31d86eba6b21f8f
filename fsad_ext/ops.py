"""The operators' Python half: fake kernels, autograd, autocast.

``istc``'s derivative is the operator ``istc_backward``, whose own derivative is
``istc_double_backward``; that one has none. Between them the saved residuals (``history``) are a cache of
what queries and atoms determine, so no gradient is ever passed to them.

``istc_residual`` is ``istc`` without a derivative, and without what one needs.

``istc_energy`` also returns the energy e = ‖r/s‖²/d of each residual, in the units of the query before its
scale s. Its derivative ``istc_energy_backward`` knows that the residual's gradient 2ē·r/(ds²) moves with the
residual: differentiated again, as in every step of a Langevin chain, it takes one reverse pass, not two.

``istc_relative`` finds the scale of relative thresholds, 1 / max|ηDᵀz|, on its way: the inner products of the
search serve as those of the first step. It returns the maximum, and names the atom that has it, from which
derivatives are made; ``istc_energy`` then takes what is known, and only differentiates it.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor


def build_info() -> dict:
    """How the library was built: compiler, instruction sets, CUDA architectures (or None)."""
    return json.loads(torch.ops.fsad.build_info())


# The device types that the library has kernels for.
DEVICES = ("cpu", "cuda") if build_info()["cuda"] else ("cpu",)


def _rows(queries: Tensor, receptive_field: int) -> tuple[int, int, int]:
    tasks, images, height, width, channels = queries.shape
    return tasks, images * height * width, channels * receptive_field**2


_INPUTS = (
    "Tensor queries, Tensor scale, Tensor atoms, Tensor? atom_index, Tensor step, float[] lambdas, "
    "float[] taus, int shrinkage, int receptive_field, bool allow_tf32"
)
torch.library.define(
    "fsad::istc_energy", f"({_INPUTS}, Tensor? residual, Tensor? history) -> (Tensor, Tensor, Tensor)"
)
torch.library.define(
    "fsad::istc_energy_backward",
    f"(Tensor grad_energy, Tensor residual, Tensor history, {_INPUTS}, bool need_atoms) "
    "-> (Tensor, Tensor, Tensor)",
)


@torch.library.impl("fsad::istc_energy", "CompositeExplicitAutograd")
def _(queries, scale, *rest):
    *rest, residual, history = rest
    if residual is None:
        residual, history = torch.ops.fsad.istc(queries, scale, *rest)
    else:
        residual, history = residual.clone(), history.clone()  # an operator's results are its own
    return residual, history, residual.square().mean(-1) / scale.square()


@torch.library.impl("fsad::istc_energy_backward", "CompositeExplicitAutograd")
def _(grad_energy, residual, history, queries, scale, *rest):
    to_residual, to_scale = _energy_gradients(grad_energy, residual, scale)
    gradients = torch.ops.fsad.istc_backward(to_residual, history, queries, scale, *rest)
    return gradients[0], gradients[1] + to_scale, gradients[2]


def _energy_gradients(grad_energy: Tensor, residual: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Of the energy by the residual, and by the scale while the residual stays."""
    to_scale = -2 * grad_energy * residual.square().mean(-1) / scale**3
    return _energy_weight(grad_energy, residual, scale)[..., None] * residual, to_scale


def _energy_weight(grad_energy: Tensor, residual: Tensor, scale: Tensor) -> Tensor:
    """w in the residual's gradient w·r, one for each residual."""
    return 2 * grad_energy / (residual.shape[-1] * scale.square())


@torch.library.register_fake("fsad::istc")
def _(queries, scale, atoms, atom_index, step, lambdas, taus, shrinkage, receptive_field, allow_tf32):
    rows = _rows(queries, receptive_field)
    return queries.new_empty(rows), queries.new_empty((len(lambdas) - 1, *rows))


@torch.library.register_fake("fsad::istc_residual")
def _(queries, scale, atoms, atom_index, step, lambdas, taus, shrinkage, receptive_field, allow_tf32):
    return queries.new_empty(_rows(queries, receptive_field))


@torch.library.register_fake("fsad::istc_relative")
def _(queries, atoms, atom_index, step, lambdas, taus, shrinkage, receptive_field):
    rows = _rows(queries, receptive_field)
    history = queries.new_empty((len(lambdas) - 1, *rows))
    atom, value = queries.new_empty(rows[:2], dtype=torch.int64), queries.new_empty(rows[:2])
    return queries.new_empty(rows), history, atom, value


@torch.library.register_fake("fsad::istc_energy")
def _(queries, scale, atoms, index, step, lambdas, taus, shrinkage, receptive_field, allow_tf32, *known):
    rows = _rows(queries, receptive_field)
    history = queries.new_empty((len(lambdas) - 1, *rows))
    return queries.new_empty(rows), history, queries.new_empty(rows[:2])


@torch.library.register_fake("fsad::istc_energy_backward")
def _(grad, residual, history, queries, scale, atoms, *settings):
    grad_atoms = torch.empty_like(atoms) if settings[-1] else atoms.new_empty(0)
    return torch.empty_like(queries), torch.empty_like(scale), grad_atoms


@torch.library.register_fake("fsad::istc_backward")
def _(grad, history, queries, scale, atoms, index, step, lambdas, taus, shrinkage, field, tf32, need_atoms):
    grad_atoms = torch.empty_like(atoms) if need_atoms else atoms.new_empty(0)
    return torch.empty_like(queries), torch.empty_like(scale), grad_atoms


@torch.library.register_fake("fsad::istc_double_backward")
def _(to_queries, to_scale, to_atoms, factors, grad, history, queries, scale, atoms, *settings):
    grad_atoms = torch.empty_like(atoms) if settings[-1] else atoms.new_empty(0)
    return torch.empty_like(grad), torch.empty_like(queries), torch.empty_like(scale), grad_atoms


@torch.library.register_fake("fsad::peak_atom")
def _(queries, atoms, atom_index, receptive_field):
    return queries.new_empty(_rows(queries, receptive_field)[:2], dtype=torch.int64)


def _save_forward(ctx, inputs, output):
    """Of both operators: inputs, history, and the residual where an energy's gradient needs it."""
    has_energy = len(output) == 3
    ctx.save_for_backward(*inputs[:5], output[1], output[0] if has_energy else None)
    ctx.settings, ctx.known = inputs[5:10], inputs[10:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_residual, _grad_history, grad_energy=None):
    rest_of_inputs = (None,) * (7 + len(ctx.known))
    if grad_residual is None and grad_energy is None:
        return None, None, None, *rest_of_inputs
    *inputs, history, residual = ctx.saved_tensors
    need_atoms = _is_wanted(ctx, 2)
    rest = (history, *inputs, *ctx.settings, need_atoms)
    to_scale = 0
    if grad_residual is None:
        gradients = torch.ops.fsad.istc_energy_backward(grad_energy.contiguous(), residual, *rest)
    else:
        if grad_energy is not None:
            to_residual, to_scale = _energy_gradients(grad_energy, residual, inputs[1])
            grad_residual = grad_residual + to_residual
        gradients = torch.ops.fsad.istc_backward(grad_residual.contiguous(), *rest)
    grad_queries, grad_scale, grad_atoms = gradients[0], gradients[1] + to_scale, gradients[2]
    return grad_queries, grad_scale, grad_atoms if need_atoms else None, *rest_of_inputs


def _save_backward(ctx, inputs, output):
    first_setting = next(i for i, value in enumerate(inputs) if isinstance(value, (list, tuple)))
    ctx.save_for_backward(*inputs[:first_setting])
    ctx.settings = inputs[first_setting:-1]  # all but need_atoms
    ctx.set_materialize_grads(False)


def _double_backward(ctx, *tangents):
    if all(tangent is None for tangent in tangents):
        return (None,) * 13
    grad_residual, history, *inputs = ctx.saved_tensors
    need_atoms = _is_wanted(ctx, 4)
    saved = (None, grad_residual, history, *inputs)
    grad_grad, *gradients = torch.ops.fsad.istc_double_backward(
        *_cotangents(tangents, *inputs[:3]), *saved, *ctx.settings, need_atoms
    )
    return grad_grad, None, *gradients[:2], gradients[2] if need_atoms else None, *(None,) * 8


# Devices whose kernel of the double backward takes the energy's share along.
FUSED = ("cpu",)


def _energy_double_backward(ctx, *tangents):
    """Of S = ⟨v, gradient⟩ = ē·(2⟨r, ṙ⟩/s² − 2‖r‖²ṡ/s³)/d, with ṙ and ṡ the tangents along v."""
    if all(tangent is None for tangent in tangents):
        return (None,) * 14
    grad_energy, residual, history, *inputs = ctx.saved_tensors
    scale, need_atoms = inputs[1], _is_wanted(ctx, 5)
    cotangents = _cotangents(tangents, *inputs[:3])
    weight = _energy_weight(grad_energy, residual, scale)
    through_scale = -2 * cotangents[1] / scale
    fused = residual.device.type in FUSED
    factors = torch.stack([weight, through_scale]) if fused else None
    rest = (history, *inputs, *ctx.settings, need_atoms)
    tangent, *gradients = torch.ops.fsad.istc_double_backward(
        *cotangents, factors, weight[..., None] * residual, *rest
    )
    if not fused:
        adjoint = weight[..., None] * (tangent + through_scale[..., None] * residual)
        besides = torch.ops.fsad.istc_backward(adjoint, *rest)
        gradients = [one + other for one, other in zip(gradients, besides, strict=True)]
    along, square = (residual * tangent).mean(-1), residual.square().mean(-1)
    to_grad = (2 * along + through_scale * square) / scale.square()
    to_scale = gradients[1] - grad_energy * (4 * along + 3 * through_scale * square) / scale**3
    return to_grad, None, None, gradients[0], to_scale, gradients[2] if need_atoms else None, *(None,) * 8


def _cotangents(tangents, queries: Tensor, scale: Tensor, atoms: Tensor):
    """Of a backward operator's results, with zeros for what nothing depends on; the atoms' may be None."""
    of_queries, of_scale, of_atoms = tangents
    # A gradient that was not asked for came back as an empty tensor, and so does its cotangent.
    if of_atoms is not None and of_atoms.dim() != atoms.dim():
        of_atoms = None
    return (
        torch.zeros_like(queries) if of_queries is None else of_queries.contiguous(),
        torch.zeros_like(scale) if of_scale is None else of_scale.contiguous(),
        None if of_atoms is None else of_atoms.contiguous(),
    )


def _is_wanted(ctx, position: int) -> bool:
    """Whether this backward pass has a use for the gradient of the input at ``position``.

    ``needs_input_grad`` only says that the input requires grad: it does in every step of a Langevin chain,
    where autograd.grad asks for the pictures' gradient and the dictionary depends on the network's weights.
    """
    if not ctx.needs_input_grad[position]:
        return False
    node, _ = ctx.next_functions[position]
    try:
        return torch._C._will_engine_execute_node(node)
    except (RuntimeError, AttributeError):  # a leaf that autograd.grad asks for; a torch without the function
        return True


def _third_order(ctx, *grads):
    raise RuntimeError(
        "fsad::istc can be differentiated twice, not three times; use backend='reference' for higher orders"
    )


for _operator in ("fsad::istc", "fsad::istc_energy"):
    torch.library.register_autograd(_operator, _backward, setup_context=_save_forward)
torch.library.register_autograd("fsad::istc_backward", _double_backward, setup_context=_save_backward)
torch.library.register_autograd(
    "fsad::istc_energy_backward", _energy_double_backward, setup_context=_save_backward
)
torch.library.register_autograd("fsad::istc_double_backward", _third_order)


# Three iterations of differences of nearly equal vectors: float32 is what their accuracy needs.
for _device in ("cpu", "cuda"):
    for _operator in ("fsad::istc", "fsad::istc_residual", "fsad::istc_energy", "fsad::peak_atom"):
        torch.library.register_autocast(_operator, _device, torch.float32)
torch.library.register_autocast("fsad::istc_relative", "cpu", torch.float32)
