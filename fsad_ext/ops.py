"""The operators' Python half: fake kernels, autograd, autocast.

``istc``'s derivative is the operator ``istc_backward``, whose own derivative is
``istc_double_backward``; that one has none. Between them the saved residuals (``history``) are a cache of
what queries and atoms determine, so no gradient is ever passed to them.
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


@torch.library.register_fake("fsad::istc")
def _(queries, scale, atoms, atom_index, step, lambdas, taus, shrinkage, receptive_field, allow_tf32):
    rows = _rows(queries, receptive_field)
    return queries.new_empty(rows), queries.new_empty((len(lambdas) - 1, *rows))


@torch.library.register_fake("fsad::istc_backward")
def _(grad, history, queries, scale, atoms, index, step, lambdas, taus, shrinkage, field, tf32, need_atoms):
    grad_atoms = torch.empty_like(atoms) if need_atoms else atoms.new_empty(0)
    return torch.empty_like(queries), torch.empty_like(scale), grad_atoms


@torch.library.register_fake("fsad::istc_double_backward")
def _(tangent_queries, tangent_scale, tangent_atoms, grad, history, queries, scale, atoms, *settings):
    grad_atoms = torch.empty_like(atoms) if settings[-1] else atoms.new_empty(0)
    return torch.empty_like(grad), torch.empty_like(queries), torch.empty_like(scale), grad_atoms


@torch.library.register_fake("fsad::peak_atom")
def _(queries, atoms, atom_index, receptive_field):
    return queries.new_empty(_rows(queries, receptive_field)[:2], dtype=torch.int64)


def _save_forward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:5], output[1])
    ctx.settings = inputs[5:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_residual, _grad_history):
    if grad_residual is None:
        return (None,) * 10
    queries, scale, atoms, atom_index, step, history = ctx.saved_tensors
    need_atoms = _is_wanted(ctx, 2)
    saved = (grad_residual.contiguous(), history, queries, scale, atoms, atom_index, step)
    grad_queries, grad_scale, grad_atoms = torch.ops.fsad.istc_backward(*saved, *ctx.settings, need_atoms)
    return grad_queries, grad_scale, grad_atoms if need_atoms else None, *(None,) * 7


def _save_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:7])
    ctx.settings = inputs[7:-1]  # all but need_atoms
    ctx.set_materialize_grads(False)


def _double_backward(ctx, tangent_queries, tangent_scale, tangent_atoms):
    if tangent_queries is None and tangent_scale is None and tangent_atoms is None:
        return (None,) * 13
    _, _, queries, scale, atoms, *_ = ctx.saved_tensors
    # A gradient that was not asked for comes back as an empty tensor, and so does its cotangent.
    if tangent_atoms is not None and tangent_atoms.dim() != atoms.dim():
        tangent_atoms = None
    need_atoms = _is_wanted(ctx, 4)
    tangents = (
        torch.zeros_like(queries) if tangent_queries is None else tangent_queries.contiguous(),
        torch.zeros_like(scale) if tangent_scale is None else tangent_scale.contiguous(),
        None if tangent_atoms is None else tangent_atoms.contiguous(),
    )
    grad_grad, grad_queries, grad_scale, grad_atoms = torch.ops.fsad.istc_double_backward(
        *tangents, *ctx.saved_tensors, *ctx.settings, need_atoms
    )
    return grad_grad, None, grad_queries, grad_scale, grad_atoms if need_atoms else None, *(None,) * 8


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


torch.library.register_autograd("fsad::istc", _backward, setup_context=_save_forward)
torch.library.register_autograd("fsad::istc_backward", _double_backward, setup_context=_save_backward)
torch.library.register_autograd("fsad::istc_double_backward", _third_order)


# Three iterations of differences of nearly equal vectors: float32 is what their accuracy needs.
for _device in ("cpu", "cuda"):
    torch.library.register_autocast("fsad::istc", _device, torch.float32)
    torch.library.register_autocast("fsad::peak_atom", _device, torch.float32)
