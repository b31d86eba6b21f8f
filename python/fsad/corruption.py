"""What turns a normal picture into an abnormal one: the starting points of "learning from inpainting"."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fsad.errors import InputError
from fsad.procedural import spoil

SIDES = (0.1, 0.4)  # shortest and longest side of a patch, as a share of the picture's


def corrupt(images: Tensor, kinds: Sequence[str], generator: torch.Generator) -> Tensor:
    """A copy of the images (B, C, H, W), each with one of the corruptions, drawn in turn.

    Raises InputError for a kind that is not one of ``CORRUPTIONS``.
    """
    unknown = sorted(set(kinds) - set(CORRUPTIONS))
    if unknown or not kinds:
        raise InputError(f"corruptions are of {', '.join(CORRUPTIONS)}; got {', '.join(unknown) or 'none'}")
    drawn = torch.randint(len(kinds), (len(images),), generator=generator).tolist()
    corrupted = images.clone()
    for image, kind in zip(corrupted, drawn, strict=True):
        CORRUPTIONS[kinds[kind]](image, generator)
    return corrupted


def _noise(image: Tensor, generator: torch.Generator) -> None:
    image.copy_(torch.rand(image.shape, generator=generator))


def _cut_paste(image: Tensor, generator: torch.Generator) -> None:
    """A patch moved elsewhere, its brightness changed a little (CutPaste, arXiv 2104.04015)."""
    patch = _patch(image, generator)
    source = _somewhere(image, patch.shape[1], patch.shape[2], generator)
    gain = 0.8 + 0.4 * torch.rand((), generator=generator)
    patch.copy_((gain * source).clamp(0, 1))


def _defect(image: Tensor, generator: torch.Generator) -> None:
    """A scratch, spot, dent … as on the procedural products."""
    rng = np.random.default_rng(_below(2**62, generator))
    image.copy_(torch.from_numpy(spoil(image.permute(1, 2, 0).numpy(), rng)).permute(2, 0, 1))


def _patch(image: Tensor, generator: torch.Generator) -> Tensor:
    """A view of a random rectangle of the image (C, H, W)."""
    shortest, longest = SIDES
    shares = shortest + (longest - shortest) * torch.rand(2, generator=generator)
    height, width = (max(1, int(s * n)) for s, n in zip(shares.tolist(), image.shape[1:], strict=True))
    return _somewhere(image, height, width, generator)


def _somewhere(image: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    top = _below(image.shape[1] - height + 1, generator)
    left = _below(image.shape[2] - width + 1, generator)
    return image[:, top : top + height, left : left + width]


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


CORRUPTIONS: dict[str, Callable[[Tensor, torch.Generator], None]] = {
    # Independent uniform noise in a patch (section 3.3).
    "noise": lambda image, generator: _noise(_patch(image, generator), generator),
    "cut-paste": _cut_paste,
    "defect": _defect,
    # Nothing but noise, where sampling usually starts: what section 3.3 does better than.
    "noise-start": _noise,
}
