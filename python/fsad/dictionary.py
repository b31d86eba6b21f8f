"""The dictionary that a layer keeps: made from normal feature maps, extended, saved and moved."""

from typing import Any

import torch
from torch import Tensor, nn

from fsad import atoms, functional, whitening
from fsad.errors import InputError


class StoredDictionary(nn.Module):
    """State and life of the adapted dictionary; ``SparseCodingLayer`` adds the coding.

    What persists is in feature units, so that more support can join: the support maps (or, thinned, one
    l×l patch an atom), the positions that are atoms, and the second moment of all vectors seen.
    """

    def __init__(
        self, receptive_field: int, step: str | float, ridge: float, normalize: bool, max_atoms: int | None
    ) -> None:
        super().__init__()
        self.receptive_field, self.step, self.ridge = receptive_field, step, ridge
        self.normalize, self.max_atoms = normalize, max_atoms
        self.register_buffer("support", torch.empty(0))  # maps (K, c, h, w); empty: not adapted
        self.register_buffer("atom_index", torch.empty(0, dtype=torch.int64))  # (k,); empty for all
        self.register_buffer("moment", torch.empty(0))  # second moment of all vectors seen (c, c)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # number of them
        # Derived from the above, so that coding starts at once: the whitened, scaled maps, η and L⁻¹.
        self.register_buffer("atoms", torch.empty(0), persistent=False)
        self.register_buffer("gain", torch.empty(0), persistent=False)
        self.register_buffer("whitener", torch.empty(0), persistent=False)

    @property
    def is_adapted(self) -> bool:
        return self.support.numel() > 0

    @property
    def num_atoms(self) -> int:
        """k, the atoms of the stored dictionary; 0 if there is none."""
        if len(self.atom_index) or not self.is_adapted:
            return len(self.atom_index)
        return self.support[:, 0].numel()

    def adapt(self, support: Tensor, mask: Tensor | None = None) -> "StoredDictionary":
        """Make the dictionary from the feature maps of normal images, replacing any former one.

        Args:
            support: (K, c, h, w).
            mask: bool (h, w) or (K, h, w), the positions that may become atoms; all by default.

        Returns:
            The layer itself.

        Raises:
            InputError: support of a wrong shape, empty or not finite.
            DivergedError: ``step`` is a number too large for this dictionary.
        """
        maps = self._support_maps(support)
        candidates = atoms.positions(mask, maps)
        rows = _rows(maps, candidates)
        moment = rows.mT @ rows / len(rows)
        available = len(rows)
        if self.max_atoms is not None and available > self.max_atoms:
            kept = atoms.thin(maps, candidates, self.max_atoms, self.receptive_field)
            maps = atoms.cut_patches(maps, kept, self.receptive_field)
            candidates = self._centers(maps)
        return self._store(maps, candidates, moment, available)

    def extend(self, support: Tensor, mask: Tensor | None = None) -> "StoredDictionary":
        """Add the feature maps of more normal images to the dictionary; arguments as in ``adapt``.

        The second moment behind the whitening becomes exactly that of all images together; with
        ``max_atoms`` old atoms and new patches compete for the places, by farthest-point selection.
        """
        if not self.is_adapted:
            return self.adapt(support, mask)
        maps = self._support_maps(support)
        if maps.shape[1] != self.support.shape[1]:
            raise InputError(
                f"the dictionary has {self.support.shape[1]} channels, the new support "
                f"{maps.shape[1]}; both must come from the same backbone"
            )
        new = atoms.positions(mask, maps)
        rows = _rows(maps, new)
        total = int(self.count) + len(rows)
        moment = (self.moment * int(self.count) + rows.mT @ rows) / total
        if new is None:
            new = torch.arange(len(rows), device=maps.device)
        maps = torch.cat([self._patches(), atoms.cut_patches(maps, new, self.receptive_field)])
        if self.max_atoms is not None:
            maps = maps[atoms.thin(maps, None, self.max_atoms, self.receptive_field, padding=0)]
        return self._store(maps, self._centers(maps), moment, total)

    def compact(self, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
        """The fewest numbers that rebuild the adapted layer: each atom as an l×l patch, in ``dtype``."""
        patches = self._patches().to(dtype)
        return {"patches": patches, "moment": self.moment.clone(), "count": self.count.clone()}

    def load_compact(self, tensors: dict[str, Tensor]) -> "StoredDictionary":
        """Rebuild the dictionary that ``compact`` described."""
        maps = tensors["patches"].to(tensors["moment"])
        return self._store(maps, self._centers(maps), tensors["moment"], int(tensors["count"]))

    def _support_maps(self, support: Tensor) -> Tensor:
        support = full_precision("support", support, 4).detach()
        if support.numel() == 0:
            raise InputError(f"support is empty: {tuple(support.shape)}; give at least one normal image")
        if not support.isfinite().all():
            raise InputError("support features contain NaN or infinity; check the backbone's output")
        return whitening.unit_length(support, 1) if self.normalize else support

    def _patches(self) -> Tensor:
        """The stored atoms as maps of their own, (k, c, l, l)."""
        index = self.atom_index
        if not len(index):
            index = torch.arange(self.num_atoms, device=self.support.device)
        return atoms.cut_patches(self.support, index, self.receptive_field)

    def _centers(self, maps: Tensor) -> Tensor | None:
        """Where the atoms of maps that are one patch each lie; None if that is everywhere."""
        area = self.receptive_field**2
        return None if area == 1 else torch.arange(len(maps), device=maps.device) * area + area // 2

    def _store(self, maps: Tensor, index: Tensor | None, moment: Tensor, count: int) -> "StoredDictionary":
        kept = None if index is None else index[None]
        ready = atoms.prepare(maps[None], kept, moment[None], self.step, self.ridge, self.receptive_field)
        if not isinstance(self.step, str):
            atoms.check_step(ready, self.receptive_field)
        self.support = maps.contiguous()
        self.atom_index = maps.new_empty(0, dtype=torch.int64) if index is None else index
        self.moment, self.count = moment, torch.tensor(count, device=maps.device)
        self.atoms = functional.channels_last(ready.atoms).movedim(-1, 2)
        self.gain = ready.step
        self.whitener = maps.new_empty(0) if ready.whitener is None else ready.whitener[0]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Take the sizes of the incoming dictionary, whatever they are, then derive the rest from it.
        names = ("support", "atom_index", "moment", "count")
        for name in names:
            if prefix + name in state_dict:
                incoming = state_dict[prefix + name]
                setattr(self, name, torch.empty_like(incoming, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.is_adapted and all(prefix + name in state_dict for name in names):
            index = self.atom_index if len(self.atom_index) else None
            self._store(self.support, index, self.moment, int(self.count))


def _rows(maps: Tensor, index: Tensor | None) -> Tensor:
    rows = maps.movedim(1, -1).flatten(0, 2)
    return rows if index is None else rows[index]


def full_precision(name: str, tensor: Tensor, dims: int) -> Tensor:
    """``tensor`` checked to be feature maps of ``dims`` dimensions; half precisions become float32."""
    shape = "(B, c, h, w)" if dims == 4 else "(T, B, c, h, w)"
    if not isinstance(tensor, Tensor) or tensor.dim() != dims or not tensor.is_floating_point():
        got = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor)
        raise InputError(f"{name} must be floating feature maps {shape}, got {got}")
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
