"""From the feature maps of normal images to the dictionary that a layer codes over, and keeps.

Atoms are the l×l patches of maps, named by their flat position in K·h·w; nothing here forms them, except
for the few that a thinned dictionary keeps: those of a greedy coreset (farthest-point selection).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsad import functional, patches, whitening
from fsad.errors import DivergedError, InputError

PROJECTED_WIDTH = 32
STABLE_STEPS = "use step='whiten' (default) or 'lipschitz'"


class Dictionary(NamedTuple):
    """A dictionary ready for coding, of T independent tasks."""

    atoms: Tensor  # maps whose patches are the atoms, (T, K, c, h, w)
    kept: Tensor | None  # the patches that are atoms, int64 (T, k); None for all
    step: Tensor  # η, (T,)
    whitener: Tensor | None = None  # L⁻¹, (T, c, c); None if not whitened
    mean: Tensor | None = None  # taken off unit vectors before whitening, (T, c); None if not centred
    drift: Tensor | None = None  # b² of ``whitening.drift``, (T,); None if pictures do not drift


def thin(
    maps: Tensor, candidates: Tensor | None, max_atoms: int, receptive_field: int, padding: int | None = None
) -> Tensor:
    """At most ``max_atoms`` of the candidate patches of maps (K, c, h, w), by greedy coreset: (k,).

    Their distances are those of a fixed random projection to 32 numbers. It is a convolution, so patches are
    never formed, and it depends on no random state. ``padding`` is receptive_field // 2 by default.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (PROJECTED_WIDTH, maps.shape[1], receptive_field, receptive_field)
    kernel = torch.randn(shape, generator=generator).to(maps)
    projected = F.conv2d(maps.detach(), kernel, padding=receptive_field // 2 if padding is None else padding)
    points = projected.permute(0, 2, 3, 1).reshape(-1, PROJECTED_WIDTH)
    if candidates is None:
        return _farthest_points(points, max_atoms)
    return candidates[_farthest_points(points[candidates], max_atoms)]


def _farthest_points(points: Tensor, count: int) -> Tensor:
    """Indices of ``count`` of the points (n, width), each farthest from those before, sorted: (count,).
    Starts with the point farthest from the mean. All points if there are no more than ``count``."""
    if len(points) <= count:
        return torch.arange(len(points), device=points.device)
    columns = points.T.contiguous().T  # a product with few and long columns is the quicker one
    half_square = points.square().sum(1) / 2
    chosen = torch.empty(count, dtype=torch.int64, device=points.device)
    farthest = (points - points.mean(0)).square().sum(1).argmax()
    # Half squared distances, ‖x‖²/2 − ⟨x, y⟩ + ‖y‖²/2: one matrix-vector product an atom.
    distance = torch.full_like(half_square, torch.inf)
    for i in range(count):
        chosen[i] = farthest
        offset = half_square + half_square[farthest]
        torch.minimum(distance, torch.addmv(offset, columns, points[farthest], alpha=-1), out=distance)
        distance[farthest] = -torch.inf  # never twice, also among duplicates
        farthest = distance.max(0).indices  # argmax takes four times as long
    return chosen.sort().values


def cut_patches(maps: Tensor, index: Tensor, receptive_field: int) -> Tensor:
    """The patches of maps (K, c, h, w) at ``index`` (k,), each as a map of its own: (k, c, l, l)."""
    rows = patches.patch_rows(maps.movedim(1, -1)[None], index[None], receptive_field)
    stacked = torch.stack([row[0] for row in rows], dim=-1)
    return stacked.unflatten(-1, (receptive_field, receptive_field)).contiguous()


def positions(mask: Tensor | None, maps: Tensor) -> Tensor | None:
    """Flat positions where ``mask``, (h, w) or (K, h, w), is true; None without a mask."""
    if mask is None:
        return None
    count, _, height, width = maps.shape
    if mask.dtype != torch.bool or mask.shape not in ((height, width), (count, height, width)):
        shapes = f"{(height, width)} or {(count, height, width)}"
        raise InputError(f"mask must be bool {shapes}, got {mask.dtype} {tuple(mask.shape)}")
    index = mask.to(maps.device).expand(count, height, width).flatten().nonzero()[:, 0]
    if len(index) == 0:
        raise InputError("the mask leaves no position for the dictionary; it must be true somewhere")
    return index


class StoredDictionary(nn.Module):
    """State and life of the adapted dictionary; ``SparseCodingLayer`` adds the coding.

    What persists is in feature units, so that more support can join: the support maps (or, thinned, one
    l×l patch an atom), the positions that are atoms, and the second moment of all vectors seen. If centred,
    all of it is about the mean of those that ``adapt`` saw, which stays when more join; drift is off.
    """

    receptive_field: int  # settings, of which ``SparseCodingLayer`` speaks
    step: str | float
    ridge: float
    normalize: bool
    center: bool
    drift: float
    max_atoms: int | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0))  # (c,); empty if not centred
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
        return len(self.atom_index) or (self.support[:, 0].numel() if self.is_adapted else 0)

    def adapt(self, support: Tensor, mask: Tensor | None = None) -> "StoredDictionary":
        """Make the dictionary from the feature maps of normal images, replacing any former one.

        Args:
            support: (K, c, h, w).
            mask: bool (h, w) or (K, h, w), the positions that may become atoms; all by default.

        Returns the layer itself.

        Raises:
            InputError: support of a wrong shape, empty or not finite.
            DivergedError: ``step`` is a number too large for this dictionary.
        """
        maps = self._support_maps(support)
        candidates = positions(mask, maps)
        rows, mean = _rows(maps, candidates), maps.new_empty(0)
        if self.center:
            mean = rows.mean(0)
            maps = whitening.less_mean(maps[None], mean[None])[0]
            spread = _rows(maps, candidates).square().sum(1).mean()
            maps = self._less_drift(maps[None], spread[None], mask)[0]
            rows = _rows(maps, candidates)
        moment = rows.mT @ rows / len(rows)
        if self.max_atoms is not None and len(rows) > self.max_atoms:
            kept = thin(maps, candidates, self.max_atoms, self.receptive_field)
            maps = cut_patches(maps, kept, self.receptive_field)
            candidates = self._centers(maps)
        return self._store(maps, candidates, moment, len(rows), mean)

    def extend(self, support: Tensor, mask: Tensor | None = None) -> "StoredDictionary":
        """Add the feature maps of more normal images to the dictionary; arguments as in ``adapt``.

        The second moment behind the whitening becomes exactly that of all images together; with
        ``max_atoms`` old atoms and new patches compete for the places, by farthest-point selection.
        """
        if not self.is_adapted:
            return self.adapt(support, mask)
        maps = self._support_maps(support)
        if maps.shape[1] != self.support.shape[1]:
            got = f"the dictionary has {self.support.shape[1]} channels, the new support {maps.shape[1]}"
            raise InputError(f"{got}; both must come from the same backbone")
        new = positions(mask, maps)
        if self.center:
            maps = (maps - self.mean[:, None, None])[None]
            maps = self._less_drift(maps, self.moment.trace()[None], mask)[0]
        rows = _rows(maps, new)
        total = int(self.count) + len(rows)
        moment = (self.moment * int(self.count) + rows.mT @ rows) / total
        new = torch.arange(len(rows), device=maps.device) if new is None else new
        maps = torch.cat([self._patches(), cut_patches(maps, new, self.receptive_field)])
        if self.max_atoms is not None:
            maps = maps[thin(maps, None, self.max_atoms, self.receptive_field, padding=0)]
        return self._store(maps, self._centers(maps), moment, total, self.mean)

    def compact(self, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
        """The fewest numbers that rebuild the adapted layer: each atom as an l×l patch, in ``dtype``."""
        stored = {"patches": self._patches().to(dtype)}
        names = ("moment", "count", "mean") if self.center else ("moment", "count")
        return stored | {name: getattr(self, name).clone() for name in names}

    def load_compact(self, tensors: dict[str, Tensor]) -> "StoredDictionary":
        """Rebuild the dictionary that ``compact`` described.

        Raises InputError: its tensors do not fit each other.
        """
        moment, maps = tensors["moment"], tensors["patches"].to(tensors["moment"])
        none = maps.new_empty(0)
        mean = tensors.get("mean", none) if self.center else none
        channels = maps.shape[1]
        if moment.shape != (channels, channels) or (self.center and mean.shape != (channels,)):
            moments = f"second moment {tuple(moment.shape)} and mean {tuple(mean.shape)}"
            raise InputError(f"atoms of {channels} channels do not fit their {moments}")
        return self._store(maps, self._centers(maps), moment, int(tensors["count"]), mean)

    def _support_maps(self, support: Tensor) -> Tensor:
        maps = self._normalized(full_precision("support", support, 4).detach())
        if not maps.isfinite().all():
            raise InputError("support features contain NaN or infinity; check the backbone's output")
        return maps

    def _normalized(self, support: Tensor) -> Tensor:
        if support.numel() == 0:
            raise InputError(f"support is empty: {tuple(support.shape)}; give at least one normal image")
        return whitening.unit_length(support, -3) if self.normalize else support

    def _less_drift(self, maps: Tensor, spread: Tensor, mask: Tensor | None = None) -> Tensor:
        """Centred maps (T, K, c, h, w), of vectors of these mean square lengths (T,), less their drift."""
        if not self.drift:
            return maps
        inside = None if mask is None else mask.expand(*maps.shape[:2], *maps.shape[3:])
        return maps - whitening.drift(maps, self.drift**2 * spread, inside)[..., None, None]

    def _patches(self) -> Tensor:
        """The stored atoms as maps of their own, (k, c, l, l)."""
        everywhere = torch.arange(self.num_atoms, device=self.support.device)
        index = self.atom_index if len(self.atom_index) else everywhere
        return cut_patches(self.support, index, self.receptive_field)

    def _centers(self, maps: Tensor) -> Tensor | None:
        """Where the atoms of maps that are one patch each lie; None if that is everywhere."""
        area = self.receptive_field**2
        return None if area == 1 else torch.arange(len(maps), device=maps.device) * area + area // 2

    def _ready(self, maps: Tensor, index: Tensor | None, moment: Tensor) -> Dictionary:
        """Whitened, scaled, and with η as ``step`` says (see ``SparseCodingLayer``).

        Args:
            maps: (T, K, c, h, w) in feature units, less the mean.
            index: (T, k) or None for all patches.
            moment: (T, c, c), second moment of the support's vectors; read for ``step="whiten"`` only.
        """
        if isinstance(self.step, float | int):
            return Dictionary(maps, index, maps.new_full((len(maps),), self.step))
        if self.step == "whiten":
            whitener = whitening.whitening_matrix(moment, self.ridge)
            maps = whitening.apply(whitener, maps)
            maps = maps / self._norm(maps, index)[:, None, None, None, None]
            return Dictionary(maps, index, maps.new_ones(len(maps)), whitener)
        return Dictionary(maps, index, self._norm(maps, index).square().reciprocal())

    def _norm(self, maps: Tensor, index: Tensor | None) -> Tensor:
        norm = patches.spectral_norm(maps.movedim(2, -1), index, self.receptive_field)
        # A dictionary of zeros reconstructs nothing at any step.
        return torch.where(norm > 0, norm, torch.ones_like(norm))

    def _store(
        self, maps: Tensor, index: Tensor | None, moment: Tensor, count: int, mean: Tensor
    ) -> "StoredDictionary":
        kept = None if index is None else index[None]
        ready = self._ready(maps[None], kept, moment[None])
        if not isinstance(self.step, str):
            growth = float(self.step * self._norm(maps[None], kept).square())
            if growth >= 2:
                wrong = f"step={self.step:g} diverges: step·‖D‖₂² = {growth:.4g} must be below 2"
                raise DivergedError(f"{wrong} for this dictionary; {STABLE_STEPS}")
        self.support = maps.contiguous()
        self.atom_index = maps.new_empty(0, dtype=torch.int64) if index is None else index
        self.mean, self.moment, self.count = mean, moment, torch.tensor(count, device=maps.device)
        self.atoms = functional.channels_last(ready.atoms).movedim(-1, 2)
        self.gain = ready.step
        self.whitener = maps.new_empty(0) if ready.whitener is None else ready.whitener[0]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # Take the sizes of the incoming dictionary, whatever they are, then derive the rest from it.
        names = ("support", "atom_index", "moment", "count", "mean")
        incoming = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        whole = len(incoming) == len(names)
        if whole and incoming["support"].numel() and (saved := incoming["mean"].numel() > 0) != self.center:
            wrong = f"this layer has center={self.center}, the saved one center={saved}"
            raise InputError(f"{wrong}; make it with the settings of that one")
        for name, tensor in incoming.items():
            setattr(self, name, torch.empty_like(tensor, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if whole and self.is_adapted:
            index = self.atom_index if len(self.atom_index) else None
            self._store(self.support, index, self.moment, int(self.count), self.mean)


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
