"""How many bytes one launch of a streaming kernel moves through L2, by the tiles that tiling.h chooses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from .passes import Kernel
from .tiling import ROW_BYTES, ROWS, WARPS, Tiles, choose_splits, choose_tiles, place_shared, real_size

SECTOR = 32


@dataclass(frozen=True)
class Size:
    """What one launch covers. ``width`` is that of padded rows; a band has fewer ``queries``."""

    queries: int
    atoms: int
    width: int
    tasks: int = 1
    atom_fill: float = 1.0  # the part of the patches' vectors that no zero padding replaces
    indexed: bool = False


def patch_fill(height: int, width: int, receptive_field: int) -> float:
    """``Size.atom_fill`` of all patches of maps of this size."""
    margin = receptive_field // 2

    def along(length: int) -> float:
        offsets = range(-margin, margin + 1)
        return sum(max(0, length - abs(offset)) for offset in offsets) / (length * receptive_field)

    return along(height) * along(width)


@cache
def row_sectors(row_bytes: int) -> int:
    """Bytes that copies of a row touch: a warp copies 128-byte chunks of four rows at a time."""
    touched = 0
    for chunk in range(0, row_bytes, ROW_BYTES):
        units = range(chunk, min(chunk + ROW_BYTES, row_bytes), 16)
        touched += len({(row * row_bytes + unit) // SECTOR for row in range(4) for unit in units})
    return touched * SECTOR // 4


@cache
def sum_sectors(width: int, real: int) -> float:
    """Bytes of the sectors of a row of sums, written eight columns at a time; the mean of two rows."""
    total = 0
    for row in range(2):
        for column in range(0, width, 8):
            first = (row * width + column) * real
            last = (row * width + min(column + 8, width)) * real - 1
            total += last // SECTOR - first // SECTOR + 1
    return total * SECTOR / 2


@dataclass(frozen=True, eq=False)  # known by identity, so that caches find it fast
class Launch:
    """One kernel on one size, with the geometry that the host code gives it."""

    kernel: Kernel
    size: Size
    element_size: int
    processor_bytes: int
    short: bool = False  # float32 without tensor cores

    @cached_property
    def tiles(self) -> Tiles:
        return choose_tiles(self.kernel.work, self.element_size, self.short or self.element_size == 8)

    @property
    def row_chunks(self) -> int:
        return -(-self.size.width * self.element_size // ROW_BYTES)

    @property
    def real(self) -> int:
        return real_size(self.element_size)

    @property
    def owned(self) -> int:
        return self.size.atoms if self.tiles.atom_side else self.size.queries

    @property
    def streamed(self) -> int:
        return self.size.queries if self.tiles.atom_side else self.size.atoms

    @property
    def owned_tiles(self) -> int:
        return -(-self.owned // ROWS)

    @property
    def streamed_tiles(self) -> int:
        return -(-self.streamed // self.tiles.columns)

    @property
    def parts(self) -> int:
        return -(-self.row_chunks // self.tiles.chunks) if self.tiles.chunks else 1

    @cached_property
    def splits(self) -> int:
        blocks = self.owned_tiles * self.parts * self.size.tasks
        if self.tiles.chunks:
            result = self.size.tasks * self.owned * self.size.width * self.real
        else:
            result = self.size.tasks * self.owned * self.real if self.kernel.work == "peak" else 0
        return choose_splits(blocks, self.streamed_tiles, result)

    @property
    def blocks(self) -> int:
        return self.owned_tiles * self.parts * self.size.tasks * self.splits

    @cached_property
    def shared(self) -> tuple[int, int]:
        """Resident slots, and bytes of shared memory of a block."""
        kernel = self.kernel
        return place_shared(
            self.tiles, self.element_size, kernel.slots, self.row_chunks, kernel.kept, self.processor_bytes
        )

    # ---- bytes -----------------------------------------------------------------------------------------

    def code_bytes(self) -> float:
        """Of the codes that a band's kernels exchange; every part of the sums' width reads them anew."""
        kernel, size = self.kernel, self.size
        row = -(-size.atoms * self.real // SECTOR) * SECTOR
        return size.tasks * size.queries * row * (self.parts * kernel.loads + kernel.stores)

    def partial_bytes(self) -> float:
        """Written, of the sums of all splits."""
        rows = self.splits * self.size.tasks * self.owned
        if self.kernel.work == "peak":
            return rows * (self.real + 8)
        return rows * sum_sectors(self.size.width, self.real) if self.tiles.chunks else 0

    def tile_bytes(self) -> float:
        """Read, of the owned and streamed matrices."""
        kernel, size = self.kernel, self.size
        row = row_sectors(size.width * self.element_size)
        atom_row = row * size.atom_fill
        owned_row, streamed_row = (atom_row, row) if self.tiles.atom_side else (row, atom_row)
        resident = self.shared[0]
        stay = list(dict.fromkeys(kernel.products))[:resident]
        passing = sum(matrix not in stay for matrix in kernel.products)
        owned = self.owned * owned_row * (self.parts * self.splits * resident + passing * self.streamed_tiles)
        entries = len(kernel.products) + kernel.sums
        return size.tasks * (owned + entries * self.owned_tiles * self.streamed * streamed_row)

    def small_bytes(self) -> float:
        """Read, of step sizes and positions of atoms: a sector for every warp, but from L1."""
        blocks = self.owned_tiles * self.parts * self.size.tasks
        read = blocks * self.streamed_tiles * WARPS * SECTOR * self.kernel.steps_read
        if self.size.indexed:
            once = self.splits * ROWS if self.tiles.atom_side else self.streamed
            read += blocks * once * 8
        return read

    def global_bytes(self) -> float:
        return self.tile_bytes() + self.code_bytes() + self.partial_bytes() + self.small_bytes()


def global_bytes(
    kernel: Kernel, size: Size, element_size: int, processor_bytes: int, short: bool = False
) -> float:
    """Bytes that one launch must move between global memory and the multiprocessors.

    Owned tiles, once a block where they stay in shared memory, else once a streamed tile; streamed tiles,
    once for each entry of the kernel's plan and tile of the owning side; sums of every split; codes of a
    band. What a test may hold the counters of an executed launch against.
    """
    return Launch(kernel, size, element_size, processor_bytes, short).global_bytes()
