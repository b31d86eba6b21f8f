"""Plain PyTorch with products of operands rounded to TF32: what allowing TF32 promises."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def rounded(x: Tensor) -> Tensor:
    """Float32 rounded to TF32, 10 bits of mantissa, ties away from zero."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


class _Product(torch.autograd.Function):
    """A matrix product of rounded operands whose derivatives are such products too."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.einsum("...ij,...jk->...ik", rounded(a), rounded(b))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return _Product.apply(grad, b.mT), _Product.apply(a.mT, grad)


class ProductsInTf32(TorchFunctionMode):
    """Within it, every ``@`` of float32 tensors rounds its operands to TF32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.matmul, Tensor.__matmul__, torch.matmul):
            return _Product.apply(*args)
        return func(*args, **(kwargs or {}))
