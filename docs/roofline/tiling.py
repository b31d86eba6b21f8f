"""``csrc/cuda/tiling.h`` in Python: its constants are read from it, its choices are repeated.

``LOGIC`` is the digest of tiling.h without comments, spaces and numbers. Where the file differs in more than
numbers, reading it fails here: what changed has to be repeated below first.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CUDA = Path(__file__).parents[2] / "csrc" / "cuda"
LOGIC = "47e8a8"
ROW_BYTES = 128  # of a chunk: kRowBytes
ROWS = 64  # that a block owns: kRows
WARPS = 4
STEP_BYTES = 32  # of every row, that one step of a product takes
FUSED = ("fused_codes", "fused_kept", "fused_dual", "fused_atoms", "fused_dual_atoms")
ATOM_SIDE = ("fused_atoms", "fused_dual_atoms", "atom_sums")


def plain(source: str) -> str:
    """C++ without comments and white space."""
    return re.sub(r"\s+", "", re.sub(r"//[^\n]*", "", source))


def logic(source: str) -> str:
    return hashlib.sha256(re.sub(r"\d+", "#", plain(source)).encode()).hexdigest()[:6]


@dataclass(frozen=True)
class Constants:
    fused_steps: int
    short_sum: int
    fused_chunks: dict[int, int]  # by the size of an element
    band_chunks: dict[int, int]
    wide: int  # columns of a tile where registers allow
    narrow: int
    stages: int
    dual_stages: int
    reserved: int
    wanted_blocks: int
    partial_bytes: int
    codes_bytes: int
    least_rows: int  # of a band

    def fused_width(self, element_size: int) -> int:
        return self.fused_chunks[element_size] * (ROW_BYTES // element_size)


def parse(source: str) -> Constants:
    """The numbers of tiling.h; ``ValueError`` where it is not the file that this module repeats."""
    if logic(source) != LOGIC:
        raise ValueError(
            "tiling.h has changed in more than numbers: repeat that in docs/roofline/tiling.py and set "
            f'its LOGIC to "{logic(source)}"'
        )
    text = plain(source)

    def numbers(pattern: str) -> list[int]:
        return [int(number) for number in re.search(pattern, text).groups()]

    fused4, fused2 = numbers(r"kFusedChunks=sizeof\(Element\)==4\?(\d+):(\d+);")
    band4, band2, band8 = numbers(r"kBandChunks=sizeof\(Element\)==4\?(\d+):sizeof.*?2\?(\d+):(\d+);")
    wide, narrow = numbers(r"kColumns=.*?\?(\d+):(\d+);")
    dual, stages = numbers(r"kStages=.*?\?(\d+):(\d+);")
    partial, partial_shift = numbers(r"kMaxPartialBytes=(\d+)<<(\d+);")
    codes, codes_shift = numbers(r"kMaxCodesBytes=(\d+)<<(\d+);")
    return Constants(
        fused_steps=numbers(r"kFusedSteps=(\d+);")[0],
        short_sum=numbers(r"kShortSum=(\d+);")[0],
        fused_chunks={4: fused4, 2: fused2},
        band_chunks={4: band4, 2: band2, 8: band8},
        wide=wide,
        narrow=narrow,
        stages=stages,
        dual_stages=dual,
        reserved=numbers(r"kReserved=(\d+);")[0],
        wanted_blocks=numbers(r"kWantedBlocks=(\d+);")[0],
        partial_bytes=partial << partial_shift,
        codes_bytes=codes << codes_shift,
        least_rows=numbers(r"kLeastRows=(\d+);")[0],
    )


@cache
def constants() -> Constants:
    return parse((CUDA / "tiling.h").read_text())


@dataclass(frozen=True)
class Tiles:
    atom_side: bool
    chunks: int  # of columns of the sums that a block forms
    columns: int  # rows of the streamed side in a tile
    stages: int


def real_size(element_size: int) -> int:
    return 8 if element_size == 8 else 4


def choose_tiles(work: str, element_size: int, plain: bool) -> Tiles:
    c = constants()
    fused = work in FUSED
    sums = fused or work in ("sums", "atom_sums")
    wide = (not fused or work == "fused_codes") if element_size == 2 else not sums
    return Tiles(
        atom_side=work in ATOM_SIDE,
        chunks=0 if not sums else (c.fused_chunks if fused else c.band_chunks)[element_size],
        columns=c.wide if wide and not plain else c.narrow,
        stages=c.dual_stages if work in ("fused_dual", "fused_dual_atoms") else c.stages,
    )


def place_shared(
    tiles: Tiles, element_size: int, slots: int, row_chunks: int, kept: int, processor_bytes: int
) -> tuple[int, int]:
    """How many slots stay in shared memory, and how many bytes of it a block takes."""
    owned = ROWS * ROW_BYTES
    located = 3 * 8 * (ROWS if tiles.atom_side else tiles.columns) * 4
    codes = ROWS * tiles.columns * real_size(element_size)
    for resident in range(slots, -1, -1):
        stage = tiles.columns * ROW_BYTES + (owned if resident < slots else 0)
        size = resident * row_chunks * owned + tiles.stages * stage + located + kept * codes
        if resident == 0 or 2 * (size + constants().reserved) <= processor_bytes:
            return resident, size
    raise AssertionError("not reached")


def padded_width(channels: int, element_size: int) -> int:
    """Numbers of a vector of a row in memory: padded to whole steps (``Pass`` of pass.cuh)."""
    return -(-channels * element_size // STEP_BYTES) * STEP_BYTES // element_size


def choose_splits(blocks: int, streamed_tiles: int, result_bytes: int) -> int:
    c = constants()
    if blocks == 0 or streamed_tiles == 0:
        return 1
    wanted = max(1, c.wanted_blocks // blocks)
    return min(wanted, streamed_tiles, max(1, c.partial_bytes // max(1, result_bytes)))


def choose_bands(tasks: int, queries: int, row_bytes: int) -> list[tuple[int, int]]:
    """(tasks, rows) of every band. No size here is so large that a band would hold a window of atoms."""
    rows = constants().codes_bytes // row_bytes
    if rows < min(queries, constants().least_rows):
        raise ValueError(f"rows of {row_bytes} bytes of codes need windows of atoms, which are not counted")
    if rows >= queries:
        together = min(tasks, rows // max(1, queries))
        return [(min(together, tasks - task), queries) for task in range(0, tasks, together)]
    rows = rows // ROWS * ROWS if rows >= ROWS else rows
    return tasks * [(1, min(rows, queries - row)) for row in range(0, queries, rows)]
