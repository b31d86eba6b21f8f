"""Feature maps for the tests of the sparse coding layer."""

from __future__ import annotations

import torch
from torch import Tensor


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random maps whose channels share a mean, as features do."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) + 0.5).to(dtype)
